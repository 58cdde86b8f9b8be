// SPDX-License-Identifier: Apache-2.0
// Curves of one metric as an SVG file of its own, for documents.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "cli/report/svg_chart.h"
#include "cli/runs/run_record.h"

namespace halfstep {

struct CurveFileOptions {
  std::string metric;  // a key of metrics.jsonl
  AxisScale scale = AxisScale::kLinear;
  // Of a curve at most, at least 1; each is the mean of equally many neighbouring steps.
  size_t points = 300;
  // Runs whose jobs differ by the seed alone are one curve: the mean of their points, in a band
  // from the least run to the largest. It is called by what their names have in common.
  bool merge_seeds = false;
};

// The curves of `runs` with a legend of their folders' names. "" where no run has the metric. Pure.
std::string CurveFileSvg(const std::vector<RunRecord>& runs, const CurveFileOptions& options);

}  // namespace halfstep
