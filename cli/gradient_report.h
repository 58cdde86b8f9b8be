// SPDX-License-Identifier: Apache-2.0
// A gradient study for people (a table for each cell) and for programs.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <ostream>
#include <string>
#include <vector>

#include "cli/gradient_study.h"

namespace halfstep {

struct GradientReport {
  std::string model;
  std::string rollout_model;  // empty: the same
  std::string data;
  int64_t skipped = 0;               // its rows that are too long for the model
  Profile profile = Profile::kFast;  // of the rollout
  Fp32Parts fp32;                    // of both engines
  float temperature = 1;
  uint64_t seed = 1;
  int64_t batches = 0;
  int64_t prompts = 0;
  int64_t samples = 0;
  std::vector<GradientResult> results;
};

// A bias that the sample cannot tell from 0 is printed as the bound that it can tell it from.
void PrintGradients(const GradientReport& report, std::ostream& out);

// Every figure as {value, low, high}; docs/numerics.md lists the keys.
nlohmann::ordered_json GradientsToJson(const GradientReport& report);

}  // namespace halfstep
