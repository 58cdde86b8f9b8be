// SPDX-License-Identifier: Apache-2.0
// Random parameters for training from scratch.
#pragma once

#include <cstdint>

#include "common/model/model_config.h"
#include "common/model/parameter_buffer.h"

namespace halfstep {

// Matrices: normal with mean 0 and standard deviation config.initializer_range; norms 1; biases 0.
// Each value is a function of (seed, parameter, element) alone, the same bits on every machine.
// `parameters` is an FP32 buffer over the layout of `config`, in CPU memory.
void InitializeParameters(const ModelConfig& config, uint64_t seed, ParameterBuffer* parameters);

}  // namespace halfstep
