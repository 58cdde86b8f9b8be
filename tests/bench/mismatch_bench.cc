// SPDX-License-Identifier: Apache-2.0
// What it costs to measure the mismatch of a batch: every metric of every token, and the summary.
#include <benchmark/benchmark.h>

#include <random>
#include <vector>

#include "learner_server/algorithm/mismatch.h"

namespace halfstep::bench {
namespace {

constexpr int64_t kBatchTokens = 8192;

// Responses of `state.range(0)` tokens, log-probs that differ in the last bits as two engines' do.
void BM_Mismatch(benchmark::State& state) {
  const int64_t length = state.range(0);
  std::mt19937 random(1);
  std::exponential_distribution<float> surprise(2);
  std::normal_distribution<float> noise(0, 1e-3f);
  std::vector<float> learner(kBatchTokens), behaviour(kBatchTokens);
  for (int64_t i = 0; i < kBatchTokens; ++i) {
    learner[i] = -surprise(random);
    behaviour[i] = learner[i] + noise(random);
  }
  for (auto _ : state) {
    MismatchStatistics statistics;
    for (int64_t begin = 0; begin < kBatchTokens; begin += length) {
      statistics.Add({learner.data() + begin, static_cast<size_t>(length)},
                     {behaviour.data() + begin, static_cast<size_t>(length)});
    }
    benchmark::DoNotOptimize(statistics.Summarize());
  }
  state.SetItemsProcessed(state.iterations() * kBatchTokens);
}
BENCHMARK(BM_Mismatch)->Arg(32)->Arg(256);

}  // namespace
}  // namespace halfstep::bench

BENCHMARK_MAIN();
