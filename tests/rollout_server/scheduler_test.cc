// SPDX-License-Identifier: Apache-2.0
#include "rollout_server/generation/scheduler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "kernels/ops/attention.h"

namespace halfstep {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;

// A cache that remembers, for every slot, which token of which group (and sample, past the prompt)
// is there, and checks that every planned chunk finds exactly its own context.
class SimulatedEngine {
 public:
  explicit SimulatedEngine(const SchedulerOptions& options)
      : options_(options),
        scheduler_(options),
        slots_(options.blocks * kKvBlockTokens, Content{-1, -1, -1}) {}

  SequenceId AddGroup(int64_t prompt, int64_t samples, int64_t max_tokens) {
    const SequenceId first = scheduler_.AddGroup(prompt, samples, max_tokens);
    for (int64_t i = 0; i < samples; ++i) {
      live_[first + i] = {static_cast<int64_t>(first), prompt, prompt, max_tokens};
    }
    return first;
  }

  void Cancel(SequenceId id) {
    scheduler_.Cancel(id);
    live_.erase(id);
  }

  // Nothing that is in the cache may be read again.
  void RecomputeAll() {
    scheduler_.RecomputeAll();
    std::fill(slots_.begin(), slots_.end(), Content{-1, -1, -1});
  }

  // Runs one step; false when there was nothing to do.
  bool Step() {
    scheduler_.Schedule(&plan_);
    if (plan_.empty()) return false;
    CheckPlan();
    for (const PlannedChunk& chunk : plan_.chunks) Compute(chunk);
    for (const BlockCopy& copy : plan_.copies) {
      std::copy_n(&slots_[copy.from * kKvBlockTokens], kKvBlockTokens,
                  &slots_[copy.to * kKvBlockTokens]);
    }
    std::vector<SequenceId> finished;
    for (const PlannedDraw& draw : plan_.draws) {
      Live& live = live_.at(draw.sequence);
      const Live& source = live_.at(plan_.chunks[draw.chunk].sequence);
      EXPECT_EQ(source.group, live.group);
      if (plan_.chunks[draw.chunk].sequence != draw.sequence) {
        EXPECT_EQ(live.tokens, live.prompt) << "only a fresh sample may draw from another's prompt";
      }
      if (++live.tokens == live.max_tokens) finished.push_back(draw.sequence);
    }
    scheduler_.Commit(plan_, finished);
    for (const SequenceId id : finished) {
      live_.erase(id);
      finished_.push_back(id);
    }
    ++steps_;
    return true;
  }

  // Until nothing is left; fails the test when that takes more than `limit` steps.
  void RunAll(int64_t limit = 100000) {
    while (Step()) {
      ASSERT_LT(steps_, limit) << "no progress: " << scheduler_.running() << " running, "
                               << scheduler_.waiting() << " waiting";
    }
    EXPECT_THAT(live_, IsEmpty());
    EXPECT_EQ(scheduler_.blocks().free(), scheduler_.blocks().total());
    EXPECT_EQ(scheduler_.running(), 0);
    EXPECT_EQ(scheduler_.waiting(), 0);
  }

  Scheduler& scheduler() { return scheduler_; }
  const StepPlan& plan() const { return plan_; }
  const std::vector<SequenceId>& finished() const { return finished_; }
  int64_t steps() const { return steps_; }
  int64_t tokens_computed() const { return tokens_computed_; }
  std::vector<SequenceId> live() const {
    std::vector<SequenceId> ids;
    for (const auto& [id, live] : live_) ids.push_back(id);
    return ids;
  }

 private:
  struct Live {
    int64_t group;
    int64_t prompt;
    int64_t tokens;
    int64_t max_tokens;
  };
  struct Content {
    int64_t group;
    int64_t sample;  // -1 within the prompt
    int64_t position;
    friend bool operator==(const Content&, const Content&) = default;
  };

  Content Expected(SequenceId id, int64_t position) const {
    const Live& live = live_.at(id);
    return {live.group, position < live.prompt ? -1 : static_cast<int64_t>(id), position};
  }

  void CheckPlan() {
    EXPECT_LE(plan_.tokens, options_.max_step_tokens);
    EXPECT_LE(scheduler_.running(), options_.max_running);
    EXPECT_LE(static_cast<int64_t>(plan_.draws.size()), options_.max_running);
    int64_t tokens = 0;
    std::set<SequenceId> chunked, drawn;
    for (const PlannedChunk& chunk : plan_.chunks) {
      EXPECT_GT(chunk.count, 0);
      EXPECT_TRUE(chunked.insert(chunk.sequence).second);
      EXPECT_LE(chunk.begin + chunk.count,
                static_cast<int64_t>(chunk.blocks->size()) * kKvBlockTokens);
      EXPECT_LE(chunk.begin + chunk.count, live_.at(chunk.sequence).tokens);
      tokens += chunk.count;
    }
    EXPECT_EQ(tokens, plan_.tokens);
    int64_t previous = 0;
    for (const PlannedDraw& draw : plan_.draws) {
      EXPECT_TRUE(drawn.insert(draw.sequence).second);
      EXPECT_GE(draw.chunk, previous);
      previous = draw.chunk;
      const PlannedChunk& chunk = plan_.chunks[draw.chunk];
      EXPECT_EQ(chunk.begin + chunk.count, live_.at(chunk.sequence).tokens);
    }
  }

  // Tokens drawn from the chunk of `id`.
  int64_t Draws(SequenceId id) const {
    return std::count_if(plan_.draws.begin(), plan_.draws.end(), [&](const PlannedDraw& draw) {
      return plan_.chunks[draw.chunk].sequence == id;
    });
  }

  void Compute(const PlannedChunk& chunk) {
    tokens_computed_ += chunk.count;
    const std::vector<int32_t>& blocks = *chunk.blocks;
    auto slot = [&](int64_t position) -> Content& {
      return slots_[blocks[position / kKvBlockTokens] * kKvBlockTokens + position % kKvBlockTokens];
    };
    for (int64_t p = chunk.begin; p < chunk.begin + chunk.count; ++p) {
      // A leader's block may already be shared with those that fork from it after this pass.
      EXPECT_TRUE(scheduler_.blocks().references(blocks[p / kKvBlockTokens]) == 1 ||
                  (p < live_.at(chunk.sequence).prompt && Draws(chunk.sequence) > 1))
          << "sequence " << chunk.sequence << " writes a shared block at position " << p;
      slot(p) = Expected(chunk.sequence, p);
    }
    for (int64_t p = 0; p < chunk.begin; ++p) {
      EXPECT_TRUE(slot(p) == Expected(chunk.sequence, p))
          << "sequence " << chunk.sequence << " finds foreign keys at position " << p;
    }
  }

  const SchedulerOptions options_;
  Scheduler scheduler_;
  StepPlan plan_;
  std::vector<Content> slots_;
  std::map<SequenceId, Live> live_;
  std::vector<SequenceId> finished_;
  int64_t steps_ = 0;
  int64_t tokens_computed_ = 0;
};

SchedulerOptions Options(int64_t blocks) {
  return {.blocks = blocks, .max_running = 16, .max_waiting = 64, .max_step_tokens = 64};
}

TEST(SchedulerTest, RunsASequenceToItsEnd) {
  SimulatedEngine engine(Options(4));
  engine.AddGroup(/*prompt=*/10, /*samples=*/1, /*max_tokens=*/15);
  engine.RunAll();
  // The prompt with the first token, then four more.
  EXPECT_EQ(engine.steps(), 5);
  EXPECT_EQ(engine.tokens_computed(), 14);
}

TEST(SchedulerTest, CutsALongPromptIntoChunks) {
  SimulatedEngine engine(Options(8));
  engine.AddGroup(150, 1, 151);
  std::vector<std::pair<int64_t, int64_t>> chunks;
  while (engine.Step()) {
    ASSERT_THAT(engine.plan().chunks, SizeIs(1));
    chunks.emplace_back(engine.plan().chunks[0].begin, engine.plan().chunks[0].count);
    EXPECT_EQ(engine.plan().draws.size(), chunks.size() == 3 ? 1u : 0u);
  }
  EXPECT_THAT(chunks, ElementsAre(std::pair(0, 64), std::pair(64, 64), std::pair(128, 22)));
}

TEST(SchedulerTest, MixesDecodingWithChunksOfPrompts) {
  SimulatedEngine engine(Options(16));
  engine.AddGroup(5, 1, 20);
  ASSERT_TRUE(engine.Step());
  engine.AddGroup(100, 1, 101);
  ASSERT_TRUE(engine.Step());
  ASSERT_THAT(engine.plan().chunks, SizeIs(2));
  EXPECT_EQ(engine.plan().chunks[0].count, 1);
  EXPECT_EQ(engine.plan().chunks[1].count, 63) << "the decoding token comes out of the same budget";
  engine.RunAll();
}

TEST(SchedulerTest, ComputesAPromptOncePerGroup) {
  SimulatedEngine engine(Options(32));
  engine.AddGroup(/*prompt=*/40, /*samples=*/8, /*max_tokens=*/42);
  ASSERT_TRUE(engine.Step());
  EXPECT_THAT(engine.plan().chunks, SizeIs(1));
  EXPECT_THAT(engine.plan().draws, SizeIs(8));
  EXPECT_THAT(engine.plan().copies, SizeIs(7)) << "of the partial block, for all but the leader";
  // One shared block and one own block per sample.
  EXPECT_EQ(engine.scheduler().blocks().free(), 32 - 1 - 8);
  EXPECT_EQ(engine.scheduler().shared_prompt_tokens(), 7 * 40);
  engine.RunAll();
  EXPECT_EQ(engine.tokens_computed(), 40 + 8);
}

TEST(SchedulerTest, CopiesNothingWhenThePromptEndsWithABlock) {
  SimulatedEngine engine(Options(32));
  engine.AddGroup(2 * kKvBlockTokens, 4, 2 * kKvBlockTokens + 2);
  ASSERT_TRUE(engine.Step());
  EXPECT_THAT(engine.plan().draws, SizeIs(4));
  EXPECT_THAT(engine.plan().copies, IsEmpty());
  EXPECT_EQ(engine.scheduler().blocks().free(), 30);
  engine.RunAll();
}

TEST(SchedulerTest, SharesFullBlocksWithSamplesThatStartLater) {
  SchedulerOptions options = Options(32);
  options.max_running = 2;
  SimulatedEngine engine(options);
  engine.AddGroup(/*prompt=*/50, /*samples=*/6, /*max_tokens=*/60);
  engine.RunAll();
  // Two samples run at a time, one staying while the other is replaced or both ending together:
  // every later sample computes the partial block of the prompt at least, and never more than the
  // prompt.
  EXPECT_LE(engine.tokens_computed(), 3 * 50 + 6 * 9);
  EXPECT_THAT(engine.finished(), SizeIs(6));
}

TEST(SchedulerTest, PreemptsTheNewestWhenBlocksRunOut) {
  SchedulerOptions options = Options(4);
  SimulatedEngine engine(options);
  const SequenceId older = engine.AddGroup(30, 1, 96);
  const SequenceId newer = engine.AddGroup(30, 1, 96);
  engine.RunAll();
  EXPECT_GE(engine.scheduler().preemptions(), 1);
  EXPECT_THAT(engine.finished(), ElementsAre(older, newer));
  EXPECT_GT(engine.tokens_computed(), 95 + 95) << "the newer one was computed again";
}

TEST(SchedulerTest, KeepsGeneratedTokensOfAPreemptedSequence) {
  SimulatedEngine engine(Options(4));
  engine.AddGroup(30, 1, 96);
  const SequenceId newer = engine.AddGroup(30, 1, 96);
  while (engine.scheduler().preemptions() == 0) ASSERT_TRUE(engine.Step());
  EXPECT_EQ(engine.scheduler().running(), 1);
  EXPECT_EQ(engine.scheduler().waiting(), 1);
  int64_t recomputed = 0;
  while (engine.Step()) {
    for (const PlannedChunk& chunk : engine.plan().chunks) {
      if (chunk.sequence == newer && chunk.count > 1) recomputed = chunk.count;
    }
  }
  EXPECT_GT(recomputed, 30) << "prompt and generated tokens are computed again in one go";
}

TEST(SchedulerTest, RecomputesEverythingWhenTheCacheIsNoLongerTrue) {
  SimulatedEngine engine(Options(40));
  engine.AddGroup(2 * kKvBlockTokens + 3, 3, 3 * kKvBlockTokens);
  engine.AddGroup(5, 1, 20);
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(engine.Step());
  ASSERT_EQ(engine.scheduler().running(), 4);
  engine.RecomputeAll();
  EXPECT_EQ(engine.scheduler().running(), 0);
  EXPECT_EQ(engine.scheduler().blocks().free(), 40);
  EXPECT_EQ(engine.scheduler().preemptions(), 0);
  engine.RunAll();
  EXPECT_EQ(engine.finished().size(), 4u);
}

TEST(SchedulerTest, StartsInOrderOfArrivalEvenWhenAShorterOneWouldFit) {
  SimulatedEngine engine(Options(4));
  const SequenceId first = engine.AddGroup(60, 1, 64);
  const SequenceId large = engine.AddGroup(100, 1, 128);
  const SequenceId small = engine.AddGroup(5, 1, 8);
  ASSERT_TRUE(engine.Step());
  ASSERT_THAT(engine.plan().chunks, SizeIs(1))
      << "the large one does not fit and nobody overtakes it";
  EXPECT_EQ(engine.plan().chunks[0].sequence, first);
  engine.RunAll();
  EXPECT_EQ(engine.finished().front(), first);
  EXPECT_THAT(engine.finished(), ::testing::UnorderedElementsAre(first, large, small));
}

TEST(SchedulerTest, CancelsWaitingAndRunningSequences) {
  SimulatedEngine engine(Options(16));
  const SequenceId group = engine.AddGroup(40, 4, 60);
  const SequenceId waiting = engine.AddGroup(400, 1, 410);
  engine.Cancel(waiting);
  ASSERT_TRUE(engine.Step());
  engine.Cancel(group);      // the leader
  engine.Cancel(group + 2);  // one that forked
  engine.RunAll();
  EXPECT_THAT(engine.finished(), ElementsAre(group + 1, group + 3));
}

TEST(SchedulerTest, AnotherSampleLeadsWhenTheLeaderIsCancelled) {
  SimulatedEngine engine(Options(16));
  const SequenceId group = engine.AddGroup(100, 3, 110);
  ASSERT_TRUE(engine.Step());
  ASSERT_THAT(engine.plan().draws, IsEmpty()) << "the prompt takes two steps";
  engine.Cancel(group);
  engine.RunAll();
  EXPECT_THAT(engine.finished(), ElementsAre(group + 1, group + 2));
}

TEST(SchedulerTest, BoundsTheWaitingQueue) {
  Scheduler scheduler(Options(4));
  EXPECT_TRUE(scheduler.HasRoom(64));
  scheduler.AddGroup(5, 60, 10);
  EXPECT_TRUE(scheduler.HasRoom(4));
  EXPECT_FALSE(scheduler.HasRoom(5));
}

TEST(SchedulerTest, KnowsWhatNeverFits) {
  Scheduler scheduler(Options(4));
  EXPECT_TRUE(scheduler.Fits(4 * kKvBlockTokens));
  EXPECT_FALSE(scheduler.Fits(4 * kKvBlockTokens + 1));
}

TEST(SchedulerTest, PlansNothingWithoutWork) {
  SimulatedEngine engine(Options(4));
  EXPECT_FALSE(engine.Step());
}

// Random groups, budgets, pools and cancellations; SimulatedEngine checks every step.
class SchedulerRandomTest : public ::testing::TestWithParam<int> {};

TEST_P(SchedulerRandomTest, FinishesEverythingAndLeaksNothing) {
  std::mt19937 random(GetParam());
  auto between = [&](int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random);
  };
  SchedulerOptions options;
  options.blocks = between(5, 40);
  options.max_running = between(1, 24);
  options.max_waiting = 100;
  options.max_step_tokens = options.max_running + between(1, 100);
  SimulatedEngine engine(options);
  size_t added = 0, cancelled = 0;
  for (int round = 0; round < 60; ++round) {
    const int64_t samples = between(1, 9);
    if (engine.scheduler().HasRoom(samples)) {
      const int64_t max_tokens =
          between(2, std::min<int64_t>(options.blocks * kKvBlockTokens, 160));
      engine.AddGroup(between(1, max_tokens - 1), samples, max_tokens);
      added += samples;
    }
    for (int64_t steps = between(0, 12); steps > 0; --steps) engine.Step();
    const std::vector<SequenceId> live = engine.live();
    if (!live.empty() && between(0, 3) == 0) {
      engine.Cancel(live[between(0, static_cast<int64_t>(live.size()) - 1)]);
      ++cancelled;
    }
    if (between(0, 5) == 0) engine.RecomputeAll();
  }
  engine.RunAll();
  EXPECT_EQ(engine.finished().size(), added - cancelled);
}

INSTANTIATE_TEST_SUITE_P(Seeds, SchedulerRandomTest, ::testing::Range(0, 40));

}  // namespace
}  // namespace halfstep
