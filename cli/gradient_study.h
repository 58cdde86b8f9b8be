// SPDX-License-Identifier: Apache-2.0
// A gradient study: what each correction makes of the policy gradient of one model, of which a
// rollout engine sampled and the learner computes, against the exact gradient, of which the learner
// would have sampled itself.
//
// Each batch draws prompts and, with the same Gumbel noise, samples them twice: by the rollout's
// engine, whose policy mu its fast profile and precision make a little other than the learner's pi,
// and by the bitwise engine in the learner's precision, whose log-probs are pi's to the last bit.
// The loss is policy_gradient, the mean over responses of the sum over tokens, so that no length
// enters it. The advantage is the reward minus the mean of the group's others (leave_one_out): that
// baseline does not depend on the response, so the gradient of the second samples, unweighed, has
// the exact gradient of the expected reward as its expectation, and that of the first ones has it
// under sequence_is (arXiv 2510.26788), as long as no log-ratio is clamped. group_mean, which
// subtracts the response's own share too, is the same gradient times (n - 1) / n for n samples.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "cli/local_engine.h"
#include "common/reward/verifier.h"
#include "kernels/dtype.h"
#include "learner_server/algorithm/correction.h"
#include "learner_server/algorithm/gradient_bias.h"
#include "learner_server/algorithm/mismatch.h"
#include "learner_server/training/job_inputs.h"

namespace halfstep {

// Precisions of the two sides.
struct GradientCell {
  DType rollout = DType::kFloat16;
  DType learner = DType::kFloat16;
};

struct GradientStudyOptions {
  std::vector<GradientCell> cells;
  std::vector<CorrectionOptions> corrections;
  Profile profile = Profile::kFast;           // of the rollout
  const LocalModel* rollout_model = nullptr;  // samples in place of the learner's model
  int64_t batches = 32;                       // at least 3
  int64_t prompts = 8;                        // of a batch, each another row
  uint32_t samples = 8;                       // to each prompt, at least 2
  int threads = 0;                            // 0: one per core
  // Told what is being done and how many batches of how many are; false ends the study.
  std::function<bool(const std::string& stage, int64_t done, int64_t total)> on_progress;
};

struct CorrectionResult {
  CorrectionOptions correction;
  CorrectionMetrics weights;  // over all tokens of all batches
  std::optional<GradientFigures> gradient;
};

struct GradientResult {
  GradientCell cell;
  int64_t responses = 0;   // of the rollout
  double score = 0;        // their mean
  double equal_share = 0;  // responses that both engines drew alike
  MismatchMetrics mismatch;
  double exact_abs_max = 0;  // largest |d| of the learner's own samples: 0
  Interval exact_norm;       // ||g*||
  std::optional<GradientFigures> exact;
  std::vector<CorrectionResult> corrections;  // in the order of the options
};

// One result for each cell, a function of model, prompts, settings and options alone, but for
// `threads`. Of `settings`: sampling (temperature above 0) and seed; `inputs` are those of
// LoadEvaluationInputs. INVALID_ARGUMENT with reason TOO_FEW_PROMPTS, UNEQUAL_PRECISIONS (profile
// bitwise) or ROLLOUT_MODEL_MISMATCH; RESOURCE_EXHAUSTED (OUT_OF_MEMORY) before the work where the
// gradients would not fit into memory; FAILED_PRECONDITION with reason UNSCORABLE_RESPONSE, naming
// its prompt, or NO_GRADIENT where every group has equal scores; CANCELLED when on_progress says
// so; the errors of the engine and of TrainStep.
absl::StatusOr<std::vector<GradientResult>> StudyGradients(
    const JobSettings& settings, const JobInputs& inputs,
    const std::shared_ptr<const Verifier>& verifier, const GradientStudyOptions& options);

}  // namespace halfstep
