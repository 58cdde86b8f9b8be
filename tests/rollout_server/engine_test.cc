// SPDX-License-Identifier: Apache-2.0
#include "rollout_server/generation/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>
#include <string>
#include <thread>
#include <utility>

#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "common/base/error_reason.h"
#include "rollout_server/generation/generate.h"
#include "tests/rollout_server/engine_fixture.h"

namespace halfstep {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// How an engine may be set up without changing a single bit of what it generates.
struct Setting {
  const char* name;
  int64_t max_sequences;
  int64_t max_step_tokens;
  int64_t kv_sequences;  // full-length sequences that the cache holds
  int threads;
};

class EngineSettingTest : public ::testing::TestWithParam<Setting> {};

TEST_P(EngineSettingTest, GeneratesTheSameAlone) {
  const Setting& setting = GetParam();
  EngineOptions options = TinyOptions();
  options.max_sequences = setting.max_sequences;
  options.max_step_tokens = setting.max_step_tokens;
  options.threads = setting.threads;
  options.kv_cache_bytes =
      setting.kv_sequences * 5 * KvCache::BytesPerBlock(options.config, DType::kFloat16);
  auto engine = MakeServingEngine(options);
  std::vector<GroupRequest> requests;
  for (uint64_t group = 0; group < 10; ++group) {
    requests.push_back(MakeGroup(group, 3 + static_cast<int64_t>(group) * 9, 5, 60));
  }
  const auto together = Generate(engine.get(), requests);
  engine->Stop();
  const EngineStats stats = engine->stats();
  EXPECT_EQ(stats.kv_blocks_free, stats.kv_blocks_total);
  if (setting.kv_sequences < 10) {
    EXPECT_GT(stats.preemptions, 0);
  }

  auto alone = MakeServingEngine(TinyOptions());
  ASSERT_EQ(together.size(), requests.size());
  for (size_t group = 0; group < requests.size(); ++group) {
    SCOPED_TRACE(testing::Message() << "group " << group);
    const auto reference = Generate(alone.get(), {requests[group]});
    ASSERT_EQ(reference.size(), 1u);
    ExpectSame(reference[0], together[group]);
  }
}

INSTANTIATE_TEST_SUITE_P(Settings, EngineSettingTest,
                         ::testing::Values(Setting{"Wide", 64, 512, 64, 1},
                                           Setting{"Narrow", 3, 8, 64, 1},
                                           Setting{"Preempting", 32, 64, 4, 1},
                                           Setting{"OneAtATime", 1, 16, 64, 1},
                                           Setting{"ThreeThreads", 32, 100, 64, 3},
                                           Setting{"PreemptingOnTwoThreads", 16, 33, 3, 2}),
                         [](const auto& setting) { return std::string(setting.param.name); });

class EngineLogProbTest : public ::testing::TestWithParam<DType> {};

TEST_P(EngineLogProbTest, AreBitForBitTheLearners) {
  EngineOptions options = TinyOptions();
  options.dtype = GetParam();
  options.max_step_tokens = 20;
  options.max_sequences = 9;
  options.kv_cache_bytes = 5 * 5 * KvCache::BytesPerBlock(options.config, options.dtype);
  const auto weights = TinyWeights(3, options.dtype);
  auto engine = MakeEngine(options);
  engine->SetWeights(weights, 4, [](const absl::Status&) {});
  std::vector<GroupRequest> requests;
  for (uint64_t group = 0; group < 12; ++group) {
    requests.push_back(MakeGroup(group, 1 + static_cast<int64_t>(group * 7), 4, 64));
    requests.back().sampling.temperature = 0.8f;
  }
  const auto groups = Generate(engine.get(), requests);
  ASSERT_EQ(groups.size(), requests.size());

  std::vector<std::pair<std::vector<int32_t>, std::vector<int32_t>>> sequences;
  for (size_t group = 0; group < groups.size(); ++group) {
    for (const Sample& sample : groups[group]) {
      sequences.emplace_back(requests[group].prompt, sample.tokens);
    }
  }
  const auto learner = LearnerLogProbs(*weights, sequences, 0.8f);
  size_t next = 0;
  for (size_t group = 0; group < groups.size(); ++group) {
    for (const Sample& sample : groups[group]) {
      EXPECT_TRUE(SameBits(sample.log_probs, learner[next++]))
          << "group " << group << ", sample " << sample.index;
      EXPECT_THAT(sample.versions,
                  ElementsAre(VersionRun{4, static_cast<uint32_t>(sample.tokens.size())}));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(DTypes, EngineLogProbTest,
                         ::testing::Values(DType::kFloat16, DType::kBFloat16, DType::kFloat32),
                         [](const auto& dtype) { return std::string(Name(dtype.param)); });

TEST(EngineTest, OneFlippedWeightBitShowsInTheLogProbs) {
  EngineOptions options = TinyOptions();
  const auto right = TinyWeights(1);
  auto wrong = UnpackedTinyWeights(1);
  auto* bits = static_cast<uint16_t*>(
      wrong->parameters().view(wrong->parameters().layout().layers()[1].down).data());
  bits[17] ^= 1u << 9;
  auto engine = MakeEngine(options);
  engine->SetWeights(Packed(wrong), 0, [](const absl::Status&) {});
  const GroupRequest request = MakeGroup(0, 20, 4, 40);
  const auto groups = Generate(engine.get(), {request});
  ASSERT_EQ(groups.size(), 1u);
  float largest = 0;
  for (const Sample& sample : groups[0]) {
    const auto learner = LearnerLogProbs(*right, {{request.prompt, sample.tokens}}, 1.0f);
    for (size_t i = 0; i < sample.log_probs.size(); ++i) {
      largest = std::max(largest, std::abs(sample.log_probs[i] - learner[0][i]));
    }
  }
  EXPECT_GT(largest, 0);
}

TEST(EngineTest, GreedyDecodingReportsLogProbsAtTemperatureOne) {
  const auto weights = TinyWeights(1);
  auto engine = MakeServingEngine(TinyOptions());
  GroupRequest request = MakeGroup(0, 10, 2, 30);
  request.sampling.temperature = 0;
  const auto groups = Generate(engine.get(), {request});
  ASSERT_EQ(groups.size(), 1u);
  EXPECT_EQ(groups[0][0].tokens, groups[0][1].tokens);
  const auto learner = LearnerLogProbs(*weights, {{request.prompt, groups[0][0].tokens}}, 1.0f);
  EXPECT_TRUE(SameBits(groups[0][0].log_probs, learner[0]));
}

TEST(EngineTest, SamplesDifferBySeedDomainGroupAndIndex) {
  auto engine = MakeServingEngine(TinyOptions());
  GroupRequest base = MakeGroup(0, 10, 2, 40);
  GroupRequest seed = base, domain = base, group = base;
  seed.seed = 8;
  domain.domain = SamplingDomain::kEval;
  group.group = 1;
  const auto groups = Generate(engine.get(), {base, seed, domain, group});
  ASSERT_EQ(groups.size(), 4u);
  std::set<std::vector<int32_t>> distinct;
  for (const auto& samples : groups) {
    for (const Sample& sample : samples) distinct.insert(sample.tokens);
  }
  EXPECT_EQ(distinct.size(), 8u);
}

TEST(EngineTest, StopsAtTheLengthLimit) {
  EngineOptions options = TinyOptions();
  options.config.eos_token_ids = {};
  auto engine = MakeServingEngine(options);
  const auto groups = Generate(engine.get(), {MakeGroup(0, 5, 3, 17), MakeGroup(1, 5, 1, 1)});
  ASSERT_EQ(groups.size(), 2u);
  for (const Sample& sample : groups[0]) {
    EXPECT_EQ(sample.tokens.size(), 17u);
    EXPECT_EQ(sample.finish_reason, FinishReason::kLength);
  }
  EXPECT_EQ(groups[1][0].tokens.size(), 1u);
}

TEST(EngineTest, StopsAtEosAndAtStopTokensAndKeepsThem) {
  EngineOptions options = TinyOptions();
  options.config.eos_token_ids = {};
  auto plain = MakeServingEngine(options);
  GroupRequest request = MakeGroup(0, 5, 1, 40);
  const std::vector<int32_t> tokens = Generate(plain.get(), {request})[0][0].tokens;
  const int32_t stop = tokens[20];
  const auto first = std::find(tokens.begin(), tokens.end(), stop);
  const std::vector<int32_t> until(tokens.begin(), first + 1);

  request.sampling.stop_token_ids = {stop};
  const Sample by_stop = Generate(plain.get(), {request})[0][0];
  EXPECT_EQ(by_stop.tokens, until);
  EXPECT_EQ(by_stop.finish_reason, FinishReason::kStop);

  options.config.eos_token_ids = {stop};
  auto with_eos = MakeServingEngine(options);
  request.sampling.stop_token_ids = {};
  const Sample by_eos = Generate(with_eos.get(), {request})[0][0];
  EXPECT_EQ(by_eos.tokens, until);
  EXPECT_EQ(by_eos.finish_reason, FinishReason::kStop);
}

TEST(EngineTest, StopsAtAStopStringAcrossTokens) {
  EngineOptions options = TinyOptions();
  options.config.eos_token_ids = {};
  std::string alphabet;
  for (int i = 0; i < 261; ++i) alphabet.push_back(static_cast<char>(' ' + i % 95));
  options.token_bytes = [&alphabet](int32_t token) {
    return std::string_view(alphabet).substr(token, 1);
  };
  auto engine = MakeServingEngine(options);
  GroupRequest request = MakeGroup(0, 5, 1, 40);
  const std::vector<int32_t> tokens = Generate(engine.get(), {request})[0][0].tokens;
  std::string text;
  for (const int32_t token : tokens) text.push_back(alphabet[token]);
  const std::string stop = text.substr(18, 3);
  request.sampling.stop_strings = {stop, "never there"};
  const Sample sample = Generate(engine.get(), {request})[0][0];
  EXPECT_EQ(sample.tokens.size(), text.find(stop) + 3);
  EXPECT_EQ(sample.finish_reason, FinishReason::kStop);
}

TEST(EngineTest, CancelEndsAGroupAndFreesItsBlocks) {
  EngineOptions options = TinyOptions();
  options.config.eos_token_ids = {};
  auto engine = MakeServingEngine(options);
  Outcome cancelled, other;
  absl::Notification submitted;
  GroupHandle handle = 0;
  auto on_token = [&](const GeneratedToken&) {
    submitted.WaitForNotificationWithTimeout(kPatience);
    engine->Cancel(handle);
  };
  const auto accepted = engine->Submit(MakeGroup(0, 40, 4, 100), cancelled.callbacks(on_token));
  ASSERT_TRUE(accepted.ok());
  handle = *accepted;
  submitted.Notify();
  ASSERT_TRUE(engine->Submit(MakeGroup(1, 40, 2, 30), other.callbacks()).ok());
  ASSERT_TRUE(engine->Drain(absl::Now() + kPatience));
  engine->Stop();
  EXPECT_EQ(cancelled.failure().code(), absl::StatusCode::kCancelled);
  EXPECT_THAT(cancelled.samples(), IsEmpty());
  EXPECT_EQ(other.samples().size(), 2u);
  EXPECT_EQ(engine->stats().kv_blocks_free, engine->stats().kv_blocks_total);
}

TEST(EngineTest, StopEndsEverythingThatIsOpen) {
  auto engine = MakeServingEngine(TinyOptions());
  Outcome outcome;
  absl::Notification started, stopping;
  auto on_token = [&](const GeneratedToken&) {
    if (started.HasBeenNotified()) return;
    started.Notify();
    stopping.WaitForNotificationWithTimeout(kPatience);
  };
  GroupRequest request = MakeGroup(0, 10, 1, 140);
  request.version = 0;
  ASSERT_TRUE(engine->Submit(request, outcome.callbacks(on_token)).ok());
  ASSERT_TRUE(started.WaitForNotificationWithTimeout(kPatience));
  absl::Status swap;
  engine->SetWeights(TinyWeights(2), 1, [&](const absl::Status& status) { swap = status; });
  std::thread stopper([&] { engine->Stop(); });
  Outcome refused;
  while (engine->Submit(request, refused.callbacks()).status().code() !=
         absl::StatusCode::kUnavailable) {
    std::this_thread::yield();
  }
  stopping.Notify();
  stopper.join();
  EXPECT_EQ(outcome.failure().code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(swap.code(), absl::StatusCode::kCancelled);
}

TEST(EngineTest, ANonFiniteLogitFailsItsGroup) {
  auto broken = UnpackedTinyWeights(1);
  static_cast<Float16*>(
      broken->parameters().view(broken->parameters().layout().final_norm()).data())[3] =
      ToFloat16(std::numeric_limits<float>::quiet_NaN());
  auto engine = MakeEngine(TinyOptions());
  engine->SetWeights(Packed(broken), 0, [](const absl::Status&) {});
  const auto samples = GenerateAll(engine.get(), {MakeGroup(0, 10, 3, 5)}, absl::Now() + kPatience);
  EXPECT_EQ(samples.status().code(), absl::StatusCode::kInternal);
  EXPECT_EQ(ReasonOf(samples.status()), "NON_FINITE_LOGITS");
  engine->Stop();
  EXPECT_EQ(engine->stats().kv_blocks_free, engine->stats().kv_blocks_total);
}

TEST(EngineTest, ACacheTooSmallForOneSequenceIsAnErrorAtLoad) {
  EngineOptions options = TinyOptions();
  options.kv_cache_bytes = 4 * KvCache::BytesPerBlock(options.config, options.dtype);
  const auto engine = Engine::Create(options);
  EXPECT_EQ(engine.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ReasonOf(engine.status()), "KV_CACHE_TOO_SMALL");
  EXPECT_THAT(std::string(engine.status().message()), HasSubstr("--kv-cache-bytes"));
}

TEST(EngineTest, BoundsWhatItAccepts) {
  EngineOptions options = TinyOptions();
  options.max_outstanding = 6;
  auto engine = MakeEngine(options);
  // Without weights nothing is generated, and without a pending version it fails soon; so fill it
  // from within one failure callback, on the engine's own thread.
  absl::Status third;
  absl::Notification done;
  GroupCallbacks callbacks;
  callbacks.on_sample = [](Sample) {};
  callbacks.on_failure = [&](const absl::Status&) {
    GroupCallbacks ignore;
    ignore.on_sample = [](Sample) {};
    ignore.on_failure = [](const absl::Status&) {};
    EXPECT_TRUE(engine->Submit(MakeGroup(1, 5, 3, 5), ignore).ok());
    third = engine->Submit(MakeGroup(2, 5, 3, 5), ignore).status();
    done.Notify();
  };
  ASSERT_TRUE(engine->Submit(MakeGroup(0, 5, 3, 5), callbacks).ok());
  ASSERT_TRUE(done.WaitForNotificationWithTimeout(kPatience));
  EXPECT_EQ(ReasonOf(third), "ENGINE_FULL");
}

TEST(EngineTest, GenerateAllFeedsMoreThanTheEngineAcceptsAtOnce) {
  EngineOptions options = TinyOptions();
  options.max_outstanding = 6;
  auto engine = MakeServingEngine(options);
  std::vector<GroupRequest> requests;
  for (uint64_t group = 0; group < 20; ++group) requests.push_back(MakeGroup(group, 8, 2, 12));
  const auto groups = Generate(engine.get(), requests);
  ASSERT_EQ(groups.size(), 20u);
  for (const auto& samples : groups) {
    ASSERT_EQ(samples.size(), 2u);
    for (uint32_t i = 0; i < 2; ++i) EXPECT_EQ(samples[i].index, i);
  }
}

TEST(EngineTest, RefusesRequestsThatCannotBeGenerated) {
  auto engine = MakeServingEngine(TinyOptions());
  auto refusal = [&](auto change) {
    GroupRequest request = MakeGroup(0, 10, 2, 20);
    change(&request);
    const absl::Status status = engine->Submit(request, {}).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  EXPECT_THAT(refusal([](GroupRequest* r) { r->prompt.clear(); }), HasSubstr("no tokens"));
  EXPECT_THAT(refusal([](GroupRequest* r) { r->prompt[3] = 261; }),
              HasSubstr("prompt token 3 has id 261"));
  EXPECT_THAT(refusal([](GroupRequest* r) { r->prompt[0] = -1; }), HasSubstr("id -1"));
  EXPECT_THAT(refusal([](GroupRequest* r) { r->samples = 0; }), HasSubstr("samples"));
  EXPECT_THAT(refusal([](GroupRequest* r) { r->sampling.max_new_tokens = 151; }),
              HasSubstr("longest sequence of 160"));
  EXPECT_THAT(refusal([](GroupRequest* r) { r->sampling.max_new_tokens = 0; }),
              HasSubstr("max_new_tokens"));
  EXPECT_THAT(refusal([](GroupRequest* r) { r->sampling.temperature = std::nanf(""); }),
              HasSubstr("temperature"));
  EXPECT_THAT(refusal([](GroupRequest* r) { r->sampling.top_p = 0; }), HasSubstr("top_p"));
  EXPECT_THAT(refusal([](GroupRequest* r) { r->sampling.min_p = 1.5f; }), HasSubstr("min_p"));
  EXPECT_THAT(refusal([](GroupRequest* r) { r->sampling.top_k = -1; }), HasSubstr("top_k"));
  EXPECT_THAT(refusal([](GroupRequest* r) { r->sampling.stop_strings = {"x"}; }),
              HasSubstr("tokenizer"));
  EXPECT_THAT(refusal([](GroupRequest* r) { r->sampling.stop_strings = {""}; }),
              HasSubstr("stop string"));
}

TEST(EngineTest, ReportsThatACancelledGroupIsGone) {
  EngineOptions options = TinyOptions();
  options.config.eos_token_ids = {};
  absl::Mutex mutex;
  EngineStats last;
  options.on_step = [&](const StepReport&, const EngineStats& stats) {
    absl::MutexLock lock(&mutex);
    last = stats;
  };
  auto engine = MakeServingEngine(options);
  absl::Notification started;
  Outcome outcome;
  const GroupHandle group =
      *engine->Submit(MakeGroup(0, 10, 4, 140), outcome.callbacks([&](const GeneratedToken&) {
        if (!started.HasBeenNotified()) started.Notify();
      }));
  ASSERT_TRUE(started.WaitForNotificationWithTimeout(kPatience));
  engine->Cancel(group);
  absl::MutexLock lock(&mutex);
  auto gone = [&] { return last.steps > 0 && last.sequences_running == 0; };
  EXPECT_TRUE(mutex.AwaitWithTimeout(absl::Condition(&gone), kPatience));
  EXPECT_EQ(last.kv_blocks_free, last.kv_blocks_total);
}

TEST(EngineTest, ReportsLatenciesOfEveryStep) {
  EngineOptions options = TinyOptions();
  options.config.eos_token_ids = {};
  size_t first = 0, next = 0, finished = 0;
  options.on_step = [&](const StepReport& report, const EngineStats&) {
    first += report.first_token.size();
    next += report.next_token.size();
    finished += report.finished.size();
  };
  auto engine = MakeServingEngine(options);
  Generate(engine.get(), {MakeGroup(0, 10, 4, 20)});
  engine->Stop();
  EXPECT_EQ(first, 4u);
  EXPECT_EQ(next, 4u * 19u);
  EXPECT_EQ(finished, 4u);
  EXPECT_EQ(engine->stats().tokens_generated, 80);
  EXPECT_EQ(engine->stats().prompt_tokens_shared, 30);
}

}  // namespace
}  // namespace halfstep
