// SPDX-License-Identifier: Apache-2.0
// Options of the verbs that run an engine in this process.
#pragma once

#include <optional>
#include <string>

#include "common/model/fp32_parts.h"
#include "kernels/dtype.h"

namespace CLI {
class App;
}

namespace halfstep {

struct EngineFlags {
  std::optional<std::string> precision;  // fp16, bf16 or fp32
  int threads = 0;                       // 0: one per core
  Fp32Parts fp32;

  bool any() const { return precision || threads > 0 || fp32 != Fp32Parts(); }
  DType dtype_or(DType usual) const;
};

// What people are told about the use of any().
inline constexpr char kEngineFlagNames[] = "--precision, --residual, --head and --threads";

// --precision, --residual, --head and --threads. `flags` must outlive parsing.
void AddEngineFlags(CLI::App& verb, EngineFlags& flags);

// --residual and --head, which can be fp32. `parts` must outlive parsing.
void AddFp32Flags(CLI::App& verb, Fp32Parts& parts);

}  // namespace halfstep
