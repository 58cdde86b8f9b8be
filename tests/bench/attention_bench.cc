// SPDX-License-Identifier: Apache-2.0
// Attention at the shapes of the demo and of the M model (hidden 512, 8 heads, 4 KV heads):
// training forward and backward, and decoding through the paged cache. "MAC/s" counts the
// multiply-adds of scores and values that the causal mask leaves.
#include <benchmark/benchmark.h>

#include <cstring>
#include <random>
#include <vector>

#include "kernels/buffer.h"
#include "kernels/exec_context.h"
#include "kernels/ops/attention.h"
#include "kernels/thread_pool.h"
#include "kernels/workspace.h"

namespace halfstep {
namespace {

struct Model {
  int64_t heads;
  int64_t kv_heads;
  int64_t head_dim;
};
constexpr Model kModels[] = {{6, 3, 32}, {8, 4, 64}, {8, 2, 16}};

OwnedTensor Normal(Shape shape) {
  OwnedTensor x("bench", DType::kFloat16, shape);
  std::mt19937_64 engine(1);
  std::normal_distribution<float> normal;
  for (int64_t i = 0; i < shape.elements(); ++i) {
    x.view().as<Float16>()[i] = ToFloat16(normal(engine));
  }
  return x;
}

OwnedTensor Ints(const std::vector<int32_t>& values) {
  OwnedTensor x("bench", DType::kInt32, {static_cast<int64_t>(values.size())});
  std::memcpy(x.view().data(), values.data(), x.view().bytes());
  return x;
}

class Context {
 public:
  explicit Context(int threads) : pool_(threads) {
    context_.workspace = &workspace_;
    context_.threads = &pool_;
  }
  operator const ExecContext&() const { return context_; }  // NOLINT(google-explicit-constructor)

 private:
  Workspace workspace_;
  ThreadPool pool_;
  ExecContext context_;
};

// Arguments: model, sequences, length, threads.
struct Packed {
  explicit Packed(const benchmark::State& state)
      : model(kModels[state.range(0)]),
        sequences(state.range(1)),
        length(state.range(2)),
        context(static_cast<int>(state.range(3))) {
    const int64_t tokens = sequences * length;
    q = Normal({tokens, model.heads, model.head_dim});
    k = Normal({tokens, model.kv_heads, model.head_dim});
    v = Normal({tokens, model.kv_heads, model.head_dim});
    out = Normal({tokens, model.heads, model.head_dim});
    lse = OwnedTensor("bench", DType::kFloat32, {model.heads, tokens});
    std::vector<int32_t> starts;
    for (int64_t s = 0; s <= sequences; ++s) starts.push_back(static_cast<int32_t>(s * length));
    cu_seqlens = Ints(starts);
  }
  PackedAttention in() const {
    return {q, k, v, cu_seqlens, 1 / std::sqrt(static_cast<float>(model.head_dim))};
  }
  // Multiply-adds of one product of the size of Q K^T.
  double Macs() const {
    return static_cast<double>(sequences * length * (length + 1) / 2 * model.heads *
                               model.head_dim);
  }

  Model model;
  int64_t sequences, length;
  Context context;
  OwnedTensor q, k, v, out, lse, cu_seqlens;
};

void Report(benchmark::State& state, double macs, int64_t tokens) {
  const double iterations = static_cast<double>(state.iterations());
  state.counters["MAC/s"] = benchmark::Counter(macs * iterations, benchmark::Counter::kIsRate);
  state.counters["tokens/s"] =
      benchmark::Counter(static_cast<double>(tokens) * iterations, benchmark::Counter::kIsRate);
}

void BM_TrainForward(benchmark::State& state) {
  Packed p(state);
  for (auto _ : state) CausalAttention(p.context, p.in(), p.out, p.lse);
  Report(state, 2 * p.Macs(), p.sequences * p.length);
}

void BM_TrainBackward(benchmark::State& state) {
  Packed p(state);
  CausalAttention(p.context, p.in(), p.out, p.lse);
  OwnedTensor dout = Normal(p.q.view().shape()), dq = Normal(p.q.view().shape());
  OwnedTensor dk = Normal(p.k.view().shape()), dv = Normal(p.v.view().shape());
  for (auto _ : state) {
    CausalAttentionBackward(p.context, dout, p.in(), p.out, p.lse, dq, dk, dv);
  }
  Report(state, 5 * p.Macs(), p.sequences * p.length);
}

// One query for each of `sequences` contexts of `length` tokens.
void BM_Decode(benchmark::State& state) {
  const Model& m = kModels[state.range(0)];
  const int64_t sequences = state.range(1), length = state.range(2);
  const Context context(static_cast<int>(state.range(3)));
  const int64_t per_sequence = (length + kKvBlockTokens - 1) / kKvBlockTokens;
  const auto bytes = static_cast<int64_t>(KvBlockBytes(DType::kFloat16, m.kv_heads, m.head_dim));
  OwnedTensor keys("bench", DType::kUInt8, {sequences * per_sequence, bytes});
  OwnedTensor values("bench", DType::kUInt8, {sequences * per_sequence, bytes});
  const KvCacheLayer cache{keys, values, DType::kFloat16, m.kv_heads, m.head_dim};
  std::vector<int32_t> slots, start, lengths, tables;
  for (int64_t s = 0; s < sequences; ++s) {
    start.push_back(static_cast<int32_t>(s));
    lengths.push_back(static_cast<int32_t>(length));
    for (int64_t b = 0; b < per_sequence; ++b) {
      tables.push_back(static_cast<int32_t>(s * per_sequence + b));
    }
    for (int64_t t = 0; t < length; ++t) {
      slots.push_back(static_cast<int32_t>(s * per_sequence * kKvBlockTokens + t));
    }
  }
  start.push_back(static_cast<int32_t>(sequences));
  const OwnedTensor kv = Normal({sequences * length, m.kv_heads, m.head_dim});
  WriteKvCache(context, kv, kv, Ints(slots), cache);
  const OwnedTensor starts = Ints(start), contexts = Ints(lengths), table = Ints(tables);
  const PagedBatch batch{starts, contexts, table.view().Reshape({sequences, per_sequence})};
  const OwnedTensor q = Normal({sequences, m.heads, m.head_dim});
  OwnedTensor out = Normal({sequences, m.heads, m.head_dim});
  for (auto _ : state) PagedCausalAttention(context, q, cache, batch, 0.2f, out);
  Report(state, static_cast<double>(2 * sequences * length * m.heads * m.head_dim), sequences);
}

BENCHMARK(BM_TrainForward)
    ->Args({0, 256, 45, 1})
    ->Args({0, 256, 45, 2})
    ->Args({1, 16, 128, 1})
    ->Args({1, 16, 128, 2})
    ->Args({2, 256, 45, 1})
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond);
BENCHMARK(BM_TrainBackward)
    ->Args({0, 256, 45, 1})
    ->Args({0, 256, 45, 2})
    ->Args({1, 16, 128, 1})
    ->Args({1, 16, 128, 2})
    ->Args({2, 256, 45, 1})
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond);
BENCHMARK(BM_Decode)
    ->Args({0, 128, 40, 1})
    ->Args({0, 128, 40, 2})
    ->Args({0, 1, 40, 2})
    ->Args({1, 64, 128, 1})
    ->Args({1, 64, 128, 2})
    ->Args({1, 1, 128, 2})
    ->Args({2, 128, 40, 1})
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace halfstep

BENCHMARK_MAIN();
