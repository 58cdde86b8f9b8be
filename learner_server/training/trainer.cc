// SPDX-License-Identifier: Apache-2.0
#include "learner_server/training/trainer.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/base/error_reason.h"
#include "common/base/logging.h"
#include "common/base/status_macros.h"
#include "common/metrics/learner_metrics.h"
#include "halfstep/v1/training_job.pb.h"
#include "kernels/stream.h"
#include "learner_server/training/rollout_source.h"
#include "learner_server/training/score_responses.h"
#include "learner_server/training/token_lag.h"

namespace halfstep {
namespace {

// Failures of what is around the run: it is sound, and can go on once somebody has helped.
bool MayGoOnLater(const absl::Status& status) {
  const std::string reason = ReasonOf(status);
  return reason == "NO_ROLLOUT" || reason == "GROUP_LOST" || reason == "BATCH_TIMEOUT" ||
         reason == "DISK_FULL";
}

void CountEarlierSamples(const RunProgress& progress, LearnerMetrics* metrics) {
  metrics->samples.Increment(static_cast<double>(progress.samples_admitted));
  metrics->samples_trained.Increment(static_cast<double>(progress.samples_trained));
  for (const auto& [reason, count] : progress.samples_dropped) {
    metrics->samples_dropped[reason].Increment(static_cast<double>(count));
  }
}

}  // namespace

Trainer::Trainer(TrainerParts parts)
    : parts_(std::move(parts)),
      train_step_(parts_.ctx, parts_.settings->train_step, parts_.state),
      health_({.bitwise = parts_.settings->profile == Profile::kBitwise}, &parts_.progress->health),
      published_(std::move(parts_.older_weights)),
      assigned_(parts_.folder->ReadAssigned()),
      assigned_here_(parts_.progress->step),
      groups_reassigned_before_(
          std::max(parts_.progress->groups_reassigned, assigned_.groups_reassigned)) {}

absl::StatusOr<RunResult> Trainer::Run() {
  if (parts_.count_earlier_samples) CountEarlierSamples(*parts_.progress, parts_.metrics);
  const absl::Status status = Train();
  CountAbandonedSamples();
  RunResult result;
  if (status.ok()) return result;
  const RunRequest request = parts_.control->request();
  if (absl::IsCancelled(status) && request != RunRequest::kNone) return EndEarly(request);
  // The run is sound, and would only meet the same prompts again.
  if (ReasonOf(status) == "NO_MIXED_GROUPS") Checkpoint();
  if (MayGoOnLater(status) || alarm_pauses_) {
    result = EndEarly(RunRequest::kPause);
    result.reason = ReasonOf(status);
    result.message = std::string(status.message());
    return result;
  }
  return status;
}

absl::Status Trainer::Train() {
  RunProgress& progress = *parts_.progress;
  if (progress.step > 0) {
    checkpoint_step_ = progress.step;
    checkpoint_ = parts_.checkpoints->PathOf(progress.step);
  }
  Export(RunStart{.step = progress.step,
                  .published_version = parts_.client == nullptr ? 0 : progress.policy_version,
                  .lag = parts_.settings->ahead(),
                  .profile = parts_.settings->profile},
         parts_.metrics);
  ExportAlarms();
  parts_.control->SetProgress(progress.step, progress.policy_version);
  for (const auto& older : published_) parts_.client->Publish(older);
  HALFSTEP_RETURN_IF_ERROR(PublishCurrent());
  // Before the first step, or where an earlier attempt was stopped.
  HALFSTEP_RETURN_IF_ERROR(EvaluateIfDue());
  const int64_t checkpoint_every = parts_.settings->checkpoint_every;
  while (progress.step < parts_.settings->steps) {
    if (parts_.control->request() != RunRequest::kNone) {
      return absl::CancelledError("asked to stop between two steps");
    }
    StepRecord record;
    HALFSTEP_RETURN_IF_ERROR(RunStep(&record));
    Report(record);
    HALFSTEP_RETURN_IF_ERROR(WatchHealth(record));
    HALFSTEP_RETURN_IF_ERROR(EvaluateIfDue());
    const bool last = progress.step == parts_.settings->steps;
    if (!last && checkpoint_every > 0 && progress.step % checkpoint_every == 0) Checkpoint();
  }
  return Finish();
}

absl::Status Trainer::RunStep(StepRecord* record) {
  RunProgress& progress = *parts_.progress;
  const absl::Time start = absl::Now();
  record->step = progress.step + 1;
  if (parts_.client != nullptr) NoteAssigned(record->step);
  HALFSTEP_ASSIGN_OR_RETURN(TrainBatch batch, parts_.source->Next(record->step, progress));
  record->batch = batch.statistics;
  batch.on_policy = MarkCurrent(progress.policy_version, &batch.updates);
  if (parts_.settings->max_lag > 0) {
    record->lag = MeasureTokenLag(progress.policy_version, batch.updates);
  }
  record->wait_time = batch.wait_time;
  record->score_time = batch.score_time;
  record->reference_time = batch.reference_time;
  HALFSTEP_RETURN_IF_ERROR(FillOldLogProbs(&batch, record));
  HALFSTEP_RETURN_IF_ERROR(RunUpdates(&batch, record));
  DiagnoseIfSuspect(batch, *record);
  AddToProgress(batch, *record);
  AppendSamples(record->step, batch.samples);

  const absl::Time trained = absl::Now();
  if (record->updates_applied() > 0) ++progress.policy_version;
  progress.version_after.push_back(progress.policy_version);
  if (record->updates_applied() > 0) HALFSTEP_RETURN_IF_ERROR(PublishCurrent());
  record->policy_version = progress.policy_version;
  record->publish_time = absl::Now() - trained;
  record->total_time = absl::Now() - start;
  progress.train_seconds += absl::ToDoubleSeconds(record->total_time);
  return absl::OkStatus();
}

absl::Status Trainer::FillOldLogProbs(TrainBatch* batch, StepRecord* record) {
  const JobSettings& settings = *parts_.settings;
  if (RatioDenominator(settings.train_step.algorithm) != PolicySource::kOld)
    return absl::OkStatus();
  const absl::Time start = absl::Now();
  const bool bypass = settings.profile == Profile::kBitwise && batch->on_policy;
  for (std::vector<TrainSequence>& sequences : batch->updates) {
    if (bypass) {
      for (TrainSequence& sequence : sequences) sequence.old = sequence.behaviour;
      continue;
    }
    ScoreOptions options;
    options.fp32 = settings.fp32;
    options.temperature = settings.train_step.temperature;
    options.micro_batch_tokens = settings.train_step.micro_batch_tokens;
    options.go_on = [this](int64_t) { return parts_.control->request() == RunRequest::kNone; };
    HALFSTEP_ASSIGN_OR_RETURN(
        std::vector<std::vector<float>> scored,
        ScoreResponses(parts_.ctx, parts_.state->weights, sequences, options));
    for (size_t i = 0; i < sequences.size(); ++i) {
      record->tokens_rescored += sequences[i].response_tokens();
      sequences[i].old = std::move(scored[i]);
    }
  }
  record->rescore_time = absl::Now() - start;
  return absl::OkStatus();
}

absl::Status Trainer::RunUpdates(TrainBatch* batch, StepRecord* record) {
  MismatchStatistics mismatch;
  std::atomic<int64_t>* saturated = parts_.ctx.saturated_stores;
  AddSaturatedStores(parts_.ctx);
  const int64_t saturated_before = saturated == nullptr ? 0 : saturated->load();
  for (size_t i = 0; i < batch->updates.size(); ++i) {
    // Until the batch has changed anything it can be left, to be trained on again by a later
    // attempt.
    const auto stop = [this] { return parts_.control->request() != RunRequest::kNone; };
    HALFSTEP_ASSIGN_OR_RETURN(OptimizerStepReport report,
                              // Log-probs are comparable only at the weights that generated: before
                              // the batch's first update, and from current_from on.
                              train_step_.Run(batch->updates[i], i == 0 ? &mismatch : nullptr,
                                              i == 0 ? stop : std::function<bool()>()));
    if (report.skipped) {
      LogWarning("optimizer step skipped: a scaled gradient is not finite",
                 {{"step", record->step},
                  {"overflow", report.overflow},
                  {"parameter", report.non_finite_parameter},
                  {"loss_scale", report.loss_scale},
                  {"next_loss_scale", parts_.state->scaler.scale()}});
    }
    record->updates.push_back(std::move(report));
  }
  record->mismatch = mismatch.Summarize();
  record->master_digest = MasterDigest(*parts_.state);
  record->loss_scale = parts_.state->scaler.scale();
  record->skipped_steps = parts_.state->scaler.state().skipped_steps;
  AddSaturatedStores(parts_.ctx);
  if (saturated != nullptr) record->saturated_stores = saturated->load() - saturated_before;
  return absl::OkStatus();
}

void Trainer::NoteAssigned(int64_t step) {
  const JobSettings& settings = *parts_.settings;
  const int64_t last = std::min(step + settings.ahead(), settings.steps);
  const int64_t again = std::min(last, assigned_.step) - assigned_here_;
  groups_reassigned_before_ += std::max<int64_t>(again, 0) * settings.prompts;
  assigned_here_ = last;
  assigned_.step = std::max(assigned_.step, last);
  assigned_.groups_reassigned =
      groups_reassigned_before_ + parts_.client->pool_status().groups_reassigned;
  const absl::Status written = parts_.folder->WriteAssigned(assigned_);
  if (!written.ok()) LogWarning("groups_reassigned may become too small: " + written.ToString());
}

void Trainer::AddToProgress(const TrainBatch& batch, const StepRecord& record) {
  RunProgress& progress = *parts_.progress;
  const BatchStatistics& statistics = batch.statistics;
  progress.step = record.step;
  progress.cursor += static_cast<uint64_t>(batch.rows_consumed);
  progress.open_groups = batch.open_groups;
  progress.samples_admitted += statistics.samples + statistics.samples_stale;
  progress.samples_trained += statistics.samples_trained;
  for (const auto& [reason, count] : statistics.samples_dropped) {
    progress.samples_dropped[reason] += count;
  }
  for (const auto& [rollout, count] : statistics.samples_by_rollout) {
    progress.samples_by_rollout[rollout] += count;
  }
  if (parts_.client != nullptr) {
    progress.groups_reassigned =
        groups_reassigned_before_ + parts_.client->pool_status().groups_reassigned;
  }
  progress.tokens_generated += statistics.tokens_generated;
  progress.tokens_trained += record.tokens_trained();
  progress.tokens_compared += record.mismatch.tokens_compared;
  progress.max_abs_logprob_diff = std::max(progress.max_abs_logprob_diff, record.mismatch.abs_max);
}

absl::Status Trainer::PublishCurrent() {
  const RunProgress& progress = *parts_.progress;
  const JobSettings& settings = *parts_.settings;
  const TrainState& state = *parts_.state;
  HALFSTEP_RETURN_IF_ERROR(CheckPublishable(parts_.ctx, state.master, settings.learner_dtype));
  if (parts_.client == nullptr) return absl::OkStatus();
  HALFSTEP_RETURN_IF_ERROR(CheckPublishable(parts_.ctx, state.master, settings.rollout_dtype));
  published_.push_back(WeightSet::Create(progress.policy_version, state.master,
                                         settings.rollout_dtype, state.weights.rope_table()));
  parts_.client->Publish(published_.back());
  parts_.metrics->policy_version.Set(static_cast<double>(progress.policy_version));
  // Without a schedule no group needs a set, but a rollout may be about to have the one before.
  const uint64_t needed = settings.max_lag > 0
                              ? std::max<uint64_t>(progress.policy_version, 1) - 1
                              : GeneratingVersion(progress, progress.step + 1, settings.lag);
  std::erase_if(published_, [&](const std::shared_ptr<const WeightSet>& weights) {
    const bool released = weights->manifest().version < needed;
    if (released) released_ = weights;
    return released;
  });
  parts_.client->ReleaseWeightsBelow(needed);
  return absl::OkStatus();
}

bool Trainer::EvaluationIsDue() const {
  const int64_t step = parts_.progress->step;
  if (parts_.eval_prompts == nullptr || parts_.progress->evaluated_step >= step) return false;
  const int64_t every = parts_.settings->evaluate_every;
  return step == 0 || step == parts_.settings->steps || (every > 0 && step % every == 0);
}

absl::Status Trainer::EvaluateIfDue() {
  if (!EvaluationIsDue()) return absl::OkStatus();
  RunProgress& progress = *parts_.progress;
  const absl::Time start = absl::Now();
  std::vector<Trajectory> sampled;
  HALFSTEP_ASSIGN_OR_RETURN(
      EvaluationResult evaluation,
      Evaluate(*parts_.settings, parts_.max_positions, *parts_.eval_prompts,
               {progress.step, progress.policy_version}, parts_.client, &sampled));
  const DeploymentGapOptions options{
      .temperature = parts_.settings->train_step.temperature,
      .fp32 = parts_.settings->fp32,
      .micro_batch_tokens = parts_.settings->train_step.micro_batch_tokens,
      .go_on = [this] { return parts_.control->request() == RunRequest::kNone; }};
  HALFSTEP_ASSIGN_OR_RETURN(
      evaluation.gap, MeasureDeploymentGap(parts_.ctx, parts_.state->weights, sampled, options));
  evaluation.time = absl::Now() - start;
  progress.evaluated_step = progress.step;
  checkpoint_step_ = -1;  // what there may be of this step does not know of the evaluation
  if (progress.step == 0) {
    progress.base_accuracy = evaluation.accuracy;
    progress.base_greedy = evaluation.greedy;
  }
  if (progress.step == parts_.settings->steps) {
    progress.final_accuracy = evaluation.accuracy;
    progress.final_greedy = evaluation.greedy;
    progress.final_accuracy_learner = evaluation.gap->learner_accuracy;
    progress.deployment_gap = evaluation.gap->abs_log_prob_diff;
  }
  AppendMetrics(EvaluationLine(progress.step, evaluation));
  Export(evaluation, parts_.metrics);
  v1::TrainingJobEvent event;
  v1::EvaluationFinished* finished = event.mutable_evaluation_finished();
  finished->set_step(progress.step);
  finished->set_accuracy(evaluation.accuracy);
  finished->set_greedy(evaluation.greedy);
  finished->set_prompts(evaluation.prompts);
  finished->set_samples(evaluation.samples);
  parts_.control->Emit(std::move(event));
  return absl::OkStatus();
}

void Trainer::Checkpoint() {
  const RunProgress& progress = *parts_.progress;
  if (checkpoint_step_ == progress.step) return;
  const absl::Time start = absl::Now();
  CheckpointContents contents;
  contents.state = parts_.state;
  contents.progress = &progress;
  contents.job_json = parts_.job_json;
  contents.model = {parts_.settings->model_directory, parts_.settings->root};
  if (!published_.empty() && parts_.settings->max_lag == 0) {
    contents.older_weights.assign(published_.begin(), published_.end() - 1);
  }
  const absl::Status status = WriteCheckpoint(*parts_.checkpoints, contents);
  parts_.metrics->step_duration["checkpoint"].Observe(absl::ToDoubleSeconds(absl::Now() - start));
  if (!status.ok()) {
    parts_.metrics->checkpoint_failures.Increment();
    EmitNotice("CHECKPOINT_FAILED",
               absl::StrCat("no checkpoint after step ", progress.step, ": ", status.message(),
                            "; training goes on, ",
                            checkpoint_.empty() ? "there is none yet"
                                                : absl::StrCat("the last one is ", checkpoint_)));
    return;
  }
  checkpoint_step_ = progress.step;
  checkpoint_ = parts_.checkpoints->PathOf(progress.step);
  parts_.metrics->last_checkpoint_timestamp.Set(
      absl::ToDoubleSeconds(absl::Now() - absl::UnixEpoch()));
  v1::TrainingJobEvent event;
  event.mutable_checkpoint_written()->set_step(progress.step);
  event.mutable_checkpoint_written()->set_path(checkpoint_);
  parts_.control->Emit(std::move(event));
}

absl::Status Trainer::Finish() {
  Checkpoint();
  const absl::Status written = WriteModel();
  if (ReasonOf(written) != "DISK_FULL") return written;
  return WithReason(absl::Status(written.code(),
                                 absl::StrCat("the trained model is not written: ",
                                              written.message(), "; make room and resume the job")),
                    {ReasonOf(written), {}});
}

absl::Status Trainer::WriteModel() {
  HALFSTEP_ASSIGN_OR_RETURN(
      AtomicDirectoryWriter writer,
      AtomicDirectoryWriter::Create(parts_.folder->path(), RunFolder::kModelName, "trainer"));
  const ModelSource model{parts_.settings->model_directory, parts_.settings->root};
  HALFSTEP_RETURN_IF_ERROR(AddModel(*parts_.state, model, "", &writer));
  return writer.Commit();
}

RunResult Trainer::EndEarly(RunRequest request) {
  RunResult result;
  result.outcome = request == RunRequest::kCancel ? RunOutcome::kCancelled
                   : request == RunRequest::kStop ? RunOutcome::kStopped
                                                  : RunOutcome::kPaused;
  if (request != RunRequest::kCancel) Checkpoint();
  return result;
}

}  // namespace halfstep
