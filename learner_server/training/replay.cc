// SPDX-License-Identifier: Apache-2.0
#include "learner_server/training/replay.h"

#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <filesystem>
#include <limits>
#include <memory>
#include <optional>
#include <utility>
#include <variant>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "common/base/build_info.h"
#include "common/base/digest.h"
#include "common/base/error_reason.h"
#include "common/base/file.h"
#include "common/base/status_macros.h"
#include "common/config/load_spec.h"
#include "common/metrics/learner_metrics.h"
#include "common/model/fingerprint.h"
#include "halfstep/v1/training_job.pb.h"
#include "kernels/thread_pool.h"
#include "kernels/workspace.h"
#include "learner_server/training/free_rollout_source.h"
#include "learner_server/training/job_inputs.h"
#include "learner_server/training/run_folder.h"
#include "learner_server/training/trainer.h"

namespace halfstep {
namespace {

constexpr size_t kMaxJobBytes = size_t{1} << 20;

class ReplayControl final : public RunControl {
 public:
  explicit ReplayControl(const ReplayOptions& options) : options_(options) {}

  RunRequest request() const override { return request_; }
  void Emit(v1::TrainingJobEvent) override {}
  void SetProgress(int64_t step, uint64_t) override {
    if (step == 0 || !options_.go_on || options_.go_on(step)) return;
    stopped_ = true;
    request_ = RunRequest::kCancel;
  }
  // The log is at its end, or the outcome differs. All that ends a replay is a request to cancel,
  // because the trainer then writes no checkpoint.
  absl::Status End() {
    request_ = RunRequest::kCancel;
    return absl::CancelledError("the replay is over");
  }
  bool stopped() const { return stopped_; }

 private:
  const ReplayOptions& options_;
  RunRequest request_ = RunRequest::kNone;
  bool stopped_ = false;
};

// The batches of the log; compares what was made of them when the next is asked for.
class ReplaySource final : public BatchSource {
 public:
  ReplaySource(const ExecContext& ctx, const JobSettings& settings, const TrainState* state,
               ReplayLogReader* log, ReplayControl* control, ReplayResult* result)
      : ctx_(ctx),
        settings_(settings),
        state_(state),
        log_(log),
        control_(control),
        result_(result) {}

  absl::StatusOr<TrainBatch> Next(int64_t step, const RunProgress& progress) override {
    result_->steps = progress.step;
    HALFSTEP_ASSIGN_OR_RETURN(ReplayLogReader::Record record, log_->Next());
    const std::string master = MasterDigest(*state_);
    const auto* end = std::get_if<ReplayEnd>(&record);
    auto* batch = std::get_if<ReplayBatch>(&record);
    if (batch == nullptr) {
      FillDigests(progress);
      result_->torn = log_->torn();
    }
    if (end != nullptr) {
      result_->has_end = true;
      if (Same(progress.step, "master_digest", end->master_digest, master) &&
          Same(progress.step, "weights_digest", end->weights_digest, result_->weights_digest)) {
        Same(progress.step, "state_digest", end->state_digest, result_->state_digest);
      }
    }
    if (batch == nullptr || !Same(progress.step, "master_digest", batch->master_digest, master)) {
      return control_->End();
    }
    if (batch->step != step || batch->version != progress.policy_version) {
      Same(progress.step, "policy_version", absl::StrCat(batch->version, " at step ", batch->step),
           absl::StrCat(progress.policy_version, " at step ", step));
      return control_->End();
    }
    const auto samples = static_cast<size_t>(settings_.prompts * settings_.samples);
    if (batch->trajectories.size() != samples) {
      return Error(absl::StatusCode::kDataLoss, "REPLAY_LOG_DAMAGED",
                   absl::StrCat("the batch of step ", step, " has ", batch->trajectories.size(),
                                " samples, and the job's have ", samples));
    }
    return MakeFreeBatch(settings_, progress, std::move(*batch));
  }

  // The training of the last batch failed. That is how the run ended, unless its log goes on.
  absl::Status EndWith(const absl::Status& failure, const RunProgress& progress) {
    HALFSTEP_ASSIGN_OR_RETURN(const ReplayLogReader::Record record, log_->Next());
    if (std::holds_alternative<ReplayBatch>(record)) return failure;
    result_->steps = progress.step;
    result_->failure = failure;
    result_->torn = log_->torn();
    FillDigests(progress);
    return absl::OkStatus();
  }

 private:
  bool Same(int64_t step, const char* what, const std::string& recorded,
            const std::string& replayed) {
    if (recorded == replayed) return true;
    result_->equal = false;
    result_->differs_after = step;
    result_->what = what;
    result_->recorded = recorded;
    result_->replayed = replayed;
    return false;
  }

  void FillDigests(const RunProgress& progress) {
    result_->weights_digest = PublishedDigest(ctx_, *state_, progress, settings_.rollout_dtype);
    result_->state_digest = StateDigest(*state_, progress);
  }

  const ExecContext ctx_;
  const JobSettings& settings_;
  const TrainState* const state_;
  ReplayLogReader* const log_;
  ReplayControl* const control_;
  ReplayResult* const result_;
};

absl::StatusOr<std::string> ReadJob(const std::string& run) {
  absl::StatusOr<std::string> job = ReadFile(run + "/job.json", kMaxJobBytes);
  if (!absl::IsNotFound(job.status())) return job;
  return Error(absl::StatusCode::kInvalidArgument, "NOT_A_RUN",
               absl::StrCat(run, " is no run folder, for it has no job.json; give the output_dir ",
                            "of a job"));
}

// For what the trainer writes; removed with it.
absl::StatusOr<std::string> MakeScratchFolder() {
  std::error_code error;
  const std::filesystem::path parent = std::filesystem::temp_directory_path(error);
  if (error) return FileError(error.value(), "find", "the folder for temporary files (TMPDIR)");
  std::string path = (parent / "halfstep-replay-XXXXXX").string();
  if (mkdtemp(path.data()) == nullptr) return FileError(errno, "make", path);
  return path;
}

}  // namespace

absl::StatusOr<ReplayResult> ReplayRun(const ReplayOptions& options) {
  HALFSTEP_ASSIGN_OR_RETURN(const std::string job_json, ReadJob(options.run));
  const std::string log_path = options.run + "/" + RunFolder::kReplayLogName;
  HALFSTEP_ASSIGN_OR_RETURN(ReplayLogReader log, ReplayLogReader::Open(log_path));
  ReplayHeader header{.job_digest = DigestOf(job_json).Hex(),
                      .model_digest = log.header().model_digest,
                      .numerics = log.header().numerics,
                      .build = BuildId(),
                      .max_sequence_tokens = log.header().max_sequence_tokens};
  // What was changed is told from the job before anything is read that the job names.
  HALFSTEP_RETURN_IF_ERROR(CheckHeader(log_path, log.header(), header));
  v1::TrainingJobSpec spec;
  HALFSTEP_RETURN_IF_ERROR(LoadSpec(job_json, options.run + "/job.json", &spec));
  HALFSTEP_ASSIGN_OR_RETURN(JobSettings settings, MakeJobSettings(spec, options.root));
  HALFSTEP_ASSIGN_OR_RETURN(const JobInputs inputs, LoadModelInputs(settings));

  std::atomic<int64_t> saturated_stores = 0;
  Workspace workspace;
  ThreadPool threads(options.threads);
  ExecContext ctx;
  ctx.workspace = &workspace;
  ctx.threads = &threads;
  ctx.saturated_stores = &saturated_stores;
  ctx.profile = settings.profile;
  header.numerics = NumericsFingerprint(ctx);
  TrainState state(inputs.model.config, inputs.model.layout, settings.learner_dtype,
                   log.header().max_sequence_tokens, settings.loss_scale, ctx.device);
  HALFSTEP_RETURN_IF_ERROR(LoadHuggingFaceWeights(inputs.model, &state.master));
  state.RefreshWeights(ctx);
  header.model_digest = MasterDigest(state);
  HALFSTEP_RETURN_IF_ERROR(CheckHeader(log_path, log.header(), header));

  HALFSTEP_ASSIGN_OR_RETURN(const std::string scratch, MakeScratchFolder());
  const auto remove = absl::MakeCleanup([&scratch] {
    std::error_code ignored;
    std::filesystem::remove_all(scratch, ignored);
  });
  HALFSTEP_ASSIGN_OR_RETURN(const RunFolder folder, RunFolder::Open(scratch + "/run", "replay"));
  HALFSTEP_ASSIGN_OR_RETURN(const CheckpointStore checkpoints,
                            CheckpointStore::Open(folder.checkpoints(), "replay"));
  // The log says where the run ends; what only looks at a run, or stops it, is left out.
  settings.steps = std::numeric_limits<int64_t>::max();
  settings.checkpoint_every = 0;
  settings.save_samples = false;
  settings.alarm_actions.clear();

  Registry registry;
  LearnerMetrics metrics(registry);
  RunProgress progress;
  ReplayResult result;
  ReplayControl control(options);
  ReplaySource source(ctx, settings, &state, &log, &control, &result);
  TrainerParts parts;
  parts.ctx = ctx;
  parts.settings = &settings;
  parts.state = &state;
  parts.progress = &progress;
  parts.source = &source;
  parts.max_positions = inputs.model.config.max_positions;
  parts.folder = &folder;
  parts.checkpoints = &checkpoints;
  parts.control = &control;
  parts.metrics = &metrics;
  const absl::Status trained = Trainer(std::move(parts)).Run().status();
  if (control.stopped()) return absl::CancelledError("asked to stop");
  if (ReasonOf(trained) == "REPLAY_LOG_DAMAGED") return trained;
  if (!trained.ok()) HALFSTEP_RETURN_IF_ERROR(source.EndWith(trained, progress));
  return result;
}

}  // namespace halfstep
