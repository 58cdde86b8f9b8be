// SPDX-License-Identifier: Apache-2.0
// Which vector instructions the CPU backend runs on. Every target computes the same bits.
#pragma once

#include <string>
#include <vector>

namespace halfstep {

// False on a CPU without AVX2, FMA and F16C; `why` then says what is missing.
bool CpuSupported(std::string* why);

// Ends the process with that message on such a CPU, where it would else meet an illegal
// instruction. Every operation calls it; it looks once.
void RequireSupportedCpu();

// "AVX2" or "AVX3" (AVX-512): what operations run on. Requires CpuSupported.
const char* CpuTargetName();

// The targets that this build and this CPU have in common, best first.
std::vector<std::string> CpuTargets();

// Runs operations on `name`, which must be among CpuTargets(); "" goes back to the best one. For
// tests: not safe while an operation runs.
void SetCpuTargetForTest(const std::string& name);

}  // namespace halfstep
