// SPDX-License-Identifier: Apache-2.0
// A mismatch study for people (tables, a page with charts) and for programs.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <ostream>
#include <string>
#include <vector>

#include "cli/mismatch_study.h"

namespace halfstep {

struct MismatchReport {
  std::string model;
  std::string source;  // the file of prompts, or of another program's responses
  Profile profile = Profile::kFast;
  Fp32Parts fp32;  // of both engines
  float temperature = 1;
  uint32_t samples = 1;  // of each prompt; 1 for another program's
  uint64_t seed = 1;
  int64_t seeds = 1;
  int64_t resamples = 0;
  std::vector<MismatchResult> results;
};

// "fast" or "bitwise".
const char* Name(Profile profile);

// A table for each cell, and one over all cells where there are several.
void PrintMismatch(const MismatchReport& report, std::ostream& out);

enum class WithCurves { kNo, kYes };

// Every figure as {value, low, high}, with `ratio` to the cell BF16/BF16 where there is one;
// docs/numerics.md lists the keys. The curves are what the charts show.
nlohmann::ordered_json MismatchToJson(const MismatchReport& report, WithCurves curves);

// The same as one HTML file.
std::string MismatchPage(const MismatchReport& report);

}  // namespace halfstep
