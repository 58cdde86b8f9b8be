// SPDX-License-Identifier: Apache-2.0
// Prompts that a model gets right sometimes, but not always: on such a set an algorithm that works
// reaches an accuracy of nearly 1 (the sanity test of arXiv 2510.26788).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "cli/local_evaluation.h"

namespace halfstep {

// Both ends belong to it.
struct AccuracyRange {
  double low = 0.2;
  double high = 0.8;
};

// "0.2,0.8". INVALID_ARGUMENT (reason BAD_ACCURACY_RANGE) unless 0 <= low <= high <= 1.
absl::StatusOr<AccuracyRange> ParseAccuracyRange(const std::string& text);

// Tenths, the last with its upper end.
inline constexpr size_t kAccuracyBins = 10;

struct PerfectiblePrompts {
  std::vector<int64_t> kept;  // lines of the file, ascending
  int64_t below = 0;          // prompts under the range
  int64_t above = 0;
  std::array<int64_t, kAccuracyBins> histogram = {};  // of every prompt that was sampled
  double mean_accuracy = 0;                           // over those
  std::map<std::string, int64_t> unscored;            // responses, by outcome
  std::string unscored_example;                       // why one of them has no score
  int64_t truncated = 0;                              // responses at their longest length
  int64_t tokens = 0;

  int64_t sampled() const { return static_cast<int64_t>(kept.size()) + below + above; }
};

struct PerfectibleOptions {
  AccuracyRange range;
  int64_t limit = 0;  // end with this many kept; 0: take every prompt
  int threads = 0;    // of the engine; 0: one per core
  SamplingProgress on_progress;
};

// Asks each of inputs.eval in the order of the file settings.evaluation_samples times. Accuracy is
// the mean score, where a response without one counts as 0. The result depends on model, prompts
// and settings.seed alone, but not on threads and limit for the prompts that are reached.
// FAILED_PRECONDITION (reason NO_PROMPT_KEPT) when no accuracy lies in the range; the errors of
// LocalSampler.
absl::StatusOr<PerfectiblePrompts> FindPerfectiblePrompts(const JobSettings& settings,
                                                          const JobInputs& inputs,
                                                          std::shared_ptr<const Verifier> verifier,
                                                          const PerfectibleOptions& options);

// These lines of a file, numbered from 1, byte for byte, each with its newline. The errors of
// opening it; INVALID_ARGUMENT (reason DATASET_CHANGED) when one of them is not there.
absl::StatusOr<std::string> LinesOfFile(const std::string& path, const std::vector<int64_t>& lines);

}  // namespace halfstep
