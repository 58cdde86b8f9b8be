// SPDX-License-Identifier: Apache-2.0
// A run with batch.max_lag over the coordinator and two real rollouts, one of which dies in the
// middle of its groups.
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <variant>
#include <vector>

#include "absl/synchronization/notification.h"
#include "common/base/clock.h"
#include "common/model/fingerprint.h"
#include "common/model/kv_cache.h"
#include "common/rpc/server.h"
#include "kernels/workspace.h"
#include "learner_server/rollout_coordination/rollout_coordination_service.h"
#include "learner_server/rollout_coordination/weight_service.h"
#include "learner_server/training/replay.h"
#include "learner_server/training/replay_log.h"
#include "tests/learner_server/tiny_job.h"
#include "tests/testing/paced_rollout.h"

namespace halfstep {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(60);

constexpr int64_t kJobSteps = 6;
constexpr int64_t kPrompts = 4;  // of a batch
constexpr int64_t kSamples = 4;  // of a group
constexpr int64_t kMaxLag = 2;
constexpr int64_t kTokens = 16;  // of a response of a model that has hardly learned to end them

// A learner, and a base model to train.
class FreeRolloutDeathTest : public testing::Test {
 protected:
  void SetUp() override {
    TinyLearner sft(root(), nullptr);
    ASSERT_TRUE(sft.Run("sft", TinyWorkplace::SupervisedSpec(2)).ok());
    Workspace workspace;
    ExecContext ctx;
    ctx.workspace = &workspace;
    CoordinatorOptions options;
    options.incarnation = "learner";
    options.numerics_fingerprint = NumericsFingerprint(ctx);
    coordinator_ = std::make_unique<RolloutCoordinator>(options, &Clock::Real(), &metrics_);
    attach_ = std::make_unique<RolloutCoordinationService>(coordinator_.get());
    weights_ = std::make_unique<WeightService>(coordinator_.get());
    learner_ = std::make_unique<TinyLearner>(root(), coordinator_.get());
    auto server = RpcServer::Start(
        ServerOptions(), {{attach_.get(), v1::RolloutCoordinationService::service_full_name()},
                          {weights_.get(), v1::WeightService::service_full_name()}});
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }

  void TearDown() override {
    coordinator_->Drain();
    server_->Stop(absl::Seconds(5));
  }

  std::string root() const { return workplace_.root().path(); }

  // A cache for three responses: the fourth of a group begins when the others have ended.
  size_t CacheOfThree() const {
    const std::string path = root() + "/start/config.json";
    const auto config = ParseModelConfig(ReadText(path), path);
    EXPECT_TRUE(config.ok()) << config.status();
    return 3 * KvCache::BytesPerBlock(*config, DType::kFloat16);
  }

  static v1::TrainingJobSpec Spec() {
    v1::TrainingJobSpec spec = TinyWorkplace::RlSpec("run", kJobSteps);
    spec.mutable_sampling()->set_max_new_tokens(kTokens);
    spec.mutable_batch()->set_prompts(kPrompts);
    spec.mutable_batch()->set_samples(kSamples);
    spec.mutable_batch()->clear_lag();
    spec.mutable_batch()->set_max_lag(kMaxLag);
    spec.mutable_batch()->set_micro_batch_tokens(256);
    spec.mutable_reward()->set_type(v1::REWARD_TYPE_REGEX);
    spec.mutable_reward()->set_pattern("[a-m]");
    ResolveSpec("run", &spec);
    return spec;
  }

  std::vector<ReplayBatch> ReadBatches() const {
    std::vector<ReplayBatch> batches;
    auto log = ReplayLogReader::Open(root() + "/run/replay.log");
    EXPECT_TRUE(log.ok()) << log.status();
    for (;;) {
      auto record = log->Next();
      EXPECT_TRUE(record.ok()) << record.status();
      if (!record.ok() || std::holds_alternative<std::monostate>(*record)) return batches;
      if (auto* batch = std::get_if<ReplayBatch>(&*record)) batches.push_back(std::move(*batch));
    }
  }

  TinyWorkplace workplace_;
  Registry registry_;
  LearnerMetrics metrics_{registry_};
  std::unique_ptr<RolloutCoordinator> coordinator_;
  std::unique_ptr<RolloutCoordinationService> attach_;
  std::unique_ptr<WeightService> weights_;
  std::unique_ptr<TinyLearner> learner_;
  std::unique_ptr<RpcServer> server_;
};

TEST_F(FreeRolloutDeathTest, EveryGroupIsTrainedOnceAndIsOneDrawOfOneRollout) {
  // Stands still when it has delivered three responses of a group and is in its fourth, until it
  // dies.
  auto dying =
      std::make_unique<PacedRollout>(PacedRollout::Options{.id = "dying",
                                                           .learner = server_->address(),
                                                           .steps = kTokens + 4,
                                                           .kv_cache_bytes = CacheOfThree()});
  // Completes nothing before that, so that both get their share of the first groups.
  PacedRollout other({.id = "other", .learner = server_->address(), .steps = 1});
  dying->AwaitAttached();
  other.AwaitAttached();
  absl::Notification two_steps;
  learner_->control().OnStep([&](int64_t step) {
    if (step == 2) two_steps.Notify();
  });
  std::thread death([&] {
    dying->AwaitStill();
    dying->AwaitAcknowledged(1);
    other.AllowAllSteps();
    // What is generated again is of later versions than what it delivered.
    EXPECT_TRUE(two_steps.WaitForNotificationWithTimeout(kPatience));
    dying = nullptr;
  });
  const auto result = learner_->Run("run", Spec());
  death.join();
  ASSERT_TRUE(result.ok()) << result.status();
  ASSERT_EQ(result->outcome, RunOutcome::kSucceeded) << result->message;

  std::map<std::pair<uint64_t, uint32_t>, int> times;  // by group and index
  int64_t tokens = 0, stale = 0;
  for (const ReplayBatch& batch : ReadBatches()) {
    stale += batch.stale_samples;
    tokens += batch.stale_tokens;
    for (const Trajectory& trajectory : batch.trajectories) {
      ++times[{trajectory.key.ordinal, trajectory.sample.index}];
      tokens += static_cast<int64_t>(trajectory.sample.tokens.size());
      for (const VersionRun& run : trajectory.sample.versions) {
        EXPECT_LE(run.version, batch.version);
        EXPECT_LE(batch.version - run.version, static_cast<uint64_t>(kMaxLag));
      }
    }
  }
  constexpr int64_t kTrained = kJobSteps * kPrompts * kSamples;
  EXPECT_EQ(times.size(), static_cast<size_t>(kTrained));
  for (const auto& [sample, count] : times) {
    EXPECT_LT(sample.first, static_cast<uint64_t>(kJobSteps * kPrompts));
    EXPECT_EQ(count, 1) << "sample " << sample.second << " of group " << sample.first;
  }

  // The books: what the dead one delivered of a group that it did not complete is dropped by the
  // coordinator; everything else reached the trainer, each sample once.
  const double abandoned = metrics_.samples_dropped["abandoned"].Value();
  EXPECT_GT(abandoned, 0) << "it died in the middle of a group";
  EXPECT_EQ(metrics_.samples.Value(), abandoned);
  LearnerMetrics& trainer = learner_->metrics();
  EXPECT_EQ(trainer.samples.Value(), kTrained + stale);
  EXPECT_EQ(trainer.samples_dropped["stale"].Value(), stale);
  EXPECT_EQ(trainer.samples_dropped["abandoned"].Value(), 0);
  EXPECT_EQ(trainer.samples_trained.Value(), kTrained);
  const v1::RunSummary& summary = learner_->summary();
  EXPECT_EQ(summary.tokens_generated(), tokens);
  EXPECT_GT(summary.groups_reassigned(), 0);
  EXPECT_EQ(summary.groups_reassigned(), metrics_.groups_reassigned.Value());
  // The dead one completed no group, so nothing of it is trained on.
  EXPECT_EQ(summary.samples_by_rollout().size(), 1u);
  EXPECT_EQ(summary.samples_by_rollout().at("other"), kTrained);
  EXPECT_EQ(summary.max_abs_logprob_diff(), 0);

  const auto replay =
      ReplayRun({.run = root() + "/run", .root = root(), .threads = 1, .go_on = {}});
  ASSERT_TRUE(replay.ok()) << replay.status();
  EXPECT_TRUE(replay->equal) << replay->what << " after step " << replay->differs_after;
  EXPECT_EQ(replay->steps, kJobSteps);
  EXPECT_EQ(replay->state_digest, summary.state_digest());
}

}  // namespace
}  // namespace halfstep
