// SPDX-License-Identifier: Apache-2.0
// RunProgress: what a run has done so far, beside the weights; part of every checkpoint.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/base/digest.h"
#include "learner_server/training/health_monitor.h"

namespace halfstep::v1 {
class RunSummary;
}  // namespace halfstep::v1

namespace halfstep {

struct RunProgress {
  int64_t step = 0;             // batches finished
  uint64_t policy_version = 0;  // last published
  uint64_t cursor = 0;          // rows of the data order consumed
  // [s]: the version in force after batch s; [0] is version 0.
  std::vector<uint64_t> version_after{0};

  // Conservation law: admitted = trained + dropped + what is buffered for later batches.
  int64_t samples_admitted = 0;
  int64_t samples_trained = 0;
  std::map<std::string, int64_t> samples_dropped;  // by reason
  int64_t tokens_generated = 0;                    // of admitted samples
  int64_t tokens_trained = 0;
  int64_t tokens_compared = 0;
  double max_abs_logprob_diff = 0;
  // With batch.max_lag: ordinals of groups that were passed over by later ones and are yet to be
  // trained, ascending (open_groups.h).
  std::vector<uint64_t> open_groups;
  HealthState health;  // follows from the steps' figures, so it is in no digest

  // Facts about this run, no part of its state: they differ between equal runs.
  std::map<std::string, int64_t> samples_by_rollout;
  int64_t groups_reassigned = 0;
  double train_seconds = 0;
  int64_t evaluated_step = -1;  // after which the last evaluation was; -1: there was none
  std::optional<double> base_accuracy, base_greedy, final_accuracy, final_greedy;
  std::optional<double> final_accuracy_learner, deployment_gap;  // v1::RunSummary

  friend bool operator==(const RunProgress&, const RunProgress&) = default;
};

std::string ToJson(const RunProgress& progress);
// INVALID_ARGUMENT for text that ToJson did not write.
absl::StatusOr<RunProgress> RunProgressFromJson(const std::string& json);

// Adds what is state to a digest; facts that differ between equal runs stay out.
void AddToDigest(const RunProgress& progress, Digester* digester);

// Fills every field that follows from the progress.
void FillSummary(const RunProgress& progress, v1::RunSummary* summary);

}  // namespace halfstep
