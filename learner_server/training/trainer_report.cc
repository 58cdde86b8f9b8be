// SPDX-License-Identifier: Apache-2.0
// What a trainer says of its steps: metrics, samples, events, alarms and their causes.
#include <new>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "common/base/error_reason.h"
#include "common/base/logging.h"
#include "common/metrics/learner_metrics.h"
#include "halfstep/v1/training_job.pb.h"
#include "learner_server/training/mismatch_diagnosis.h"
#include "learner_server/training/trainer.h"

namespace halfstep {
namespace {

// CONSTANT_REWARD for constant_reward.
std::string AlarmReason(HealthAlarm alarm) { return absl::AsciiStrToUpper(Name(alarm)); }

}  // namespace

void Trainer::DiagnoseIfSuspect(const TrainBatch& batch, const StepRecord& record) {
  // Nothing is published where nothing is generated: a replay.
  if (published_.empty() || record.mismatch.tokens_compared == 0 ||
      !health_.IsMismatchJump(HealthFiguresOf(record, /*supervised=*/false))) {
    return;
  }
  const TrainStepOptions& options = parts_.settings->train_step;
  MismatchSuspicion suspicion{.like = &parts_.state->weights, .current = published_.back()};
  suspicion.older.assign(published_.begin(), published_.end() - 1);
  if (released_ != nullptr) suspicion.older.push_back(released_);
  suspicion.score.temperature = options.temperature;
  suspicion.score.fp32 = options.fp32;
  suspicion.score.micro_batch_tokens = options.micro_batch_tokens;
  suspicion.score.go_on = [this](int64_t) {
    return parts_.control->request() == RunRequest::kNone;
  };
  diagnosis_.clear();
  try {
    const absl::StatusOr<std::vector<RolloutMismatch>> rollouts =
        DiagnoseMismatch(parts_.ctx, suspicion, batch.updates.front());
    if (rollouts.ok()) diagnosis_ = DescribeMismatch(*rollouts);
    if (!rollouts.ok() && !absl::IsCancelled(rollouts.status())) {
      diagnosis_ = absl::StrCat("the cause was not found: ", rollouts.status().message());
    }
  } catch (const std::bad_alloc&) {
    diagnosis_ = "there is not enough memory to look for the cause";
  }
}

void Trainer::EmitNotice(const std::string& reason, const std::string& message) {
  LogError(message, {{"reason", reason}});
  v1::TrainingJobEvent event;
  event.mutable_notice()->set_reason(reason);
  event.mutable_notice()->set_message(message);
  parts_.control->Emit(std::move(event));
}

void Trainer::AppendMetrics(const std::string& line) {
  const absl::Status status = parts_.folder->AppendMetrics(line);
  if (status.ok() || metrics_failed_) return;
  metrics_failed_ = true;
  EmitNotice("METRICS_FAILED",
             absl::StrCat("lines of metrics.jsonl are missing: ", status.message()));
}

void Trainer::AppendSamples(int64_t step, const std::vector<SampleRecord>& samples) {
  std::vector<std::string> lines;
  lines.reserve(samples.size());
  for (const SampleRecord& sample : samples) {
    lines.push_back(SampleLine(step, sample, *parts_.tokenizer));
  }
  const absl::Status status = parts_.folder->AppendSamples(lines);
  if (status.ok() || samples_failed_) return;
  samples_failed_ = true;
  EmitNotice("SAMPLES_FAILED",
             absl::StrCat("lines of samples.jsonl are missing: ", status.message()));
}

void Trainer::Report(const StepRecord& record) {
  AppendMetrics(MetricsLine(record));
  Export(record, parts_.metrics);
  CountSamples(record.batch);
  parts_.control->SetProgress(record.step, record.policy_version);
  v1::TrainingJobEvent event;
  v1::StepFinished* finished = event.mutable_step_finished();
  finished->set_step(record.step);
  finished->set_steps(parts_.settings->steps);
  const std::map<std::string, double> metrics = MetricsOf(record);
  finished->mutable_metrics()->insert(metrics.begin(), metrics.end());
  parts_.control->Emit(std::move(event));
}

absl::Status Trainer::WatchHealth(const StepRecord& record) {
  const JobSettings& settings = *parts_.settings;
  std::vector<HealthEvent> events = health_.Observe(HealthFiguresOf(record, settings.supervised));
  for (HealthEvent& event : events) {
    if (event.alarm != HealthAlarm::kMismatchJump || !event.raised || diagnosis_.empty()) continue;
    absl::StrAppend(&event.sentence, "; ", diagnosis_);
  }
  ExportAlarms();
  const HealthEvent* pauses = nullptr;
  const HealthEvent* fails = nullptr;
  for (const HealthEvent& event : events) {
    EmitNotice(event.raised ? AlarmReason(event.alarm) : "ALARM_CLEARED", event.sentence);
    const auto action = settings.alarm_actions.find(Name(event.alarm));
    if (!event.raised || action == settings.alarm_actions.end()) continue;
    if (action->second == AlarmAction::kPause && pauses == nullptr) pauses = &event;
    if (action->second == AlarmAction::kFail && fails == nullptr) fails = &event;
  }
  if (fails != nullptr) {
    return Error(absl::StatusCode::kFailedPrecondition, AlarmReason(fails->alarm),
                 absl::StrCat(fails->sentence, "; the job's health.", Name(fails->alarm),
                              " is fail, its last checkpoint stays"));
  }
  if (pauses == nullptr) return absl::OkStatus();
  alarm_pauses_ = true;
  return Error(absl::StatusCode::kFailedPrecondition, AlarmReason(pauses->alarm),
               absl::StrCat(pauses->sentence, "; the job's health.", Name(pauses->alarm),
                            " is pause: resume the job to go on in spite of it, or cancel it"));
}

void Trainer::CountSamples(const BatchStatistics& batch) {
  LearnerMetrics& metrics = *parts_.metrics;
  metrics.samples_trained.Increment(static_cast<double>(batch.samples_trained));
  for (const auto& [reason, count] : batch.samples_dropped) {
    metrics.samples_dropped[reason].Increment(static_cast<double>(count));
  }
  if (parts_.client == nullptr) {  // rows of the data: they arrive when they are trained on
    metrics.samples.Increment(static_cast<double>(batch.samples));
    return;
  }
  const BufferCounters counters = parts_.client->counters();
  metrics.samples.Increment(
      static_cast<double>(counters.samples_admitted - exported_counters_.samples_admitted));
  metrics.tokens["generated"].Increment(
      static_cast<double>(counters.tokens_admitted - exported_counters_.tokens_admitted));
  samples_unsettled_ += counters.samples_admitted - exported_counters_.samples_admitted;
  samples_unsettled_ -= batch.samples + batch.samples_stale;
  metrics.samples_buffered.Set(static_cast<double>(samples_unsettled_));
  exported_counters_ = counters;
}

void Trainer::CountAbandonedSamples() {
  if (parts_.client == nullptr) return;
  CountSamples({});
  parts_.metrics->samples_dropped["abandoned"].Increment(static_cast<double>(samples_unsettled_));
  parts_.metrics->samples_buffered.Set(0);
}

void Trainer::ExportAlarms() {
  for (int i = 0; i < kHealthAlarmCount; ++i) {
    const auto alarm = static_cast<HealthAlarm>(i);
    parts_.metrics->health_alarm[Name(alarm)].Set(health_.raised(alarm) ? 1 : 0);
  }
}

}  // namespace halfstep
