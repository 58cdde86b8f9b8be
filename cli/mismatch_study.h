// SPDX-License-Identifier: Apache-2.0
// A mismatch study: responses that the rollout's engine, or another program's, sampled, scored
// again by the learner's engine in one or more precisions.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "cli/generator.h"
#include "cli/local_engine.h"
#include "kernels/dtype.h"
#include "kernels/exec_context.h"
#include "learner_server/algorithm/mismatch_bootstrap.h"
#include "learner_server/algorithm/mismatch_curves.h"
#include "learner_server/data/batcher.h"

namespace halfstep {

// Precisions of the two sides; `rollout` is empty for responses of another program.
struct MismatchCell {
  std::optional<DType> rollout;
  DType learner = DType::kFloat16;
  friend bool operator==(const MismatchCell&, const MismatchCell&) = default;
};

// All nine, rollout by rollout.
std::vector<MismatchCell> PrecisionMatrix();

struct MismatchStudyOptions {
  std::vector<MismatchCell> cells;
  Profile profile = Profile::kFast;
  Fp32Parts fp32;   // of both engines
  int threads = 0;  // 0: one per core
  // Told what is being done and how much of everything is; false ends the study.
  std::function<bool(const std::string& stage, int64_t done, int64_t total)> on_progress;
};

// The log-probs of each response of a set.
using ResponseLogProbs = std::vector<std::vector<float>>;

// What one rollout precision sampled, with the scores it got.
struct SampledSet {
  std::optional<DType> rollout;
  std::vector<TrainSequence> sequences;  // with behaviour log-probs
  ResponseLogProbs rollout_fp32;         // by the rollout's engine in FP32; empty for fp32 itself
  std::map<DType, ResponseLogProbs> learner;  // fp32 always
};

// Every rollout precision of `options` samples for itself, with the draws of the same seeds; then
// every learner precision scores its responses. Set i holds the responses of the i-th rollout
// precision, in the order of prompts and samples. INVALID_ARGUMENT (reason UNEQUAL_PRECISIONS) for
// profile bitwise with unequal precisions, before anything is loaded; CANCELLED when on_progress
// says so; the errors of loading weights, of LocalGenerator, TokenScorer and ScoreResponses.
absl::StatusOr<std::vector<SampledSet>> SampleAndScore(const LocalModel& model,
                                                       const GenerateOrder& order,
                                                       const MismatchStudyOptions& options);

// The same for the responses of another program, which sampled at `temperature`; the cells have no
// rollout precision.
absl::StatusOr<std::vector<SampledSet>> ScoreExternal(const LocalModel& model,
                                                      std::vector<TrainSequence> sequences,
                                                      float temperature,
                                                      const MismatchStudyOptions& options);

// What is known about one cell.
struct MismatchResult {
  MismatchCell cell;
  MismatchEstimate mismatch;                    // learner against rollout
  std::optional<MismatchEstimate> rollout_own;  // rollout against its engine in FP32
  std::optional<MismatchEstimate> learner_own;  // learner against its engine in FP32
  std::vector<MismatchMetrics> by_seed;         // of `mismatch`
  std::vector<DensityBin> density;
  std::vector<double> quantiles;  // of |d| at kQuantileShares
  std::vector<DriftPoint> drift;
};

inline constexpr double kQuantileShares[] = {0.5, 0.9, 0.99, 0.999, 1};

// One result for each cell, in their order. The sequences of each set are `seeds` parts of equal
// size. A side that is FP32 has no distance to itself.
std::vector<MismatchResult> AnalyzeMismatch(const std::vector<SampledSet>& sets,
                                            const std::vector<MismatchCell>& cells, int64_t seeds,
                                            const BootstrapOptions& bootstrap);

}  // namespace halfstep
