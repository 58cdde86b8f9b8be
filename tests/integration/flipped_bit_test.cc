// SPDX-License-Identifier: Apache-2.0
// Whole runs whose rollout server is sent weights with one flipped bit: it never generates with
// them. What would happen if it did: TrainingJobRunnerTest.OneFlippedBitInTheWeightsOfARollout...
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "common/base/clock.h"
#include "common/model/fingerprint.h"
#include "common/rpc/server.h"
#include "halfstep/v1/weights.grpc.pb.h"
#include "kernels/workspace.h"
#include "learner_server/rollout_coordination/rollout_coordination_service.h"
#include "learner_server/rollout_coordination/weight_service.h"
#include "rollout_server/rollout_server.h"
#include "tests/learner_server/tiny_job.h"

namespace halfstep {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

// Writes one message and ends.
template <class Chunk>
class OneChunk final : public grpc::ServerWriteReactor<Chunk> {
 public:
  explicit OneChunk(Chunk chunk) : chunk_(std::move(chunk)) {
    this->StartWriteAndFinish(&chunk_, grpc::WriteOptions(), grpc::Status::OK);
  }
  void OnDone() override { delete this; }

 private:
  const Chunk chunk_;
};

// Serves a coordinator's weights; in the first `flips` fetches one bit is another.
class FlippingWeightService final : public v1::WeightService::CallbackService {
 public:
  FlippingWeightService(const RolloutCoordinator* coordinator, int flips)
      : real_(coordinator), coordinator_(coordinator), flips_(flips) {}

  // Called at the start of each fetch with its number, from 1. Set before the first.
  std::function<void(int)> on_fetch;
  int fetches() const { return fetches_; }

  grpc::ServerWriteReactor<v1::WeightChunk>* FetchWeights(
      grpc::CallbackServerContext* context, const v1::FetchWeightsRequest* request) override {
    const int number = ++fetches_;
    if (on_fetch) on_fetch(number);
    const auto set = coordinator_->FindWeights(request->job_epoch(),
                                               {request->version(), request->manifest_digest()});
    if (set == nullptr || number > flips_) return real_.FetchWeights(context, request);
    v1::WeightChunk chunk;
    chunk.set_offset(request->offset());
    chunk.set_data(set->bytes().data() + request->offset(),
                   set->bytes().size() - request->offset());
    char& byte = chunk.mutable_data()->at(chunk.data().size() / 2);
    byte = static_cast<char>(byte ^ 1);
    return new OneChunk<v1::WeightChunk>(std::move(chunk));
  }

  grpc::ServerWriteReactor<v1::ModelFileChunk>* FetchModel(
      grpc::CallbackServerContext* context, const v1::FetchModelRequest* request) override {
    return real_.FetchModel(context, request);
  }

 private:
  WeightService real_;
  const RolloutCoordinator* const coordinator_;
  const int flips_;
  std::atomic<int> fetches_ = 0;
};

// A learner with one rollout server, and a base model to train.
class FlippedBitTest : public testing::Test {
 protected:
  void Start(int flips) {
    TinyLearner sft(workplace_.root().path(), nullptr);
    ASSERT_TRUE(sft.Run("sft", TinyWorkplace::SupervisedSpec(2)).ok());
    CoordinatorOptions options;
    options.incarnation = "learner";
    options.numerics_fingerprint = OwnFingerprint();
    coordinator_ = std::make_unique<RolloutCoordinator>(options, &Clock::Real(), &metrics_);
    attach_ = std::make_unique<RolloutCoordinationService>(coordinator_.get());
    weights_ = std::make_unique<FlippingWeightService>(coordinator_.get(), flips);
    learner_ = std::make_unique<TinyLearner>(workplace_.root().path(), coordinator_.get());
    auto server = RpcServer::Start(
        ServerOptions(), {{attach_.get(), v1::RolloutCoordinationService::service_full_name()},
                          {weights_.get(), v1::WeightService::service_full_name()}});
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    RolloutServerOptions rollout;
    rollout.id = "a";
    rollout.learner.target = server_->address();
    rollout.threads = 1;
    auto started = RolloutServer::Start(std::move(rollout));
    ASSERT_TRUE(started.ok()) << started.status();
    rollout_ = *std::move(started);
  }

  void TearDown() override {
    rollout_ = nullptr;
    coordinator_->Drain();
    server_->Stop(absl::Seconds(5));
  }

  static std::string OwnFingerprint() {
    Workspace workspace;
    ExecContext ctx;
    ctx.workspace = &workspace;
    return NumericsFingerprint(ctx);
  }

  TinyWorkplace workplace_;
  Registry registry_;
  LearnerMetrics metrics_{registry_};
  std::unique_ptr<RolloutCoordinator> coordinator_;
  std::unique_ptr<RolloutCoordinationService> attach_;
  std::unique_ptr<FlippingWeightService> weights_;
  std::unique_ptr<TinyLearner> learner_;
  std::unique_ptr<RpcServer> server_;
  std::unique_ptr<RolloutServer> rollout_;
};

TEST_F(FlippedBitTest, FlippedOnceTheSetIsFetchedAgainAndTheRunIsExact) {
  Start(/*flips=*/1);
  const auto result = learner_->Run("rl", TinyWorkplace::RlSpec("rl", 2));
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->outcome, RunOutcome::kSucceeded);
  EXPECT_GT(weights_->fetches(), 1);
  EXPECT_EQ(learner_->summary().max_abs_logprob_diff(), 0);
  EXPECT_GT(learner_->summary().tokens_compared(), 0);
  EXPECT_EQ(learner_->summary().tokens_compared(), learner_->summary().tokens_trained());
}

TEST_F(FlippedBitTest, FlippedEveryTimeTheRolloutIsRefusedAndNothingIsTrainedOn) {
  Start(/*flips=*/1'000'000);
  std::string waiting_for;
  weights_->on_fetch = [this, &waiting_for](int number) {
    if (number == 3) waiting_for = coordinator_->Status().waiting_for;
    // Only a rollout whose stream was ended for it comes a fourth time.
    if (number == 4) learner_->control().Request(RunRequest::kPause);
  };
  const auto result = learner_->Run("rl", TinyWorkplace::RlSpec("rl", 2));
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->outcome, RunOutcome::kPaused);
  EXPECT_THAT(waiting_for, HasSubstr("failed with WEIGHTS_DIGEST_MISMATCH: tensor '"));
  EXPECT_THAT(waiting_for, HasSubstr("arrived with digest"));
  EXPECT_EQ(learner_->control().step(), 0);
  EXPECT_EQ(learner_->summary().tokens_trained(), 0);
  EXPECT_THAT(learner_->summary().samples_by_rollout(), IsEmpty());
}

}  // namespace
}  // namespace halfstep
