// SPDX-License-Identifier: Apache-2.0
// Options of the verbs that run an engine in this process.
#pragma once

#include <optional>
#include <string>

#include "kernels/dtype.h"

namespace CLI {
class App;
}

namespace halfstep {

struct EngineFlags {
  std::optional<std::string> precision;  // fp16, bf16 or fp32
  int threads = 0;                       // 0: one per core

  DType dtype_or(DType usual) const;
};

// --precision and --threads. `flags` must outlive parsing.
void AddEngineFlags(CLI::App& verb, EngineFlags& flags);

}  // namespace halfstep
