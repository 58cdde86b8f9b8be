// SPDX-License-Identifier: Apache-2.0
// Engines of the tiny model, requests for them, and what became of those.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <ios>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "rollout_server/generation/engine.h"
#include "rollout_server/generation/generate.h"
#include "tests/rollout_server/tiny_model.h"

namespace halfstep {

inline constexpr absl::Duration kPatience = absl::Seconds(60);

inline EngineOptions TinyOptions() {
  EngineOptions options;
  options.config = TinyConfig();
  options.max_sequence_tokens = 160;
  options.max_sequences = 32;
  return options;
}

inline std::unique_ptr<Engine> MakeEngine(EngineOptions options) {
  auto engine = Engine::Create(std::move(options));
  EXPECT_TRUE(engine.ok()) << engine.status();
  return *std::move(engine);
}

inline std::unique_ptr<Engine> MakeServingEngine(EngineOptions options, uint32_t seed = 1,
                                                 uint64_t version = 0) {
  auto engine = MakeEngine(std::move(options));
  absl::Notification served;
  engine->SetWeights(TinyWeights(seed, engine->options().dtype), version,
                     [&served](const absl::Status& status) {
                       EXPECT_TRUE(status.ok()) << status;
                       served.Notify();
                     });
  EXPECT_TRUE(served.WaitForNotificationWithTimeout(kPatience));
  return engine;
}

// A prompt of `tokens` tokens that depends on `group`.
inline GroupRequest MakeGroup(uint64_t group, int64_t tokens, uint32_t samples,
                              int32_t max_new_tokens) {
  GroupRequest request;
  std::mt19937 random(static_cast<uint32_t>(group + 100));
  for (int64_t i = 0; i < tokens; ++i) {
    request.prompt.push_back(static_cast<int32_t>(2 + random() % 259));
  }
  request.samples = samples;
  request.sampling.max_new_tokens = max_new_tokens;
  request.seed = 7;
  request.domain = SamplingDomain::kTrain;
  request.group = group;
  return request;
}

inline std::vector<std::vector<Sample>> Generate(Engine* engine,
                                                 std::vector<GroupRequest> requests) {
  auto samples = GenerateAll(engine, std::move(requests), absl::Now() + kPatience);
  EXPECT_TRUE(samples.ok()) << samples.status();
  return samples.ok() ? *std::move(samples) : std::vector<std::vector<Sample>>();
}

inline testing::AssertionResult SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) {
    return testing::AssertionFailure() << a.size() << " against " << b.size() << " values";
  }
  for (size_t i = 0; i < a.size(); ++i) {
    if (std::memcmp(&a[i], &b[i], sizeof(float)) != 0) {
      return testing::AssertionFailure()
             << "value " << i << ": " << std::hexfloat << a[i] << " against " << b[i];
    }
  }
  return testing::AssertionSuccess();
}

inline void ExpectSame(const std::vector<Sample>& a, const std::vector<Sample>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    EXPECT_EQ(a[i].tokens, b[i].tokens) << "sample " << i;
    EXPECT_TRUE(SameBits(a[i].log_probs, b[i].log_probs)) << "sample " << i;
    EXPECT_EQ(a[i].finish_reason, b[i].finish_reason) << "sample " << i;
  }
}

// Outcome of one group submitted by hand. Thread-safe.
class Outcome {
 public:
  GroupCallbacks callbacks(std::function<void(const GeneratedToken&)> on_token = {}) {
    GroupCallbacks callbacks;
    callbacks.on_sample = [this](Sample sample) {
      absl::MutexLock lock(&mutex_);
      samples_.push_back(std::move(sample));
    };
    callbacks.on_failure = [this](const absl::Status& status) {
      absl::MutexLock lock(&mutex_);
      failure_ = status;
    };
    callbacks.on_token = std::move(on_token);
    return callbacks;
  }
  std::vector<Sample> samples() const {
    absl::MutexLock lock(&mutex_);
    return samples_;
  }
  absl::Status failure() const {
    absl::MutexLock lock(&mutex_);
    return failure_;
  }

 private:
  mutable absl::Mutex mutex_;
  std::vector<Sample> samples_;
  absl::Status failure_;
};

}  // namespace halfstep
