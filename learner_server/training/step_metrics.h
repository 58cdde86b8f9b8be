// SPDX-License-Identifier: Apache-2.0
// The figures of one step: a line of metrics.jsonl, an event, and Prometheus metrics.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "learner_server/algorithm/mismatch.h"
#include "learner_server/training/batch_source.h"
#include "learner_server/training/evaluation.h"
#include "learner_server/training/token_lag.h"
#include "learner_server/training/train_step.h"

namespace halfstep {

struct LearnerMetrics;

// What one batch came to.
struct StepRecord {
  int64_t step = 0;
  uint64_t policy_version = 0;  // in force after it
  BatchStatistics batch;
  std::vector<OptimizerStepReport> updates;
  MismatchMetrics mismatch;
  std::optional<TokenLag> lag;   // with batch.max_lag
  std::string master_digest;     // of the FP32 master weights and Adam's moments after it
  float loss_scale = 1;          // in force after it
  int64_t skipped_steps = 0;     // of the run
  int64_t saturated_stores = 0;  // of this step
  int64_t tokens_rescored = 0;   // by a second forward, for the old log-probs
  absl::Duration wait_time;
  absl::Duration score_time;
  absl::Duration rescore_time;
  absl::Duration reference_time;
  absl::Duration publish_time;
  absl::Duration total_time;

  int64_t tokens_trained() const;
  int64_t updates_applied() const;
};

// By the names of metrics.jsonl (docs/run_folder.md). Durations in seconds.
std::map<std::string, double> MetricsOf(const StepRecord& record);

// One line of metrics.jsonl, without the newline: the metrics, the digests of gradient and master,
// and, when a step was skipped, the first parameter with a non-finite gradient and where it began.
// JSON has no NaN and no infinity: both are null.
std::string MetricsLine(const StepRecord& record);
// The line of an evaluation after `step`; 0: before the first.
std::string EvaluationLine(int64_t step, const EvaluationResult& evaluation);

// What a run begins with. The gauges then say nothing of the run before.
struct RunStart {
  int64_t step = 0;                // finished by earlier attempts
  uint64_t published_version = 0;  // 0 when nothing is published
  int64_t lag = 0;
  Profile profile = Profile::kBitwise;
};

void Export(const RunStart& start, LearnerMetrics* metrics);
// The published version is not among it: it is in force before the step is over.
void Export(const StepRecord& record, LearnerMetrics* metrics);
void Export(const EvaluationResult& evaluation, LearnerMetrics* metrics);

}  // namespace halfstep
