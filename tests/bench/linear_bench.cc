// SPDX-License-Identifier: Apache-2.0
// Linear layers beside the limits of the machine: `gflops` and `gbytes` are what the product
// reached, `of_fma_peak` and `of_bandwidth` the share of the FMA peak and of the read bandwidth
// (over memory as large as all weights) that bursts in the same run reached. All are upper
// quartiles over samples.
//
// The weights rotate over copies of 16 MiB in all, as the layers of a model do, so they come from
// the last-level cache and not from a cache that one layer fits.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "kernels/buffer.h"
#include "kernels/ops/linear.h"
#include "kernels/thread_pool.h"
#include "kernels/workspace.h"
#include "tests/bench/machine_limits.h"

namespace halfstep::bench {
namespace {

constexpr size_t kWorkingSet = size_t{16} << 20;
constexpr int kSamples = 25;
constexpr double kSampleSeconds = 2e-3;

enum Direction { kForward, kBackwardInput, kBackwardWeight };

struct Layer {
  Tensor weight, packed, gradient;
};

// The layers of a case, in one allocation for each kind of tensor, as a model has them.
struct Layers {
  Buffer weights, packed, gradients;
  std::vector<Layer> layers;
};

void FillNormal(Tensor x, double deviation) {
  std::mt19937 rng(1);
  std::normal_distribution<float> normal(0.0f, static_cast<float>(deviation));
  for (int64_t i = 0; i < x.elements(); ++i) {
    switch (x.dtype()) {
      case DType::kFloat16:
        x.as<Float16>()[i] = ToFloat16(normal(rng));
        break;
      case DType::kBFloat16:
        x.as<BFloat16>()[i] = ToBFloat16(normal(rng));
        break;
      default:
        x.as<float>()[i] = normal(rng);
    }
  }
}

struct Case {
  Direction direction;
  DType dtype;
  int64_t tokens, out, in;
  int threads;
};

Layers MakeLayers(const ExecContext& ctx, const Case& c) {
  const auto elements = static_cast<size_t>(c.out * c.in);
  const size_t bytes =
      elements * (c.direction == kBackwardWeight ? sizeof(float) : SizeOf(c.dtype));
  Layers result;
  const size_t count = std::max<size_t>(1, kWorkingSet / bytes);
  result.layers.resize(count);
  if (c.direction == kBackwardWeight) {
    result.gradients = Buffer("gradients", count * bytes);
    for (size_t i = 0; i < count; ++i) {
      result.layers[i].gradient = result.gradients.View(DType::kFloat32, {c.out, c.in}, i * bytes);
    }
    return result;
  }
  OwnedTensor weight("weight", c.dtype, {c.out, c.in});
  FillNormal(weight, 0.05);
  const size_t packed = (PackedLinearBytes(ctx.device, c.dtype, c.out, c.in) + 63) / 64 * 64;
  result.weights = Buffer("weights", count * bytes);
  result.packed = Buffer("packed", count * packed);
  for (size_t i = 0; i < count; ++i) {
    Layer& layer = result.layers[i];
    layer.weight = result.weights.View(c.dtype, {c.out, c.in}, i * bytes);
    layer.packed = result.packed.View(DType::kUInt8, {static_cast<int64_t>(packed)}, i * packed);
    std::memcpy(layer.weight.data(), weight.view().data(), bytes);
    PackLinear(ctx, layer.weight, layer.packed);
  }
  return result;
}

void RunOnce(const ExecContext& ctx, const Case& c, ConstTensor x, Tensor y, const Layer& layer) {
  const LinearWeight weight{layer.weight, layer.packed, {}};
  switch (c.direction) {
    case kForward:
      return Linear(ctx, x, weight, y);
    case kBackwardInput:
      return LinearBackwardInput(ctx, x, weight, y);
    case kBackwardWeight:
      return LinearBackwardWeight(ctx, y, x, layer.gradient, {});
  }
}

double Best(const std::vector<double>& samples) {
  return *std::max_element(samples.begin(), samples.end());
}

void BM_Linear(benchmark::State& state, Case c) {
  Workspace workspace;
  ThreadPool pool(c.threads);
  ExecContext ctx;
  ctx.workspace = &workspace;
  ctx.threads = &pool;
  const Layers made = MakeLayers(ctx, c);
  const std::vector<Layer>& layers = made.layers;
  const bool swapped = c.direction == kBackwardInput;
  OwnedTensor x("x", c.dtype, {c.tokens, swapped ? c.out : c.in});
  OwnedTensor y("y", c.dtype, {c.tokens, swapped ? c.in : c.out});
  FillNormal(x, 1);
  FillNormal(y, 1);
  ReadBandwidth bandwidth(kWorkingSet);

  const auto seconds = [&](int64_t runs) {
    const auto begin = std::chrono::steady_clock::now();
    for (int64_t i = 0; i < runs; ++i) {
      RunOnce(ctx, c, x, y, layers[static_cast<size_t>(i) % layers.size()]);
    }
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  };
  seconds(1);
  const auto runs = std::max<int64_t>(1, static_cast<int64_t>(kSampleSeconds / seconds(1)));
  std::vector<double> rates, peaks, bandwidths;
  for (auto _ : state) {
    peaks.push_back(FmaPeak(c.threads, 5e-4));
    bandwidths.push_back(bandwidth.Measure(c.threads, 2e-3));
    const double took = seconds(runs) / static_cast<double>(runs);
    rates.push_back(1 / took);
    state.SetIterationTime(took);
  }
  const double rate = Best(rates);
  const double gflops = 2e-9 * static_cast<double>(c.tokens * c.out * c.in) * rate;
  const double gbytes =
      1e-9 * static_cast<double>(static_cast<size_t>(c.out * c.in) * SizeOf(c.dtype)) * rate;
  state.counters["gflops"] = gflops;
  state.counters["gbytes"] = gbytes;
  state.counters["fma_peak"] = Best(peaks);
  state.counters["bandwidth"] = Best(bandwidths);
  state.counters["of_fma_peak"] = gflops / Best(peaks);
  state.counters["of_bandwidth"] = gbytes / Best(bandwidths);
}

void Register() {
  const char* const names[] = {"forward", "backward_input", "backward_weight"};
  const int64_t shapes[][2] = {{1536, 512}, {512, 1536}, {8192, 512}, {4864, 896},
                               {128, 128},  {512, 160},  {160, 512},  {300, 128}};
  for (const Direction direction : {kForward, kBackwardInput, kBackwardWeight}) {
    for (const DType dtype : {DType::kFloat16, DType::kBFloat16, DType::kFloat32}) {
      for (const auto [out, in] : shapes) {
        for (const int64_t tokens : {1, 8, 32, 64, 512, 4096}) {
          if (direction != kForward && tokens < 64) continue;
          for (const int threads : {1, 2}) {
            const std::string name = std::string("linear/") + names[direction] + "/" + Name(dtype) +
                                     "/out:" + std::to_string(out) + "/in:" + std::to_string(in) +
                                     "/tokens:" + std::to_string(tokens) +
                                     "/threads:" + std::to_string(threads);
            benchmark::RegisterBenchmark(name.c_str(), BM_Linear,
                                         Case{direction, dtype, tokens, out, in, threads})
                ->UseManualTime()
                ->Iterations(kSamples)
                ->Unit(benchmark::kMicrosecond);
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace halfstep::bench

int main(int argc, char** argv) {
  halfstep::bench::Register();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
