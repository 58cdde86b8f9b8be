// SPDX-License-Identifier: Apache-2.0
#include "learner_server/training/job_algorithm.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/error_reason.h"
#include "common/base/status_macros.h"
#include "common/config/enum_names.h"
#include "halfstep/v1/training_job.pb.h"
#include "kernels/check.h"
#include "learner_server/algorithm/override.h"
#include "learner_server/algorithm/validate_algorithm.h"

namespace halfstep {
namespace {

AlgorithmOverrides OverridesOf(const v1::AlgorithmSpec& spec) {
  return {.choices = {spec.choices().begin(), spec.choices().end()},
          .parameters = {spec.parameters().begin(), spec.parameters().end()},
          .clip = {spec.clip().begin(), spec.clip().end()},
          .reference = !spec.reference().empty()};
}

absl::Status InvalidSpec(const std::vector<FieldViolation>& violations) {
  const std::string message =
      absl::StrJoin(violations, "\n", [](std::string* out, const FieldViolation& violation) {
        out->append(violation.description);
      });
  return WithFieldViolations(Error(absl::StatusCode::kInvalidArgument, "INVALID_SPEC", message),
                             violations);
}

AlgorithmInputs InputsOf(const v1::TrainingJobSpec& spec, const Algorithm& algorithm) {
  const bool runs_ahead = spec.batch().lag() > 0 || spec.batch().max_lag() > 0;
  return {
      .samples_per_prompt = spec.batch().samples(),
      .behaviour_log_probs = true,
      // With free generation groups come as they are finished, and no greedy one with them.
      .greedy_response = spec.batch().max_lag() == 0,
      // By default the job's own model.
      .reference_log_probs = algorithm.regularizers.kl.coefficient > 0,
      .behaviour_is_old = spec.profile() == v1::PROFILE_BITWISE && !runs_ahead,
      .runs_ahead = runs_ahead,
  };
}

// The log that a free run is replayed from holds what was generated, and no reference policy.
absl::Status CheckReplayable(const v1::TrainingJobSpec& spec, const Algorithm& algorithm) {
  if (spec.batch().max_lag() == 0 || algorithm.regularizers.kl.coefficient == 0) {
    return absl::OkStatus();
  }
  return Error(absl::StatusCode::kInvalidArgument, "KL_NEEDS_SCHEDULED_LAG",
               "batch.max_lag is given, and KL to a reference policy needs a scheduled lag; give "
               "batch.lag instead, or leave parameters.kl out");
}

}  // namespace

absl::StatusOr<Algorithm> ResolveAlgorithm(const v1::TrainingJobSpec& spec) {
  if (spec.objective() == v1::OBJECTIVE_SFT) return SupervisedAlgorithm();
  const Algorithm* preset = FindAlgorithmPreset(YamlName(spec.algorithm().preset()));
  HALFSTEP_CHECK(preset != nullptr);
  Algorithm algorithm = *preset;
  const std::vector<FieldViolation> violations =
      ApplyOverrides(OverridesOf(spec.algorithm()), &algorithm);
  if (!violations.empty()) return InvalidSpec(violations);
  OverlongOptions& overlong = algorithm.regularizers.overlong;
  if (overlong.enabled) overlong = ResolveOverlong(overlong, spec.sampling().max_new_tokens());
  HALFSTEP_RETURN_IF_ERROR(CheckReplayable(spec, algorithm));
  HALFSTEP_RETURN_IF_ERROR(ValidateAlgorithm(algorithm, InputsOf(spec, algorithm)));
  return algorithm;
}

}  // namespace halfstep
