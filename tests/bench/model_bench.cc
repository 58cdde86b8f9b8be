// SPDX-License-Identifier: Apache-2.0
// Whole passes of the model beside the FMA peak and the read bandwidth (over memory as large as the
// weights) that bursts in the same run reached: decoding and prefill through the paged cache, and a
// training step. Everything but the limits is a median over the iterations.
//
// decode is of the `bitwise` profile, decode_fast of the rollout's own engine in `fast`.
// "M" is the model of docs/benchmarks (46 M parameters, untied), "demo" one of the demo's size. A
// decoding step includes the LM head and sampling; a training step includes log-probs, both
// backwards, AdamW and packing the weights.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "common/model/initialize.h"
#include "common/model/transformer.h"
#include "kernels/ops/elementwise.h"
#include "kernels/ops/log_prob.h"
#include "kernels/ops/optimizer.h"
#include "kernels/ops/sampling.h"
#include "kernels/thread_pool.h"
#include "kernels/workspace.h"
#include "tests/bench/machine_limits.h"

namespace halfstep::bench {
namespace {

constexpr DType kDType = DType::kFloat16;
constexpr double kBurstSeconds = 5e-3;

ModelConfig ModelM() {
  ModelConfig config;
  config.architecture = Architecture::kLlama;
  config.vocab_size = 8192;
  config.hidden_size = 512;
  config.intermediate_size = 1536;
  config.layers = 12;
  config.heads = 8;
  config.kv_heads = 4;
  config.head_dim = 64;
  config.max_positions = 1024;
  return config;
}

ModelConfig ModelDemo() {
  ModelConfig config;
  config.architecture = Architecture::kQwen3;
  config.qk_norm = true;
  config.tie_word_embeddings = true;
  config.vocab_size = 300;
  config.hidden_size = 128;
  config.intermediate_size = 256;
  config.layers = 12;
  config.heads = 4;
  config.kv_heads = 2;
  config.head_dim = 32;
  config.max_positions = 256;
  return config;
}

// Multiply-adds of the linear layers for one token, with and without the head.
double LinearMacs(const ModelConfig& c, bool head) {
  const auto layer = static_cast<double>(c.hidden_size * (2 * c.q_width() + 2 * c.kv_width()) +
                                         3 * c.hidden_size * c.intermediate_size);
  const auto logits = static_cast<double>(c.vocab_size * c.hidden_size);
  return static_cast<double>(c.layers) * layer + (head ? logits : 0.0);
}

// Of the linear layers and the head.
size_t LinearBytes(const ModelConfig& c) {
  return static_cast<size_t>(LinearMacs(c, true)) * SizeOf(kDType);
}

// Multiply-adds of scores and values for one query that sees `context` keys.
double AttentionMacs(const ModelConfig& c, double context) {
  return 2.0 * context * static_cast<double>(c.layers * c.q_width());
}

struct Fixture {
  Fixture(const ModelConfig& c, int thread_count)
      : config(c),
        layout(std::make_shared<const ParameterLayout>(c)),
        pool(thread_count),
        weights(c, layout, kDType, c.max_positions),
        master(layout, DType::kFloat32, "master") {
    ctx.workspace = &workspace;
    ctx.threads = &pool;
    InitializeParameters(config, 1, &master);
    Cast(ctx, master.flat(), Overflow::kSaturate, weights.parameters().flat());
    weights.Pack(ctx);
  }

  std::vector<int32_t> RandomTokens(int64_t count) {
    std::mt19937 random(1);
    std::vector<int32_t> tokens(count);
    for (int32_t& token : tokens) token = static_cast<int32_t>(random() % config.vocab_size);
    return tokens;
  }

  ModelConfig config;
  std::shared_ptr<const ParameterLayout> layout;
  Workspace workspace;
  ThreadPool pool;
  ExecContext ctx;
  ModelWeights weights;
  ParameterBuffer master;
};

// What one step does.
struct Work {
  double tokens, flops;
  size_t weight_bytes;  // read at least once
};

// Runs `step`, a burst of multiply-adds and a burst of reads in turn.
void Measure(benchmark::State& state, int threads, const Work& work,
             const std::function<void()>& step) {
  ReadBandwidth reads(work.weight_bytes);
  step();
  std::vector<double> times, peaks, bandwidths;
  for (auto _ : state) {
    const auto begin = std::chrono::steady_clock::now();
    step();
    times.push_back(
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
    state.SetIterationTime(times.back());
    peaks.push_back(FmaPeak(threads, kBurstSeconds));
    bandwidths.push_back(reads.Measure(threads, kBurstSeconds));
  }
  std::sort(times.begin(), times.end());
  const double median = times[times.size() / 2];
  const double peak = *std::max_element(peaks.begin(), peaks.end());
  const double bandwidth = *std::max_element(bandwidths.begin(), bandwidths.end());
  const double gflops = 1e-9 * work.flops / median;
  const double gbytes = 1e-9 * static_cast<double>(work.weight_bytes) / median;
  state.counters["tokens_per_s"] = work.tokens / median;
  state.counters["gflops"] = gflops;
  state.counters["gbytes"] = gbytes;
  state.counters["fma_peak"] = peak;
  state.counters["bandwidth"] = bandwidth;
  state.counters["of_fma_peak"] = gflops / peak;
  state.counters["of_bandwidth"] = gbytes / bandwidth;
}

// One step over the paged cache: `sequences` with `queries` tokens each, at a context of `context`.
StepBatch MakeStep(Fixture& f, int64_t sequences, int64_t queries, int64_t context) {
  StepBatch step;
  step.tokens = f.RandomTokens(sequences * queries);
  step.max_blocks = (context + kKvBlockTokens - 1) / kKvBlockTokens;
  step.query_start.push_back(0);
  for (int64_t s = 0; s < sequences; ++s) {
    for (int64_t i = context - queries; i < context; ++i) {
      step.positions.push_back(static_cast<int32_t>(i));
      step.slots.push_back(static_cast<int32_t>(s * step.max_blocks * kKvBlockTokens + i));
    }
    for (int64_t b = 0; b < step.max_blocks; ++b) {
      step.block_tables.push_back(static_cast<int32_t>(s * step.max_blocks + b));
    }
    step.query_start.push_back(static_cast<int32_t>((s + 1) * queries));
    step.context.push_back(static_cast<int32_t>(context));
    step.logit_rows.push_back(static_cast<int32_t>((s + 1) * queries - 1));
  }
  return step;
}

void FillCache(Fixture& f, KvCache* cache) {
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  const Shape shape = {kKvBlockTokens, f.config.kv_heads, f.config.head_dim};
  OwnedTensor values("values", kDType, shape);
  for (int64_t i = 0; i < shape.elements(); ++i) {
    values.view().as<Float16>()[i] = ToFloat16(normal(random));
  }
  std::vector<int32_t> slots(kKvBlockTokens);
  for (int64_t block = 0; block < cache->blocks(); ++block) {
    for (int64_t i = 0; i < kKvBlockTokens; ++i) {
      slots[i] = static_cast<int32_t>(block * kKvBlockTokens + i);
    }
    for (int64_t layer = 0; layer < f.config.layers; ++layer) {
      WriteKvCache(f.ctx, values, values, {slots.data(), DType::kInt32, {kKvBlockTokens}},
                   cache->layer(layer));
    }
  }
}

struct InferCase {
  ModelConfig config;
  int64_t sequences, queries, context;
  int threads;
  Profile profile = Profile::kBitwise;
};

void BM_Infer(benchmark::State& state, InferCase c) {
  Fixture f(c.config, c.threads);
  f.ctx.profile = c.profile;
  const StepBatch step = MakeStep(f, c.sequences, c.queries, c.context);
  KvCache cache(f.config, kDType, c.sequences * step.max_blocks);
  FillCache(f, &cache);
  const Transformer transformer(f.config);
  OwnedTensor hidden("hidden", kDType, {c.sequences, f.config.hidden_size});
  OwnedTensor logits("logits", DType::kFloat32, {c.sequences, f.config.vocab_size});
  OwnedTensor tokens("tokens", DType::kInt32, {c.sequences});
  OwnedTensor log_probs("log_probs", DType::kFloat32, {c.sequences});
  std::vector<SamplingRow> rows(c.sequences);
  for (size_t i = 0; i < rows.size(); ++i) rows[i].key.group = i;

  const auto count = static_cast<double>(c.sequences * c.queries);
  const double mean_context =
      static_cast<double>(c.context) - 0.5 * static_cast<double>(c.queries - 1);
  const double flops =
      2 * (count * (LinearMacs(f.config, false) + AttentionMacs(f.config, mean_context)) +
           static_cast<double>(c.sequences * f.config.vocab_size * f.config.hidden_size));
  Measure(state, c.threads, {count, flops, LinearBytes(f.config)}, [&] {
    transformer.ForwardInfer(f.ctx, f.weights, step, &cache, hidden);
    Linear(f.ctx, hidden, f.weights.head(), logits);
    SampleTokens(f.ctx, logits, rows, tokens, log_probs);
  });
}

struct TrainCase {
  ModelConfig config;
  int64_t sequences, length;
  int64_t prompt;  // tokens of each sequence that are not scored
  int64_t micro_batches;
  Recompute recompute;
  int threads;
};

PackedBatch MakeBatch(Fixture& f, const TrainCase& c, int64_t sequences) {
  PackedBatch batch;
  batch.tokens = f.RandomTokens(sequences * c.length);
  batch.cu_seqlens.push_back(0);
  for (int64_t s = 0; s < sequences; ++s) {
    for (int64_t i = 0; i < c.length; ++i) {
      const int64_t row = s * c.length + i;
      batch.positions.push_back(static_cast<int32_t>(i));
      if (i + 1 < c.prompt || i + 1 == c.length) continue;
      batch.logit_rows.push_back(static_cast<int32_t>(row));
      batch.targets.push_back(batch.tokens[row + 1]);
    }
    batch.cu_seqlens.push_back(static_cast<int32_t>((s + 1) * c.length));
  }
  return batch;
}

void BM_Train(benchmark::State& state, TrainCase c) {
  Fixture f(c.config, c.threads);
  const PackedBatch batch = MakeBatch(f, c, c.sequences / c.micro_batches);
  const auto rows = static_cast<int64_t>(batch.logit_rows.size());
  const ConstTensor targets(batch.targets.data(), DType::kInt32, {rows});
  const Transformer transformer(f.config);
  TrainActivations activations;
  ModelGradients gradients(f.layout);
  ParameterBuffer first(f.layout, DType::kFloat32, "first"),
      second(f.layout, DType::kFloat32, "second");
  OwnedTensor hidden("hidden", kDType, {rows, f.config.hidden_size});
  OwnedTensor dhidden("dhidden", kDType, {rows, f.config.hidden_size});
  OwnedTensor log_probs("log_probs", DType::kFloat32, {rows}), lse("lse", DType::kFloat32, {rows});
  OwnedTensor dlog_probs("dlog_probs", DType::kFloat32, {rows});
  std::fill_n(dlog_probs.view().as<float>(), rows, 1.0f);

  AdamWOptions adamw;
  adamw.learning_rate = 1e-6f;
  const auto step = [&] {
    gradients.SetZero(f.ctx);
    for (int64_t i = 0; i < c.micro_batches; ++i) {
      transformer.ForwardTrain(f.ctx, f.weights, batch, c.recompute, &activations, hidden);
      LmHeadLogProb(f.ctx, hidden, f.weights.head(), targets, 1.0f, log_probs, Tensor(), lse);
      LmHeadLogProbBackward(f.ctx, dlog_probs, hidden, f.weights.head(), targets, 1.0f, lse,
                            dhidden, gradients.head());
      transformer.Backward(f.ctx, f.weights, batch, activations, dhidden, &gradients);
    }
    const ConstTensor gradient = gradients.Finish(f.ctx).flat();
    AdamW(f.ctx,
          {gradient, f.master.flat(), first.flat(), second.flat(), f.weights.parameters().flat()},
          adamw);
    f.weights.Pack(f.ctx);
    ++adamw.step;
  };
  // Useful operations only: the head for scored rows, causal attention, nothing for recomputation.
  const auto count = static_cast<double>(c.sequences * c.length);
  const double scored = static_cast<double>(rows * c.micro_batches);
  const double macs = count * (LinearMacs(f.config, false) +
                               AttentionMacs(f.config, 0.5 * static_cast<double>(c.length))) +
                      scored * static_cast<double>(f.config.vocab_size * f.config.hidden_size);
  Measure(state, c.threads, {count, 6 * macs, LinearBytes(f.config)}, step);
}

void Register() {
  const std::pair<const char*, ModelConfig> models[] = {{"M", ModelM()}, {"demo", ModelDemo()}};
  for (const auto& [name, config] : models) {
    const bool demo = std::string(name) == "demo";
    for (const int threads : {1, 2}) {
      const auto add = [&](const std::string& what, const auto& run, const auto& c,
                           int iterations) {
        const std::string full = what + "/" + name + "/threads:" + std::to_string(threads);
        benchmark::RegisterBenchmark(full.c_str(), run, c)
            ->UseManualTime()
            ->Iterations(iterations)
            ->Unit(benchmark::kMillisecond);
      };
      for (const int64_t batch : {1, 8, 32, 64, 128}) {
        add("decode/batch:" + std::to_string(batch) + "/context:" + (demo ? "32" : "128"), BM_Infer,
            InferCase{config, batch, 1, demo ? 32 : 128, threads}, demo ? 100 : 20);
        add("decode_fast/batch:" + std::to_string(batch) + "/context:" + (demo ? "32" : "128"),
            BM_Infer, InferCase{config, batch, 1, demo ? 32 : 128, threads, Profile::kFast},
            demo ? 100 : 20);
      }
      const int64_t prompt = demo ? 12 : 128;
      add("prefill/8x" + std::to_string(prompt), BM_Infer,
          InferCase{config, 8, prompt, prompt, threads}, demo ? 100 : 5);
      if (demo) {
        for (const int64_t parts : {1, 4, 16}) {
          add("train/256x45/micro_batches:" + std::to_string(parts), BM_Train,
              TrainCase{config, 256, 45, 12, parts, Recompute::kNone, threads}, 5);
        }
      } else {
        add("train/16x128", BM_Train, TrainCase{config, 16, 128, 1, 1, Recompute::kNone, threads},
            5);
        add("train_recompute/16x128", BM_Train,
            TrainCase{config, 16, 128, 1, 1, Recompute::kLayer, threads}, 5);
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
