// SPDX-License-Identifier: Apache-2.0
// A coordinator on a clock that stands still, its rollouts and its sink.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <deque>
#include <memory>
#include <string>

#include "common/metrics/learner_metrics.h"
#include "common/metrics/registry.h"
#include "tests/learner_server/rollout_coordination/fake_rollout.h"
#include "tests/testing/fake_clock.h"

namespace halfstep {

class CoordinatorFixture : public ::testing::Test {
 protected:
  CoordinatorFixture() { NewCoordinator(CoordinatorOptions()); }

  void NewCoordinator(CoordinatorOptions options) {
    options.incarnation = "learner-1";
    options.numerics_fingerprint = "bits";
    coordinator = std::make_unique<RolloutCoordinator>(options, &clock, &metrics);
  }

  FakeRollout& Add(const std::string& id, uint64_t capacity = 1000) {
    FakeRollout& rollout =
        rollouts.emplace_back(coordinator.get(), FakeRollout::Options{id, "1", "bits", capacity});
    rollout.Attach();
    return rollout;
  }
  void BeginJob(Profile profile = Profile::kBitwise) {
    coordinator->BeginJob(TinyJob(profile), &sink);
  }
  void BeginFreeJob() {
    RolloutJob job = TinyJob();
    job.free_versions = true;
    coordinator->BeginJob(job, &sink);
  }
  void Publish(uint64_t version) { coordinator->Publish(TinyWeights(version)); }
  // Training groups [first, last].
  void Assign(uint64_t first, uint64_t last, uint64_t version, uint32_t samples = 2) {
    AssignAs(first, last, TinyGroup(Train(first), version, samples));
  }
  // The same, free: a version from `lowest` on may begin them.
  void AssignFree(uint64_t first, uint64_t last, uint64_t lowest, uint32_t samples = 2) {
    GroupAssignment like = TinyGroup(Train(first), lowest, samples);
    like.free = true;
    AssignAs(first, last, like);
  }
  // Every rollout answers until nobody has anything left to answer.
  void Settle() {
    size_t before = 0, after = 1;
    while (before != after) {
      before = Sent();
      for (FakeRollout& rollout : rollouts) rollout.Obey();
      after = Sent();
    }
  }
  size_t Sent() const {
    size_t sent = 0;
    for (const FakeRollout& rollout : rollouts) sent += rollout.outbox->messages.size();
    return sent;
  }
  // Time passes while everybody is heard.
  void Pass(absl::Duration duration) {
    for (; duration > absl::ZeroDuration(); duration -= absl::Seconds(1)) {
      clock.Advance(std::min(duration, absl::Seconds(1)));
      for (FakeRollout& rollout : rollouts) rollout.SendHeartbeat();
      coordinator->Tick();
    }
    Settle();
  }
  double Dropped(const std::string& reason) { return metrics.samples_dropped[reason].Value(); }
  void ExpectAllOnce(uint64_t groups, uint32_t samples = 2) {
    EXPECT_EQ(sink.samples.size(), groups * samples);
    for (const auto& [key, count] : sink.samples) EXPECT_EQ(count, 1);
  }

  FakeClock clock;
  Registry registry;
  LearnerMetrics metrics{registry};
  RecordingSink sink;
  std::unique_ptr<RolloutCoordinator> coordinator;
  std::deque<FakeRollout> rollouts;

 private:
  void AssignAs(uint64_t first, uint64_t last, GroupAssignment like) {
    like.deadline = clock.Now() + absl::Seconds(60);
    std::vector<GroupAssignment> groups;
    for (uint64_t i = first; i <= last; ++i) {
      like.key = Train(i);
      groups.push_back(like);
    }
    coordinator->Assign(std::move(groups));
  }
};

}  // namespace halfstep
