// SPDX-License-Identifier: Apache-2.0
// The first tensor and element in which two runs' checkpoints differ.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "cli/runs/metric_diff.h"

namespace halfstep {

struct TensorDifference {
  std::string file;                // within the checkpoint
  std::string tensor;              // "master", "first_moment", "second_moment", or a weight's name
  std::string parameter;           // of those flat buffers: "layers.3.attention.qkv"; else empty
  std::vector<int64_t> element;    // indices within the parameter or tensor, from 0
  std::string a, b;                // values with their bits; dtype and shape where those differ
  int64_t differing_elements = 0;  // of the file
  int64_t elements = 0;
  int64_t differing_tensors = 0;  // parameters of each flat buffer count on their own
  double largest = 0;             // of abs(a - b) over the file; infinite where only one is finite
  std::string largest_in;
};

struct CheckpointDifference {
  int64_t step = 0;
  std::vector<ValueDifference> trainer;    // of trainer.json, facts of the run left out
  std::optional<TensorDifference> tensor;  // of the first file that differs: state, older weights,
                                           // model
};

struct CheckpointComparison {
  std::vector<int64_t> steps;  // compared: those that both have, up to the first difference
  std::optional<CheckpointDifference> first;
  std::vector<std::string> notes;  // checkpoints that differ and do not match their own manifest
};

// Reads the tensors piece by piece. DATA_LOSS and INVALID_ARGUMENT, naming the file, for one that
// is no checkpoint's.
absl::StatusOr<CheckpointComparison> DiffCheckpoints(const std::string& run_a,
                                                     const std::string& run_b);

}  // namespace halfstep
