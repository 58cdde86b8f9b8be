// SPDX-License-Identifier: Apache-2.0
// Single choices and numbers in place of a preset's, by their names in a job.
#pragma once

#include <map>
#include <span>
#include <string>
#include <vector>

#include "common/base/error_reason.h"
#include "learner_server/algorithm/presets.h"

namespace halfstep {

struct AlgorithmOverrides {
  // advantage, objective, correction, aggregation, old_log_probs, zero_variance, kl_estimator,
  // kl_place; the values are what Name gives.
  std::map<std::string, std::string> choices = {};
  // docs/algorithms.md.
  std::map<std::string, double> parameters = {};
  std::vector<double> clip = {};  // [low, high] of the objective, or empty
  bool reference = false;         // a reference policy is named
};

// Every correction, in the order of the documentation.
std::span<const CorrectionKind> AllCorrections();

// Puts `overrides` into the row `*algorithm`. Another objective or correction comes with its own
// default numbers. Returns what cannot be done, by the field of the job: unknown names and values,
// with those accepted, numbers that must be whole and are not, and whatever the resulting row would
// not read. Whether that row can be trained is the matter of ValidateAlgorithm.
std::vector<FieldViolation> ApplyOverrides(const AlgorithmOverrides& overrides,
                                           Algorithm* algorithm);

}  // namespace halfstep
