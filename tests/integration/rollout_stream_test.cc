// SPDX-License-Identifier: Apache-2.0
// The learner's coordinator and real rollout servers in one process, over loopback: what is
// generated is a function of weights, prompt and seed, whoever generates it and whatever happens on
// the way.
#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "common/base/clock.h"
#include "common/base/error_reason.h"
#include "common/metrics/registry.h"
#include "common/model/fingerprint.h"
#include "common/rpc/server.h"
#include "learner_server/rollout_coordination/rollout_coordination_service.h"
#include "learner_server/rollout_coordination/weight_service.h"
#include "rollout_server/rollout_server.h"
#include "tests/rollout_server/fake_learner.h"
#include "tests/rollout_server/tiny_model.h"
#include "tests/testing/paced_rollout.h"

namespace halfstep {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(60);
constexpr int64_t kMaxTokens = 64;
constexpr uint32_t kSamples = 4;

using SampleKey = std::pair<GroupKey, uint32_t>;

class CollectingSink final : public SampleSink {
 public:
  void OnSample(const GroupAssignment& assignment, const std::string& rollout_id,
                Sample sample) override {
    absl::MutexLock lock(&mutex_);
    const auto [it, added] = samples_.try_emplace({assignment.key, sample.index}, sample);
    EXPECT_TRUE(added) << "a sample came twice";
    ++by_rollout_[rollout_id];
  }
  void OnGroupLost(const GroupAssignment&, const absl::Status& why) override {
    ADD_FAILURE() << why;
  }

  std::map<SampleKey, Sample> WaitFor(size_t count, const RolloutCoordinator& coordinator) {
    absl::MutexLock lock(&mutex_);
    auto enough = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return samples_.size() >= count; };
    EXPECT_TRUE(mutex_.AwaitWithTimeout(absl::Condition(&enough), kPatience))
        << samples_.size() << " of " << count << ": " << coordinator.Status().waiting_for;
    return samples_;
  }
  std::map<std::string, int> by_rollout() const {
    absl::MutexLock lock(&mutex_);
    return by_rollout_;
  }

 private:
  mutable absl::Mutex mutex_;
  std::map<SampleKey, Sample> samples_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, int> by_rollout_ ABSL_GUARDED_BY(mutex_);
};

// What a learner has of rollouts: coordinator, services, server.
class LearnerSide {
 public:
  explicit LearnerSide(const std::string& fingerprint = OwnFingerprint())
      : coordinator(Options(fingerprint), &Clock::Real(), &metrics_) {
    auto server = RpcServer::Start(
        ServerOptions(), {{&attach_service_, v1::RolloutCoordinationService::service_full_name()},
                          {&weight_service_, v1::WeightService::service_full_name()}});
    EXPECT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }
  ~LearnerSide() {
    coordinator.EndJob();
    coordinator.Drain();
    server_->Stop(absl::Seconds(5));
  }

  std::string address() const { return server_->address(); }

  std::unique_ptr<RolloutServer> StartRollout(const std::string& id) const {
    RolloutServerOptions options;
    options.id = id;
    options.learner.target = address();
    options.threads = 1;
    auto rollout = RolloutServer::Start(std::move(options));
    EXPECT_TRUE(rollout.ok()) << rollout.status();
    return *std::move(rollout);
  }

  void BeginJob(uint64_t epoch, bool free_versions = false) {
    RolloutJob job;
    job.epoch = epoch;
    for (const BundleFile& file : TinyModelFiles()) job.files.push_back({file.name, file.contents});
    job.vocab_size = TinyConfig().vocab_size;
    job.max_sequence_tokens = kMaxTokens;
    job.max_sequences = 32;
    job.free_versions = free_versions;
    epoch_ = epoch;
    coordinator.BeginJob(job, &sink);
  }
  void Publish(uint64_t version) {
    const auto master = UnpackedTinyWeights(Seed(version), DType::kFloat32);
    OwnedTensor rope("rope", DType::kFloat32, {kMaxTokens, 2, TinyConfig().head_dim / 2});
    FillRopeTable(TinyConfig().rope, rope);
    coordinator.Publish(WeightSet::Create(version, master->parameters(), DType::kFloat16, rope));
  }
  // Training groups [first, first + count).
  void Assign(uint64_t first, uint64_t count, uint64_t version, bool free = false) {
    std::vector<GroupAssignment> groups;
    for (uint64_t ordinal = first; ordinal < first + count; ++ordinal) {
      GroupAssignment group;
      group.job_epoch = epoch_;
      group.key = {Purpose::kTrain, ordinal};
      group.prompt = Prompt(ordinal);
      group.samples = kSamples;
      group.sampling.max_new_tokens = 24;
      group.seed = 5;
      group.version = version;
      group.free = free;
      group.deadline = absl::Now() + kPatience;
      groups.push_back(std::move(group));
    }
    coordinator.Assign(std::move(groups));
  }
  // The coordinator has no event for this, so it is asked again and again.
  void AwaitServing(int rollouts) const {
    const absl::Time deadline = absl::Now() + kPatience;
    while (coordinator.Status().rollouts_serving < rollouts && absl::Now() < deadline) {
      absl::SleepFor(absl::Milliseconds(1));
    }
    ASSERT_EQ(coordinator.Status().rollouts_serving, rollouts) << coordinator.Status().waiting_for;
  }
  std::map<SampleKey, Sample> WaitFor(uint64_t groups) {
    return sink.WaitFor(groups * kSamples, coordinator);
  }

  static std::string OwnFingerprint() {
    Workspace workspace;
    ExecContext ctx;
    ctx.workspace = &workspace;
    return NumericsFingerprint(ctx);
  }
  static uint32_t Seed(uint64_t version) { return static_cast<uint32_t>(version + 40); }
  static std::vector<int32_t> Prompt(uint64_t ordinal) {
    return {3, static_cast<int32_t>(ordinal % 60 + 2), 9};
  }

 private:
  static CoordinatorOptions Options(const std::string& fingerprint) {
    CoordinatorOptions options;
    options.incarnation = "learner";
    options.numerics_fingerprint = fingerprint;
    return options;
  }

  Registry registry_;
  LearnerMetrics metrics_{registry_};
  uint64_t epoch_ = 0;

 public:
  CollectingSink sink;
  RolloutCoordinator coordinator;

 private:
  RolloutCoordinationService attach_service_{&coordinator};
  WeightService weight_service_{&coordinator};
  std::unique_ptr<RpcServer> server_;
};

void ExpectSame(const std::map<SampleKey, Sample>& a, const std::map<SampleKey, Sample>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (const auto& [key, sample] : a) {
    const Sample& other = b.at(key);
    EXPECT_EQ(sample.tokens, other.tokens);
    EXPECT_EQ(sample.versions, other.versions);
    ASSERT_EQ(sample.log_probs.size(), other.log_probs.size());
    EXPECT_EQ(std::memcmp(sample.log_probs.data(), other.log_probs.data(),
                          sample.log_probs.size() * sizeof(float)),
              0);
  }
}

// Two batches, each by its own version, the second one assigned when the first is complete.
std::map<SampleKey, Sample> TwoBatches(LearnerSide& learner, int rollouts) {
  learner.Publish(0);
  learner.AwaitServing(rollouts);
  learner.Assign(0, 24, 0);
  learner.WaitFor(24);
  learner.Publish(1);
  learner.Assign(24, 24, 1);
  return learner.WaitFor(48);
}

std::map<SampleKey, Sample> WithOneRollout() {
  LearnerSide learner;
  const auto rollout = learner.StartRollout("a");
  learner.BeginJob(1);
  return TwoBatches(learner, 1);
}

TEST(RolloutStreamTest, TheNumberOfRolloutsChangesNothing) {
  LearnerSide learner;
  std::vector<std::unique_ptr<RolloutServer>> rollouts;
  for (const char* id : {"a", "b", "c"}) rollouts.push_back(learner.StartRollout(id));
  learner.BeginJob(1);
  ExpectSame(WithOneRollout(), TwoBatches(learner, 3));
  const std::map<std::string, int> by_rollout = learner.sink.by_rollout();
  for (const char* id : {"a", "b", "c"}) {
    EXPECT_GE(by_rollout.at(id), static_cast<int>(48 * kSamples / 3 / 5)) << id;
  }
}

TEST(RolloutStreamTest, LogProbsAreTheLearnersBitForBit) {
  for (const auto& [key, sample] : WithOneRollout()) {
    const uint64_t version = key.first.ordinal < 24 ? 0 : 1;
    const auto weights = TinyWeights(LearnerSide::Seed(version));
    const std::vector<float> expected =
        LearnerLogProbs(*weights, {{LearnerSide::Prompt(key.first.ordinal), sample.tokens}}, 1)[0];
    ASSERT_EQ(expected.size(), sample.log_probs.size());
    EXPECT_EQ(
        std::memcmp(expected.data(), sample.log_probs.data(), expected.size() * sizeof(float)), 0);
  }
}

TEST(RolloutStreamTest, AKilledAndRestartedRolloutChangesNothing) {
  LearnerSide learner;
  auto a = learner.StartRollout("a");
  const auto b = learner.StartRollout("b");
  learner.BeginJob(1);
  learner.Publish(0);
  learner.AwaitServing(2);
  learner.Assign(0, 424, 0);
  a.reset();  // without draining
  a = learner.StartRollout("a");
  const std::map<SampleKey, Sample> got = learner.WaitFor(424);
  EXPECT_GT(learner.coordinator.Status().groups_reassigned, 0);

  LearnerSide calm;
  const auto alone = calm.StartRollout("x");
  calm.BeginJob(1);
  calm.Publish(0);
  calm.Assign(0, 424, 0);
  ExpectSame(calm.WaitFor(424), got);
}

TEST(RolloutStreamTest, TwoVersionsInFlight) {
  LearnerSide learner;
  const auto a = learner.StartRollout("a");
  const auto b = learner.StartRollout("b");
  learner.BeginJob(1);
  learner.Publish(0);
  learner.Assign(0, 24, 0);
  learner.Publish(1);
  learner.Assign(24, 24, 1);
  const std::map<SampleKey, Sample> got = learner.WaitFor(48);
  for (const auto& [key, sample] : got) {
    const uint64_t version = key.first.ordinal < 24 ? 0 : 1;
    EXPECT_EQ(sample.versions,
              (std::vector<VersionRun>{{version, static_cast<uint32_t>(sample.tokens.size())}}));
  }
  ExpectSame(WithOneRollout(), got);
}

// Every engine stands still in the middle of responses until it has the next weights.
TEST(RolloutStreamTest, FreeGroupsGoOnUnderNewWeightsAndEachTokenIsOneOfItsVersion) {
  constexpr int64_t kSteps = 10;  // with each version: fewer than a response has tokens
  LearnerSide learner;
  PacedRollout a({.id = "a", .learner = learner.address(), .steps = kSteps});
  PacedRollout b({.id = "b", .learner = learner.address(), .steps = kSteps});
  a.AwaitAttached();
  b.AwaitAttached();
  learner.BeginJob(1, /*free_versions=*/true);
  learner.Publish(0);
  learner.AwaitServing(2);
  learner.Assign(0, 40, 0, /*free=*/true);
  for (uint64_t version = 1; version <= 3; ++version) {
    for (PacedRollout* rollout : {&a, &b}) rollout->AwaitStill();
    learner.Publish(version);
    learner.coordinator.ReleaseWeightsBelow(version - 1);
    for (PacedRollout* rollout : {&a, &b}) {
      rollout->AwaitWeights(version);
      rollout->AllowSteps(kSteps);
    }
  }
  for (PacedRollout* rollout : {&a, &b}) rollout->AllowAllSteps();
  const std::map<SampleKey, Sample> got = learner.WaitFor(40);
  std::vector<std::shared_ptr<const ModelWeights>> weights;
  for (uint64_t version = 0; version <= 3; ++version) {
    weights.push_back(TinyWeights(LearnerSide::Seed(version)));
  }
  std::set<std::pair<uint64_t, uint64_t>> swaps;  // in the middle of a response
  for (const auto& [key, sample] : got) {
    for (size_t i = 1; i < sample.versions.size(); ++i) {
      swaps.emplace(sample.versions[i - 1].version, sample.versions[i].version);
    }
    size_t begin = 0;
    for (const VersionRun& run : sample.versions) {
      const std::vector<float> expected =
          LearnerLogProbs(*weights.at(run.version),
                          {{LearnerSide::Prompt(key.first.ordinal), sample.tokens}}, 1)[0];
      EXPECT_EQ(std::memcmp(expected.data() + begin, sample.log_probs.data() + begin,
                            run.count * sizeof(float)),
                0);
      begin += run.count;
    }
    ASSERT_EQ(begin, sample.tokens.size());
  }
  EXPECT_EQ(swaps, (std::set<std::pair<uint64_t, uint64_t>>{{0, 1}, {1, 2}, {2, 3}}));
  EXPECT_EQ(learner.coordinator.Status().groups_reassigned, 0);
}

TEST(RolloutStreamTest, ARolloutThatLeavesFinishesWhatItHolds) {
  LearnerSide learner;
  const auto a = learner.StartRollout("a");
  const auto b = learner.StartRollout("b");
  learner.BeginJob(1);
  learner.Publish(0);
  learner.AwaitServing(2);
  learner.Assign(0, 48, 0);
  a->Stop(absl::Now() + kPatience);
  learner.WaitFor(48);
  EXPECT_EQ(learner.coordinator.Status().groups_reassigned, 0);
}

TEST(RolloutStreamTest, TheNextJobRunsOnTheSameRollouts) {
  LearnerSide learner;
  const auto a = learner.StartRollout("a");
  learner.BeginJob(1);
  learner.Publish(0);
  learner.Assign(0, 60, 0);
  learner.WaitFor(1);
  learner.coordinator.EndJob();
  const size_t before = learner.WaitFor(0).size();
  learner.BeginJob(2);
  learner.Publish(7);
  learner.Assign(1000, 200, 7);
  EXPECT_EQ(learner.sink.WaitFor(before + 200 * kSamples, learner.coordinator).size(),
            before + 200 * kSamples);
}

TEST(RolloutStreamTest, ARolloutOnAnotherBackendIsRefusedAndSaysWhy) {
  LearnerSide learner("bits of another machine");
  learner.BeginJob(1);
  const auto a = learner.StartRollout("a");
  // It attaches again and again; there is no event to wait for.
  const absl::Time deadline = absl::Now() + kPatience;
  absl::Status why = a->ready();
  while (ReasonOf(why) != "NUMERICS_FINGERPRINT_MISMATCH" && absl::Now() < deadline) {
    absl::SleepFor(absl::Milliseconds(1));
    why = a->ready();
  }
  EXPECT_EQ(ReasonOf(why), "NUMERICS_FINGERPRINT_MISMATCH") << why;
  EXPECT_EQ(learner.coordinator.Status().rollouts_serving, 0);
}

}  // namespace
}  // namespace halfstep
