// SPDX-License-Identifier: Apache-2.0
// Where two runs part, in causal order: their jobs, then whatever differs at the earliest step.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <ostream>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "cli/runs/checkpoint_diff.h"
#include "cli/runs/metric_diff.h"
#include "cli/runs/sample_diff.h"

namespace halfstep {

struct RunDiff {
  std::string run_a, run_b;
  std::vector<ValueDifference> job;
  SampleComparison samples;
  MetricComparison metrics;
  CheckpointComparison checkpoints;

  // Everything that both runs have is equal.
  bool equal() const;
  // What could not be compared, a sentence each.
  std::vector<std::string> Notes() const;
};

// Errors are those of ReadRun, DiffSamples and DiffCheckpoints.
absl::StatusOr<RunDiff> DiffRuns(const std::string& run_a, const std::string& run_b);

// Both are in causal order: at one step a sample comes before a metric, and that before a tensor.
void PrintDiff(const RunDiff& diff, std::ostream& out);
nlohmann::ordered_json DiffToJson(const RunDiff& diff);

}  // namespace halfstep
