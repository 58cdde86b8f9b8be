// SPDX-License-Identifier: Apache-2.0
// Where two runs' jobs and metrics differ. Pure functions.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cli/runs/run_record.h"

namespace halfstep {

// A value by its name; nothing on the side that has none.
struct ValueDifference {
  std::string name;
  std::optional<std::string> a, b;
};

// By path, in the order of the schema. output_dir, which changes nothing, is left out.
std::vector<ValueDifference> DiffJobs(const nlohmann::ordered_json& a,
                                      const nlohmann::ordered_json& b);

struct MetricDifference {
  int64_t step = 0;
  bool in_evaluation = false;  // the one after this step, and not the step
  // All that differ there, causes before effects: samples, loss, gradient, optimizer.
  std::vector<ValueDifference> metrics;
};

struct MetricComparison {
  int64_t steps = 0;                      // lines of steps that both have
  std::optional<MetricDifference> first;  // nothing: all equal
  std::vector<std::string> only_in_a;     // metrics that the other run never logs: not compared
  std::vector<std::string> only_in_b;
};

// Values differ when their bits do. Durations and what follows from them are not compared. When one
// run has more steps, the first of them is a difference, named "step".
MetricComparison DiffMetrics(const RunRecord& a, const RunRecord& b);

}  // namespace halfstep
