// SPDX-License-Identifier: Apache-2.0
#include "learner_server/training/training_job_runner.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <new>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/build_info.h"
#include "common/base/digest.h"
#include "common/base/error_reason.h"
#include "common/base/logging.h"
#include "common/base/status_macros.h"
#include "common/config/spec_text.h"
#include "common/model/fingerprint.h"
#include "common/model/initialize.h"
#include "common/reward/scoring_pool.h"
#include "common/reward/verifier.h"
#include "halfstep/v1/training_job.pb.h"
#include "kernels/buffer.h"
#include "kernels/thread_pool.h"
#include "kernels/workspace.h"
#include "learner_server/training/free_rollout_source.h"
#include "learner_server/training/job_inputs.h"
#include "learner_server/training/memory_plan.h"
#include "learner_server/training/reference_policy.h"
#include "learner_server/training/replay_log.h"
#include "learner_server/training/rollout_source.h"
#include "learner_server/training/supervised_source.h"
#include "learner_server/training/trainer.h"

namespace halfstep {
namespace {

// One run, put together in the order of the members.
class JobRun {
 public:
  JobRun(const TrainingJobRunnerOptions& options, RunControl* control)
      : options_(options), control_(control), threads_(options.threads) {
    ctx_.workspace = &workspace_;
    ctx_.threads = &threads_;
    ctx_.saturated_stores = &saturated_stores_;
  }

  absl::Status Prepare(const std::string& job_id, const v1::TrainingJobSpec& spec);
  // `is_known`: samples of its earlier attempts are counted already.
  absl::StatusOr<RunResult> Train(uint64_t epoch, bool is_known, RolloutPool* pool,
                                  LearnerMetrics* metrics);
  void Summarize(v1::RunSummary* summary) const;

 private:
  absl::Status InitializeState();
  absl::Status LoadInitialWeights();
  absl::Status CutLogs();
  absl::Status OpenReplayLog();
  // What the run came to, once it rests.
  void EndReplayLog();
  void EmitNotice(const std::string& reason, const std::string& message);
  void TellOfSkippedPrompts();

  const TrainingJobRunnerOptions& options_;
  RunControl* const control_;
  Workspace workspace_;
  ThreadPool threads_;
  std::atomic<int64_t> saturated_stores_ = 0;
  ExecContext ctx_;
  JobSettings settings_;
  JobInputs inputs_;
  std::shared_ptr<const Verifier> verifier_;  // null for supervised jobs
  std::string job_json_;
  std::optional<RunFolder> folder_;
  std::optional<CheckpointStore> checkpoints_;
  std::optional<ReplayLog> replay_log_;  // with batch.max_lag
  std::unique_ptr<TrainState> state_;
  std::unique_ptr<ReferencePolicy> reference_;  // null: the algorithm has none
  RunProgress progress_;
  std::vector<std::shared_ptr<const WeightSet>> older_weights_;
  std::string checkpoint_;
};

absl::Status JobRun::Prepare(const std::string& job_id, const v1::TrainingJobSpec& spec) {
  HALFSTEP_ASSIGN_OR_RETURN(settings_, MakeJobSettings(spec, options_.root));
  settings_.train_step.recompute = options_.recompute;
  ctx_.profile = settings_.profile;
  HALFSTEP_ASSIGN_OR_RETURN(inputs_, LoadJobInputs(settings_));
  // Memory that is promised but not there would end the learner in the middle of a step, again and
  // again.
  HALFSTEP_RETURN_IF_ERROR(CheckMemory(PlanMemory(settings_, inputs_), options_.free_memory()));
  if (!settings_.supervised) {
    HALFSTEP_ASSIGN_OR_RETURN(verifier_, MakeVerifier(spec.reward()));
  }
  HALFSTEP_RETURN_IF_ERROR(
      CheckRunPlace(settings_.output_directory, options_.root, options_.state));
  HALFSTEP_ASSIGN_OR_RETURN(RunFolder folder, RunFolder::Open(settings_.output_directory, job_id));
  folder_.emplace(std::move(folder));
  TellOfSkippedPrompts();
  job_json_ = SpecToJson(spec);
  HALFSTEP_RETURN_IF_ERROR(folder_->WriteJob(job_json_));
  HALFSTEP_ASSIGN_OR_RETURN(CheckpointStore store,
                            CheckpointStore::Open(folder_->checkpoints(), options_.incarnation));
  checkpoints_.emplace(std::move(store));
  state_ = std::make_unique<TrainState>(inputs_.model.config, inputs_.model.layout,
                                        settings_.learner_dtype, inputs_.max_sequence_tokens,
                                        settings_.loss_scale, ctx_.device);
  const absl::Status initialized = InitializeState();
  if (!initialized.ok()) state_.reset();  // it is nobody's
  return initialized;
}

absl::Status JobRun::InitializeState() {
  const absl::StatusOr<CheckpointStore::Checkpoint> newest = checkpoints_->FindNewest();
  if (absl::IsNotFound(newest.status())) {
    HALFSTEP_RETURN_IF_ERROR(LoadInitialWeights());
    return CutLogs();
  }
  HALFSTEP_RETURN_IF_ERROR(newest.status());
  for (const CheckpointStore::Rejected& rejected : newest->rejected) {
    EmitNotice("CHECKPOINT_CORRUPT", absl::StrCat(rejected.reason, "; it is kept as ",
                                                  rejected.path, " and the one before is used"));
  }
  HALFSTEP_ASSIGN_OR_RETURN(progress_,
                            ReadCheckpoint(ctx_, newest->path, settings_.loss_scale, state_.get()));
  HALFSTEP_ASSIGN_OR_RETURN(older_weights_,
                            ReadOlderWeights(newest->path, *state_, settings_.rollout_dtype));
  LogInfo("continuing from a checkpoint", {{"path", newest->path}, {"step", progress_.step}});
  return CutLogs();
}

// To what is behind the present state.
absl::Status JobRun::CutLogs() {
  if (settings_.max_lag > 0) HALFSTEP_RETURN_IF_ERROR(OpenReplayLog());
  HALFSTEP_RETURN_IF_ERROR(folder_->CutMetricsAfter(progress_.step, progress_.evaluated_step));
  return folder_->CutSamplesAfter(progress_.step);
}

absl::Status JobRun::OpenReplayLog() {
  const ReplayHeader header{
      .job_digest = DigestOf(job_json_).Hex(),
      .model_digest = progress_.step == 0 ? MasterDigest(*state_) : std::string(),
      .numerics = NumericsFingerprint(ctx_),
      .build = BuildId(),
      .max_sequence_tokens = inputs_.max_sequence_tokens};
  HALFSTEP_ASSIGN_OR_RETURN(
      ReplayLog log,
      ReplayLog::Open(folder_->path() + "/" + RunFolder::kReplayLogName, header, progress_.step));
  replay_log_.emplace(std::move(log));
  return absl::OkStatus();
}

void JobRun::EndReplayLog() {
  if (!replay_log_) return;
  const ReplayEnd end{progress_.step, MasterDigest(*state_),
                      PublishedDigest(ctx_, *state_, progress_, settings_.rollout_dtype),
                      StateDigest(*state_, progress_)};
  const absl::Status status = replay_log_->Append(end);
  if (status.ok()) return;
  EmitNotice("REPLAY_LOG_FAILED",
             absl::StrCat("a replay cannot compare the last step: ", status.message()));
}

absl::Status JobRun::LoadInitialWeights() {
  if (inputs_.model.has_weights) {
    HALFSTEP_RETURN_IF_ERROR(LoadHuggingFaceWeights(inputs_.model, &state_->master));
  } else {
    InitializeParameters(inputs_.model.config, settings_.seed, &state_->master);
  }
  state_->RefreshWeights(ctx_);
  return absl::OkStatus();
}

void JobRun::EmitNotice(const std::string& reason, const std::string& message) {
  LogWarning(message, {{"reason", reason}});
  v1::TrainingJobEvent event;
  event.mutable_notice()->set_reason(reason);
  event.mutable_notice()->set_message(message);
  control_->Emit(std::move(event));
}

void JobRun::TellOfSkippedPrompts() {
  const auto tell = [this](const std::optional<PromptDataset>& dataset, const std::string& path) {
    if (!dataset || dataset->skipped() == 0) return;
    EmitNotice(
        "PROMPTS_SKIPPED",
        absl::StrCat(dataset->skipped(), " of ", dataset->skipped() + dataset->size(),
                     " prompts of ", path, " are left out: they are longer than the model's ",
                     inputs_.model.config.max_positions,
                     " tokens allow, and data.overlong_prompts is skip"));
  };
  tell(inputs_.train, settings_.train_path);
  tell(inputs_.eval, settings_.eval_path);
}

absl::StatusOr<RunResult> JobRun::Train(uint64_t epoch, bool is_known, RolloutPool* pool,
                                        LearnerMetrics* metrics) {
  TrainerParts parts;
  parts.ctx = ctx_;
  parts.settings = &settings_;
  parts.state = state_.get();
  parts.progress = &progress_;
  parts.max_positions = inputs_.model.config.max_positions;
  parts.tokenizer = inputs_.tokenizer.get();
  parts.folder = &*folder_;
  parts.checkpoints = &*checkpoints_;
  parts.older_weights = std::move(older_weights_);
  parts.job_json = job_json_;
  parts.control = control_;
  parts.metrics = metrics;
  parts.count_earlier_samples = !is_known;

  std::unique_ptr<ScoringPool> scoring;
  std::unique_ptr<RolloutClient> client;
  std::unique_ptr<BatchSource> source;
  if (inputs_.reference) {
    HALFSTEP_ASSIGN_OR_RETURN(reference_, ReferencePolicy::Load(ctx_, settings_, inputs_));
  }
  if (settings_.supervised) {
    source = std::make_unique<SupervisedSource>(&*inputs_.train, settings_.seed, settings_.prompts);
  } else {
    scoring = std::make_unique<ScoringPool>(
        verifier_, inputs_.tokenizer, ScoringPoolOptions{.threads = options_.scoring_threads});
    client = std::make_unique<RolloutClient>(
        MakeRolloutJob(settings_, inputs_, epoch), options_.rollouts, pool, control_,
        [&scoring](const std::vector<int32_t>& response, const std::string& answer,
                   std::function<void(Reward)> done) {
          scoring->Submit(response, answer, std::move(done));
        });
    if (replay_log_) {
      source = std::make_unique<FreeRolloutSource>(settings_, parts.max_positions, &*inputs_.train,
                                                   client.get(), state_.get(), &*replay_log_);
    } else {
      auto rollouts = std::make_unique<RolloutSource>(settings_, parts.max_positions,
                                                      &*inputs_.train, client.get());
      if (reference_ != nullptr) {
        rollouts->UseReference([this](std::span<TrainSequence> sequences) {
          return reference_->Score([this] { return control_->request() != RunRequest::kNone; },
                                   sequences);
        });
      }
      source = std::move(rollouts);
    }
    if (inputs_.eval) parts.eval_prompts = &*inputs_.eval;
  }
  parts.source = source.get();
  parts.client = client.get();
  Trainer trainer(std::move(parts));
  absl::StatusOr<RunResult> result = trainer.Run();
  checkpoint_ = trainer.checkpoint();
  if (result.ok() && result->outcome != RunOutcome::kCancelled) EndReplayLog();
  return result;
}

void JobRun::Summarize(v1::RunSummary* summary) const {
  if (folder_) summary->set_output_dir(folder_->path());
  if (state_ == nullptr) return;
  FillSummary(progress_, summary);
  summary->set_skipped_steps(state_->scaler.state().skipped_steps);
  summary->set_final_loss_scale(state_->scaler.scale());
  summary->set_checkpoint(checkpoint_);
  summary->set_state_digest(StateDigest(*state_, progress_));
  const DType dtype = settings_.supervised ? settings_.learner_dtype : settings_.rollout_dtype;
  summary->set_weights_digest(PublishedDigest(ctx_, *state_, progress_, dtype));
}

}  // namespace

// The job that runs now will have ended when the one that is checked begins.
size_t TrainingJobRunner::FreeOnceIdle() const {
  size_t free = options_.free_memory();
  if (free == 0) return 0;
  for (const MemoryUse& use : MemoryReport()) free += use.bytes;
  return free;
}

TrainingJobRunner::TrainingJobRunner(TrainingJobRunnerOptions options, RolloutPool* pool,
                                     LearnerMetrics* metrics)
    : options_(std::move(options)), pool_(pool), metrics_(metrics) {}

absl::StatusOr<RunResult> TrainingJobRunner::Run(const std::string& job_id, uint64_t epoch,
                                                 const v1::TrainingJobSpec& spec,
                                                 RunControl* control, v1::RunSummary* summary) {
  JobRun run(options_, control);
  absl::StatusOr<RunResult> result = [&]() -> absl::StatusOr<RunResult> {
    try {
      HALFSTEP_RETURN_IF_ERROR(run.Prepare(job_id, spec));
      const bool is_known = !counted_jobs_.insert(job_id).second;
      return run.Train(epoch, is_known, pool_, metrics_);
    } catch (const std::bad_alloc&) {
      return Error(absl::StatusCode::kResourceExhausted, "OUT_OF_MEMORY",
                   "not enough memory for the model, its moments and the activations of a "
                   "micro-batch; lower batch.micro_batch_tokens or take a larger machine");
    }
  }();
  run.Summarize(summary);
  const std::string reason = ReasonOf(result.status());
  if (reason == "NO_SOUND_CHECKPOINT" || reason == "NO_REPLAY_LOG" ||
      reason == "REPLAY_LOG_DAMAGED" || reason == "REPLAY_LOG_OF_OTHER_RUN") {
    // What was trained may still be saved by a person.
    return RunResult{RunOutcome::kPaused, reason, std::string(result.status().message())};
  }
  if (reason == "DISK_FULL") {
    // What is in the run folder is sound, so the job can go on once there is room.
    return RunResult{
        .outcome = RunOutcome::kPaused,
        .reason = "DISK_FULL",
        .message = absl::StrCat(result.status().message(), "; make room and resume the job")};
  }
  return result;
}

absl::Status TrainingJobRunner::Check(const v1::TrainingJobSpec& spec) {
  return Inspect(spec).status();
}

absl::StatusOr<CheckReport> TrainingJobRunner::Inspect(const v1::TrainingJobSpec& spec) const {
  HALFSTEP_ASSIGN_OR_RETURN(JobSettings settings, MakeJobSettings(spec, options_.root));
  settings.train_step.recompute = options_.recompute;
  // What can be seen at once comes before the data is read.
  HALFSTEP_RETURN_IF_ERROR(CheckRunPlace(settings.output_directory, options_.root, options_.state));
  HALFSTEP_RETURN_IF_ERROR(CheckRunFolder(settings.output_directory, ""));
  if (!settings.supervised) HALFSTEP_RETURN_IF_ERROR(MakeVerifier(spec.reward()).status());
  try {
    HALFSTEP_ASSIGN_OR_RETURN(const JobInputs inputs, LoadJobInputs(settings));
    HALFSTEP_RETURN_IF_ERROR(CheckMemory(PlanMemory(settings, inputs), FreeOnceIdle()));
    return CheckReport{.train_rows_skipped = inputs.train->skipped(),
                       .eval_rows_skipped = inputs.eval ? inputs.eval->skipped() : 0};
  } catch (const std::bad_alloc&) {
    return Error(absl::StatusCode::kResourceExhausted, "OUT_OF_MEMORY",
                 "not enough memory to read the model's files and the data; train on a part of "
                 "the data or take a larger machine");
  }
}

}  // namespace halfstep
