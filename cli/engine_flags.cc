// SPDX-License-Identifier: Apache-2.0
#include "cli/engine_flags.h"

#include <CLI/CLI.hpp>

namespace halfstep {

DType EngineFlags::dtype_or(DType usual) const {
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16, DType::kFloat32}) {
    if (precision == Name(dtype)) return dtype;
  }
  return usual;
}

void AddEngineFlags(CLI::App& verb, EngineFlags& flags) {
  verb.add_option("--precision", flags.precision, "Of weights and activations (default: fp16)")
      ->check(CLI::IsMember({"fp16", "bf16", "fp32"}))
      ->option_text("fp16|bf16|fp32");
  AddFp32Flags(verb, flags.fp32);
  verb.add_option("--threads", flags.threads, "Threads of the engine (default: one per core)")
      ->check(CLI::Range(1, 1024));
}

void AddFp32Flags(CLI::App& verb, Fp32Parts& parts) {
  const auto add = [&verb](const char* name, bool& part, const char* description) {
    verb.add_option_function<std::string>(
            name, [&part](const std::string&) { part = true; }, description)
        ->check(CLI::IsMember({"fp32"}))
        ->option_text("fp32");
  };
  add("--residual", parts.residual,
      "Keep the residual stream in FP32 (default: in the precision of the rest)");
  add("--head", parts.head, "Make the logits from FP32 hidden states (default: likewise)");
}

}  // namespace halfstep
