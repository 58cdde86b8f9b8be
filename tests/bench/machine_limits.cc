// SPDX-License-Identifier: Apache-2.0
#include "tests/bench/machine_limits.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "tests/bench/machine_limits.cc"
#include "hwy/foreach_target.h"  // must come before highway.h

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace halfstep::cpu::HWY_NAMESPACE {

// Returns how many floating-point operations were done.
double FmaBurstImpl(int64_t steps, float* sink) {
  constexpr int kChains = 12;  // enough for two units of latency four, few enough for 16 registers
  hn::Vec<F32> chain[kChains];
  for (int i = 0; i < kChains; ++i) chain[i] = hn::Set(kF32, static_cast<float>(i));
  const auto a = hn::Set(kF32, 0.5f), b = hn::Set(kF32, 0.25f);
  for (int64_t step = 0; step < steps; ++step) {
    for (int i = 0; i < kChains; ++i) chain[i] = hn::MulAdd(chain[i], a, b);
  }
  for (int i = 1; i < kChains; ++i) chain[0] = hn::Add(chain[0], chain[i]);
  *sink = hn::GetLane(chain[0]);
  return 2.0 * kChains * static_cast<double>(kPartLanes) * static_cast<double>(steps);
}

float ReadBurstImpl(const float* data, size_t count) {
  const size_t step = 8 * kPartLanes;
  hn::Vec<F32> sum[8];
  for (auto& s : sum) s = hn::Zero(kF32);
  for (size_t i = 0; i + step <= count; i += step) {
    for (size_t j = 0; j < 8; ++j) {
      sum[j] = hn::Add(sum[j], hn::LoadU(kF32, data + i + j * kPartLanes));
    }
  }
  for (int j = 1; j < 8; ++j) sum[0] = hn::Add(sum[0], sum[j]);
  return hn::GetLane(sum[0]);
}

}  // namespace halfstep::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace halfstep::cpu {
HWY_EXPORT(FmaBurstImpl);
HWY_EXPORT(ReadBurstImpl);
double FmaBurst(int64_t steps, float* sink) {
  return HWY_DYNAMIC_DISPATCH(FmaBurstImpl)(steps, sink);
}
float ReadBurst(const float* data, size_t count) {
  return HWY_DYNAMIC_DISPATCH(ReadBurstImpl)(data, count);
}
}  // namespace halfstep::cpu

namespace halfstep::bench {
namespace {

using Clock = std::chrono::steady_clock;

double Seconds(Clock::time_point since) {
  return std::chrono::duration<double>(Clock::now() - since).count();
}

// Runs burst(thread), which returns work done, on every thread until `seconds` have passed; returns
// work per second from the common start to the last end.
template <class Burst>
double Rate(int threads, double seconds, const Burst& burst) {
  std::atomic<int> ready{0};
  std::vector<double> work(static_cast<size_t>(threads)), took(static_cast<size_t>(threads));
  const auto body = [&](int thread) {
    ready.fetch_add(1);
    while (ready.load() < threads) {
    }
    const auto begin = Clock::now();
    double done = 0;
    do {
      done += burst(thread);
    } while (Seconds(begin) < seconds);
    work[static_cast<size_t>(thread)] = done;
    took[static_cast<size_t>(thread)] = Seconds(begin);
  };
  std::vector<std::thread> others;
  for (int thread = 1; thread < threads; ++thread) others.emplace_back(body, thread);
  body(0);
  for (std::thread& other : others) other.join();
  double rate = 0;
  for (size_t thread = 0; thread < work.size(); ++thread) rate += work[thread] / took[thread];
  return rate;
}

}  // namespace

double FmaPeak(int threads, double seconds) {
  std::vector<float> sinks(static_cast<size_t>(threads) * 16);
  return 1e-9 * Rate(threads, seconds, [&](int thread) {
           return cpu::FmaBurst(4000, &sinks[static_cast<size_t>(thread) * 16]);
         });
}

ReadBandwidth::ReadBandwidth(size_t bytes) : data_("read bandwidth", bytes) {
  std::fill_n(static_cast<char*>(data_.data()), bytes, char{1});
}

double ReadBandwidth::Measure(int threads, double seconds) {
  const size_t part = data_.bytes() / sizeof(float) / static_cast<size_t>(threads);
  const auto* const data = static_cast<const float*>(data_.data());
  std::atomic<float> sink{0};
  return 1e-9 * Rate(threads, seconds, [&](int thread) {
           sink = cpu::ReadBurst(data + part * static_cast<size_t>(thread), part);
           return static_cast<double>(part * sizeof(float));
         });
}

}  // namespace halfstep::bench
#endif  // HWY_ONCE
