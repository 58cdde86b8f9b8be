// SPDX-License-Identifier: Apache-2.0
// The HTML page of one or more runs: curves over each other, where the time went, some responses
// with their lineage, and the jobs. One file that loads nothing and runs no script.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "cli/report/sample_excerpt.h"
#include "cli/runs/run_record.h"

namespace halfstep {

struct ReportRun {
  RunRecord record;
  std::optional<SampleExcerpt> samples;
};

// A longer curve is drawn as this many means with a band from least to largest.
inline constexpr size_t kMaxCurvePoints = 300;

// At least one run. The same runs give the same text.
std::string ReportPage(const std::vector<ReportRun>& runs);

// Whether a file that begins so (its first 512 bytes are enough) is such a page.
bool IsReportPage(const std::string& beginning);

}  // namespace halfstep
