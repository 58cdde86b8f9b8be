// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/cpu_target.h"

#include "hwy/highway.h"
#include "kernels/check.h"

namespace halfstep {
namespace {

int64_t Usable() { return hwy::SupportedTargets() & HWY_TARGETS; }

}  // namespace

bool CpuSupported(std::string* why) {
  if (Usable() != 0) return true;
  if (why != nullptr) {
    *why =
        "this CPU lacks AVX2, FMA or F16C, which the CPU kernels need for their exact fused "
        "multiply-adds; run on an x86-64 CPU with AVX2 (Intel since 2013, AMD since 2017)";
  }
  return false;
}

void RequireSupportedCpu() {
  static const bool supported = [] {
    std::string why;
    if (!CpuSupported(&why)) {
      CheckFailed("the CPU is supported", why, __FILE__, __LINE__);
    }
    return true;
  }();
  static_cast<void>(supported);
}

std::vector<std::string> CpuTargets() {
  std::vector<std::string> names;
  for (const int64_t target : {int64_t{HWY_AVX3}, int64_t{HWY_AVX2}}) {
    if (Usable() & target) names.emplace_back(hwy::TargetName(target));
  }
  return names;
}

const char* CpuTargetName() {
  HALFSTEP_CHECK(Usable() != 0);
  return hwy::TargetName(Usable() & HWY_AVX3 ? HWY_AVX3 : HWY_AVX2);
}

void SetCpuTargetForTest(const std::string& name) {
  hwy::SetSupportedTargetsForTest(0);
  if (!name.empty()) {
    int64_t chosen = 0;
    for (const int64_t target : {int64_t{HWY_AVX3}, int64_t{HWY_AVX2}}) {
      if ((Usable() & target) && name == hwy::TargetName(target)) chosen = target;
    }
    HALFSTEP_CHECK_NE(chosen, 0);
    hwy::SetSupportedTargetsForTest(chosen);
  }
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

}  // namespace halfstep
