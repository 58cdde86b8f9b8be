// SPDX-License-Identifier: Apache-2.0
// The operations around the matrix products, at the size of a training step of the demo (11 520
// tokens). bytes/s counts each tensor read or written once; it stands beside the bandwidth of a
// copy.
#include <benchmark/benchmark.h>

#include <random>

#include "kernels/buffer.h"
#include "kernels/exec_context.h"
#include "kernels/ops/activation.h"
#include "kernels/ops/elementwise.h"
#include "kernels/ops/embedding.h"
#include "kernels/ops/norm.h"
#include "kernels/ops/optimizer.h"
#include "kernels/ops/rope.h"
#include "kernels/thread_pool.h"
#include "kernels/workspace.h"

namespace halfstep {
namespace {

constexpr int64_t kTokens = 11520;
constexpr DType kHalf = DType::kFloat16;

OwnedTensor Normal(DType dtype, Shape shape) {
  OwnedTensor x("bench", dtype, shape);
  std::mt19937_64 engine(1);
  std::normal_distribution<float> normal;
  for (int64_t i = 0; i < shape.elements(); ++i) {
    if (dtype == kHalf) {
      x.view().as<Float16>()[i] = ToFloat16(normal(engine));
    } else {
      x.view().as<float>()[i] = normal(engine);
    }
  }
  return x;
}

OwnedTensor Ids(int64_t count, int32_t below) {
  OwnedTensor x("bench", DType::kInt32, {count});
  std::mt19937_64 engine(1);
  for (int64_t i = 0; i < count; ++i) {
    x.view().as<int32_t>()[i] = static_cast<int32_t>(engine() % static_cast<uint64_t>(below));
  }
  return x;
}

// One context per benchmark; the number of threads is its last argument.
class Context {
 public:
  explicit Context(int64_t threads) : pool_(static_cast<int>(threads)) {
    context_.workspace = &workspace_;
    context_.threads = &pool_;
  }
  operator const ExecContext&() const { return context_; }  // NOLINT(google-explicit-constructor)

 private:
  Workspace workspace_;
  ThreadPool pool_;
  ExecContext context_;
};

void ReportBytes(benchmark::State& state, int64_t bytes) {
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations()) * bytes);
}

void BM_Copy(benchmark::State& state) {
  const Context ctx(state.range(0));
  const OwnedTensor x = Normal(kHalf, {kTokens, 192});
  OwnedTensor y = Normal(kHalf, {kTokens, 192});
  for (auto _ : state) Copy(ctx, x, y);
  ReportBytes(state, 2 * static_cast<int64_t>(y.view().bytes()));
}

void BM_Add(benchmark::State& state) {
  const Context ctx(state.range(0));
  const OwnedTensor x = Normal(kHalf, {kTokens, 192});
  OwnedTensor y = Normal(kHalf, {kTokens, 192});
  for (auto _ : state) Add(ctx, x, x, Overflow::kSaturate, y);
  ReportBytes(state, 2 * static_cast<int64_t>(y.view().bytes()));
}

// Arguments: rows per token, width, threads.
void BM_RmsNorm(benchmark::State& state) {
  const Context ctx(state.range(2));
  const Shape shape{kTokens * state.range(0), state.range(1)};
  const OwnedTensor x = Normal(kHalf, shape), weight = Normal(kHalf, {shape[1]});
  OwnedTensor y = Normal(kHalf, shape), rstd("bench", DType::kFloat32, {shape[0]});
  for (auto _ : state) RmsNorm(ctx, x, weight, 1e-6f, y, rstd);
  ReportBytes(state, 2 * static_cast<int64_t>(y.view().bytes()));
}

void BM_RmsNormBackward(benchmark::State& state) {
  const Context ctx(state.range(2));
  const Shape shape{kTokens * state.range(0), state.range(1)};
  const OwnedTensor x = Normal(kHalf, shape), weight = Normal(kHalf, {shape[1]});
  const OwnedTensor dy = Normal(kHalf, shape), rstd = Normal(DType::kFloat32, {shape[0]});
  OwnedTensor dx = Normal(kHalf, shape), dweight("bench", DType::kFloat32, {shape[1]});
  for (auto _ : state) RmsNormBackward(ctx, dy, x, weight, rstd, dx, dweight);
  ReportBytes(state, 3 * static_cast<int64_t>(dx.view().bytes()));
}

// Arguments: heads, head_dim, threads.
void BM_Rope(benchmark::State& state) {
  const Context ctx(state.range(2));
  const Shape shape{kTokens, state.range(0), state.range(1)};
  const OwnedTensor x = Normal(kHalf, shape), positions = Ids(kTokens, 64);
  OwnedTensor y = Normal(kHalf, shape);
  OwnedTensor table("bench", DType::kFloat32, {64, 2, shape[2] / 2});
  FillRopeTable({}, table);
  for (auto _ : state) Rope(ctx, x, positions, table, y);
  ReportBytes(state, 2 * static_cast<int64_t>(y.view().bytes()));
}

void BM_SwiGlu(benchmark::State& state) {
  const Context ctx(state.range(0));
  const OwnedTensor x = Normal(kHalf, {kTokens, 1024});
  OwnedTensor y = Normal(kHalf, {kTokens, 512});
  for (auto _ : state) SwiGlu(ctx, x, y);
  ReportBytes(state, 3 * static_cast<int64_t>(y.view().bytes()));
}

void BM_SwiGluBackward(benchmark::State& state) {
  const Context ctx(state.range(0));
  const OwnedTensor x = Normal(kHalf, {kTokens, 1024}), dy = Normal(kHalf, {kTokens, 512});
  OwnedTensor dx = Normal(kHalf, {kTokens, 1024});
  for (auto _ : state) SwiGluBackward(ctx, dy, x, dx);
  ReportBytes(state, 5 * static_cast<int64_t>(dy.view().bytes()));
}

void BM_EmbeddingBackward(benchmark::State& state) {
  const Context ctx(state.range(0));
  const OwnedTensor dy = Normal(kHalf, {kTokens, 192}), tokens = Ids(kTokens, 64);
  OwnedTensor dtable("bench", DType::kFloat32, {64, 192});
  for (auto _ : state) EmbeddingBackward(ctx, dy, tokens, dtable);
  ReportBytes(state, static_cast<int64_t>(dy.view().bytes()));
}

void BM_AdamW(benchmark::State& state) {
  const Context ctx(state.range(0));
  const Shape shape{2'000'000};
  const OwnedTensor gradient = Normal(DType::kFloat32, shape);
  OwnedTensor master = Normal(DType::kFloat32, shape), m("bench", DType::kFloat32, shape);
  OwnedTensor v("bench", DType::kFloat32, shape), weights("bench", kHalf, shape);
  for (auto _ : state) {
    AdamW(ctx, {gradient, master, m, v, weights}, {.learning_rate = 1e-5f});
  }
  ReportBytes(state, shape.elements() * (4 + 3 * 8 + 2));
}

void BM_GradientStatistics(benchmark::State& state) {
  const Context ctx(state.range(0));
  const OwnedTensor gradient = Normal(DType::kFloat32, {2'000'000});
  for (auto _ : state) benchmark::DoNotOptimize(ComputeGradientStatistics(ctx, gradient));
  ReportBytes(state, static_cast<int64_t>(gradient.view().bytes()));
}

void OneAndTwoThreads(benchmark::internal::Benchmark* b) {
  b->Arg(1)->Arg(2)->UseRealTime()->Unit(benchmark::kMicrosecond);
}
void NormShapes(benchmark::internal::Benchmark* b) {
  for (const int64_t threads : {1, 2}) {
    b->Args({1, 192, threads})->Args({6, 32, threads})->Args({8, 16, threads});
  }
  b->UseRealTime()->Unit(benchmark::kMicrosecond);
}
void RopeShapes(benchmark::internal::Benchmark* b) {
  for (const int64_t threads : {1, 2}) b->Args({6, 32, threads})->Args({8, 16, threads});
  b->UseRealTime()->Unit(benchmark::kMicrosecond);
}

BENCHMARK(BM_Copy)->Apply(OneAndTwoThreads);
BENCHMARK(BM_Add)->Apply(OneAndTwoThreads);
BENCHMARK(BM_RmsNorm)->Apply(NormShapes);
BENCHMARK(BM_RmsNormBackward)->Apply(NormShapes);
BENCHMARK(BM_Rope)->Apply(RopeShapes);
BENCHMARK(BM_SwiGlu)->Apply(OneAndTwoThreads);
BENCHMARK(BM_SwiGluBackward)->Apply(OneAndTwoThreads);
BENCHMARK(BM_EmbeddingBackward)->Apply(OneAndTwoThreads);
BENCHMARK(BM_AdamW)->Apply(OneAndTwoThreads);
BENCHMARK(BM_GradientStatistics)->Apply(OneAndTwoThreads);

}  // namespace
}  // namespace halfstep

BENCHMARK_MAIN();
