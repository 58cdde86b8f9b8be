// SPDX-License-Identifier: Apache-2.0
// Joins, kills, restarts, silence and broken streams at random moments, in every state: every
// sample is delivered exactly once and the weights are always the assigned ones.
#include <algorithm>
#include <random>

#include "tests/learner_server/rollout_coordination/coordinator_fixture.h"

namespace halfstep {
namespace {

class RolloutRandomTest : public CoordinatorFixture, public ::testing::WithParamInterface<int> {
 protected:
  int Draw(int below) { return std::uniform_int_distribution<int>(0, below - 1)(random); }

  // One rollout does one thing.
  void Act(FakeRollout& rollout) {
    const int what = Draw(100);
    if (what < 2) {
      rollout.Restart();
    } else if (what < 3) {
      rollout.Close();  // and is gone until it attaches again
      dead.insert(&rollout);
    } else if (what < 4) {
      rollout.Attach();  // the stream broke; the learner has not noticed
    } else if (what < 30 && !rollout.groups.empty()) {
      const size_t skip = static_cast<size_t>(Draw(static_cast<int>(rollout.groups.size())));
      rollout.Finish(std::next(rollout.groups.begin(), static_cast<std::ptrdiff_t>(skip))->first);
    } else if (what < 40 && !rollout.groups.empty()) {
      rollout.SendSample(rollout.groups.begin()->first, static_cast<uint32_t>(Draw(2)));
    } else if (const v1::LearnerMessage* message = rollout.Next()) {
      rollout.Obey(v1::LearnerMessage(*message));
    }
  }

  // Six batches of eight groups with two samples each, over rollouts that act at random.
  void Play(bool free) {
    CoordinatorOptions options;
    options.max_reassignments = 1000;
    NewCoordinator(options);
    const int rollout_count = 1 + Draw(4);
    for (int i = 0; i < rollout_count; ++i) Add(absl::StrCat("r", i), 1 + Draw(6));
    if (free) {
      BeginFreeJob();
    } else {
      BeginJob(Draw(2) == 0 ? Profile::kBitwise : Profile::kFast);
    }

    constexpr uint64_t kBatch = 8;
    constexpr uint64_t kBatches = 6;
    const uint64_t lag = static_cast<uint64_t>(Draw(3));
    uint64_t batches_assigned = 0;
    uint64_t version = 0;
    uint32_t complete = 0;  // samples without a gap before them
    Publish(0);
    for (int turn = 0; turn < 400000; ++turn) {
      // The trainer: a batch is assigned once the version of the one `lag` + 1 before it is out.
      while (sink.samples.contains({Train(complete / 2), complete % 2})) ++complete;
      if (version < complete / (2 * kBatch) && version + 1 < kBatches) {
        Publish(++version);
        if (version > lag + 1) coordinator->ReleaseWeightsBelow(version - lag - 1);
      }
      if (batches_assigned < kBatches && batches_assigned <= version + lag) {
        const uint64_t needs = batches_assigned > lag ? batches_assigned - lag : 0;
        const uint64_t first = batches_assigned * kBatch, last = first + kBatch - 1;
        if (free) {
          AssignFree(first, last, needs);
        } else {
          Assign(first, last, needs);
        }
        ++batches_assigned;
      }
      if (sink.samples.size() == 2 * kBatch * kBatches) break;
      FakeRollout& rollout = rollouts[static_cast<size_t>(Draw(rollout_count))];
      if (!dead.contains(&rollout)) {
        Act(rollout);
      } else if (Draw(10) == 0) {
        dead.erase(&rollout);
        rollout.Restart();
      }
      if (Draw(10) == 0) {
        clock.Advance(absl::Milliseconds(Draw(1500)));
        coordinator->Tick();
        // One closed by the learner attaches again.
        for (FakeRollout& other : rollouts) {
          if (!dead.contains(&other) && other.outbox->closed) other.Attach();
        }
      }
    }
    EXPECT_TRUE(sink.lost.empty());
    ExpectAllOnce(kBatch * kBatches);
    for (const FakeRollout& rollout : rollouts) {
      EXPECT_FALSE(rollout.wrong_version);
      EXPECT_TRUE(free || !rollout.committed_while_busy);
    }
    EXPECT_THAT(coordinator->Status().waiting_for, ::testing::Not(::testing::HasSubstr("groups")));
  }

  std::mt19937 random{static_cast<unsigned>(GetParam())};
  std::set<FakeRollout*> dead;
};

TEST_P(RolloutRandomTest, DeliversEverySampleExactlyOnce) { Play(/*free=*/false); }

TEST_P(RolloutRandomTest, DeliversEveryFreeGroupOnceAndOfOneStream) {
  Play(/*free=*/true);
  for (const auto& [key, streams] : sink.streams) {
    EXPECT_EQ(streams.size(), 1u) << "group " << key.ordinal;
  }
}

INSTANTIATE_TEST_SUITE_P(Seeds, RolloutRandomTest, ::testing::Range(0, 300));

}  // namespace
}  // namespace halfstep
