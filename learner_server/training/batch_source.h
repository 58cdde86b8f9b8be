// SPDX-License-Identifier: Apache-2.0
// Where batches come from: rollout servers, or supervised rows.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "learner_server/data/batcher.h"
#include "learner_server/training/run_progress.h"
#include "learner_server/training/sample_log.h"

namespace halfstep {

// Figures of one batch for metrics and progress; zeros where a source has no such thing.
struct BatchStatistics {
  int64_t samples = 0;  // in the batch, dropped ones included
  int64_t samples_trained = 0;
  int64_t tokens_generated = 0;                    // of all of them
  std::map<std::string, int64_t> samples_dropped;  // by reason
  std::map<std::string, int64_t> samples_by_rollout;
  std::map<std::string, int64_t> reward_outcomes;
  std::vector<int64_t> lengths;  // response tokens of each sample
  int64_t truncated = 0;         // ended by the length limit
  // Beside them, with batch.max_lag: dropped whole groups since the batch before, in no other
  // figure but tokens_generated and samples_dropped.
  int64_t samples_stale = 0;
  double reward_mean = 0;
  double reward_std = 0;
  int64_t groups = 0;
  int64_t zero_std_groups = 0;  // all scores equal
  int64_t groups_dropped = 0;   // left out, or replaced by further prompts, because they are
};

struct TrainBatch {
  std::vector<std::vector<TrainSequence>> updates;  // one list for each optimizer step
  int64_t rows_consumed = 0;                        // of the data order
  std::vector<uint64_t> open_groups;                // after it; see RunProgress
  // The policy in force generated every token, so that its log-probs are comparable. The trainer
  // fills it in.
  bool on_policy = false;
  BatchStatistics statistics;
  // Every response in canonical order, where the job saves its samples.
  std::vector<SampleRecord> samples;
  absl::Duration wait_time;       // for samples
  absl::Duration score_time;      // for scores, once all samples were there
  absl::Duration reference_time;  // for the log-probs of the reference policy
};

// One trainer thread.
class BatchSource {
 public:
  virtual ~BatchSource() = default;
  // The batch of `step` (from 1), which follows progress.step. May block; a pause or stop of the
  // run ends the wait with CANCELLED.
  virtual absl::StatusOr<TrainBatch> Next(int64_t step, const RunProgress& progress) = 0;
};

}  // namespace halfstep
