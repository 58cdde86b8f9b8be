// SPDX-License-Identifier: Apache-2.0
// What a job takes of the learner's memory, known before anything is allocated.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"

namespace halfstep {

struct JobInputs;
struct JobSettings;

struct MemoryPlan {
  size_t optimizer = 0;  // FP32 master weights and both moments
  size_t gradients = 0;
  size_t weights = 0;      // in the learner's precision, plain and packed
  size_t reference = 0;    // the reference policy's weights, likewise
  size_t published = 0;    // sets of weights that rollouts may still fetch
  size_t activations = 0;  // of the largest micro-batch, with the backward's temporaries
  // Of responses that are scored once more, beside those: by an evaluation, for the reference
  // policy or the old log-probs.
  size_t scoring = 0;
  int64_t micro_batch_tokens = 0;

  size_t total() const {
    return optimizer + gradients + weights + reference + published + activations + scoring;
  }
};

// Exact for what lives as long as the job; for a micro-batch the most that can occur, its
// temporaries estimated.
MemoryPlan PlanMemory(const JobSettings& settings, const JobInputs& inputs);

// RESOURCE_EXHAUSTED, reason OUT_OF_MEMORY, with every figure and the way out, when the plan needs
// more than `free_bytes`; 0 stands for "not known" and passes.
absl::Status CheckMemory(const MemoryPlan& plan, size_t free_bytes);

}  // namespace halfstep
