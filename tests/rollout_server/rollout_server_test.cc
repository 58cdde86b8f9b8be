// SPDX-License-Identifier: Apache-2.0
#include "rollout_server/rollout_server.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <thread>
#include <utility>

#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "common/base/error_reason.h"
#include "common/rpc/endpoint.h"
#include "common/trajectory/proto_convert.h"
#include "common/weight_sync/weight_proto.h"
#include "halfstep/v1/rollout_coordination.pb.h"
#include "rollout_server/generation/generate.h"
#include "tests/rollout_server/fake_learner.h"
#include "tests/rollout_server/tiny_model.h"
#include "tests/testing/http_client.h"

namespace halfstep {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr absl::Duration kPatience = absl::Seconds(60);
constexpr int64_t kMaxTokens = 64;

std::unique_ptr<RolloutServer> StartServer(const FakeLearner& learner, size_t kv_cache_bytes = 0) {
  RolloutServerOptions options;
  options.id = "rollout-a";
  options.learner.target = learner.address();
  options.threads = 1;
  options.kv_cache_bytes = kv_cache_bytes;
  auto server = RolloutServer::Start(std::move(options));
  EXPECT_TRUE(server.ok()) << server.status();
  return *std::move(server);
}

// A learner with a rollout server that is attached to it.
class RolloutServerTest : public ::testing::Test {
 protected:
  RolloutServerTest() : learner_(std::make_unique<FakeLearner>()) {
    for (uint64_t version : {0, 1}) {
      learner_->AddWeights(weights_[version] = MakeWeights(version));
    }
    server_ = StartServer(*learner_);
    learner_->Welcome();
  }

  static std::shared_ptr<const WeightSet> MakeWeights(uint64_t version) {
    const auto master = UnpackedTinyWeights(Seed(version), DType::kFloat32);
    OwnedTensor rope("rope", DType::kFloat32, {kMaxTokens, 2, TinyConfig().head_dim / 2});
    FillRopeTable(TinyConfig().rope, rope);
    return WeightSet::Create(version, master->parameters(), DType::kFloat16, rope);
  }
  static uint32_t Seed(uint64_t version) { return static_cast<uint32_t>(version + 20); }

  static v1::LearnerMessage MakeAssign(uint64_t epoch, uint64_t group, uint64_t version) {
    GroupAssignment assignment;
    assignment.job_epoch = epoch;
    assignment.key = {Purpose::kTrain, group};
    assignment.prompt = {5, 6, static_cast<int32_t>(group % 60 + 2)};
    assignment.samples = 3;
    assignment.sampling.max_new_tokens = 20;
    assignment.seed = 11;
    assignment.version = version;
    v1::LearnerMessage message;
    ToProto(assignment, message.mutable_assign());
    return message;
  }

  // The samples of `group` by index, each acknowledged.
  std::map<uint32_t, Sample> AwaitSamples(uint64_t group, size_t count) {
    std::map<uint32_t, Sample> samples;
    while (samples.size() < count) {
      const v1::RolloutMessage message =
          learner_->Await("Samples", [](const v1::RolloutMessage& m) { return m.has_samples(); });
      if (!message.has_samples()) break;
      for (const v1::Sample& in : message.samples().samples()) {
        EXPECT_EQ(in.group(), group);
        const auto sample = FromProto(in);
        EXPECT_TRUE(sample.ok()) << sample.status();
        if (sample.ok()) samples[sample->sample.index] = sample->sample;
      }
      Acknowledge(message.samples().sequence_number());
    }
    return samples;
  }

  void Acknowledge(uint64_t sequence_number) {
    v1::LearnerMessage ack;
    ack.mutable_ack()->set_sequence_number(sequence_number);
    EXPECT_TRUE(learner_->Send(ack));
  }

  uint64_t AwaitCredit(uint64_t at_least) {
    return learner_
        ->Await("Credit",
                [&](const v1::RolloutMessage& m) {
                  return m.has_credit() && m.credit().total_groups() >= at_least;
                })
        .credit()
        .total_groups();
  }

  v1::RolloutFailure AwaitFailure() {
    return learner_
        ->Await("RolloutFailure", [](const v1::RolloutMessage& m) { return m.has_failure(); })
        .failure();
  }

  // What an engine of this process generates for MakeAssign(_, group, version).
  static std::vector<Sample> Expected(uint64_t group, uint64_t version,
                                      const Fp32Parts& fp32 = {}) {
    EngineOptions options;
    options.config = TinyConfig();
    options.fp32 = fp32;
    options.max_sequence_tokens = kMaxTokens;
    options.max_sequences = 8;
    auto engine = *Engine::Create(options);
    absl::Notification served;
    engine->SetWeights(TinyWeights(Seed(version)), version,
                       [&](const absl::Status&) { served.Notify(); });
    served.WaitForNotification();
    GroupRequest request;
    request.prompt = {5, 6, static_cast<int32_t>(group % 60 + 2)};
    request.samples = 3;
    request.sampling.max_new_tokens = 20;
    request.seed = 11;
    request.domain = SamplingDomain::kTrain;
    request.group = group;
    request.version = version;
    return (*GenerateAll(engine.get(), {request}, absl::Now() + kPatience))[0];
  }

  static void ExpectSame(const std::map<uint32_t, Sample>& got,
                         const std::vector<Sample>& expected) {
    ASSERT_EQ(got.size(), expected.size());
    for (const auto& [index, sample] : got) {
      EXPECT_EQ(sample.tokens, expected[index].tokens);
      ASSERT_EQ(sample.log_probs.size(), expected[index].log_probs.size());
      EXPECT_EQ(std::memcmp(sample.log_probs.data(), expected[index].log_probs.data(),
                            sample.log_probs.size() * sizeof(float)),
                0);
      EXPECT_EQ(sample.versions, expected[index].versions);
    }
  }

  std::map<uint64_t, std::shared_ptr<const WeightSet>> weights_;
  std::unique_ptr<FakeLearner> learner_;
  std::unique_ptr<RolloutServer> server_;
};

TEST(RolloutServerHelloTest, IntroducesItself) {
  FakeLearner learner;
  auto server = StartServer(learner, /*kv_cache_bytes=*/1 << 20);
  EXPECT_FALSE(server->ready().ok());
  const v1::Hello hello = learner.Welcome();
  EXPECT_EQ(hello.rollout_id(), "rollout-a");
  EXPECT_FALSE(hello.incarnation().empty());
  EXPECT_EQ(hello.backend(), "cpu");
  EXPECT_EQ(hello.kv_cache_bytes(), 1u << 20);
  EXPECT_EQ(hello.numerics_fingerprint().size(), 32u);
  EXPECT_EQ(hello.address(), server->grpc_address());
  learner.Await("Heartbeat", [](const v1::RolloutMessage& m) { return m.has_heartbeat(); });
  EXPECT_TRUE(server->ready().ok());
}

TEST(RolloutServerAddressTest, MetricsInPlainTextForOtherMachinesAreRefused) {
  RolloutServerOptions options;
  options.learner.target = "127.0.0.1:1";
  options.threads = 1;
  options.http = "0.0.0.0:0";
  const auto server = RolloutServer::Start(std::move(options));
  EXPECT_EQ(server.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ReasonOf(server.status()), "INSECURE_ADDRESS");
}

TEST_F(RolloutServerTest, GeneratesWithWeightsThatCameOverTheWire) {
  learner_->LoadJob(3);
  const uint64_t credit = AwaitCredit(1);
  learner_->Serve(3, *weights_[0]);
  ASSERT_TRUE(learner_->Send(MakeAssign(3, 40, 0)));
  ExpectSame(AwaitSamples(40, 3), Expected(40, 0));
  EXPECT_EQ(AwaitCredit(credit + 1), credit + 1);

  learner_->Serve(3, *weights_[1]);
  ASSERT_TRUE(learner_->Send(MakeAssign(3, 41, 1)));
  ExpectSame(AwaitSamples(41, 3), Expected(41, 1));
}

TEST_F(RolloutServerTest, KeepsThosePartsInFp32ThatTheJobSays) {
  const std::vector<Sample> plain = Expected(40, 0);
  uint64_t epoch = 2;
  for (const Fp32Parts& fp32 :
       {Fp32Parts{.residual = true, .head = false}, Fp32Parts{.residual = false, .head = true}}) {
    learner_->LoadJob(++epoch, kMaxTokens, fp32);
    learner_->Serve(epoch, *weights_[0]);
    ASSERT_TRUE(learner_->Send(MakeAssign(epoch, 40, 0)));
    const std::vector<Sample> expected = Expected(40, 0, fp32);
    ExpectSame(AwaitSamples(40, 3), expected);
    EXPECT_NE(expected[0].log_probs, plain[0].log_probs);
  }
}

TEST_F(RolloutServerTest, GaugesOfAnEngineEndWithIt) {
  const auto scrape = [this] {
    return AskHttp(ParseEndpoint(server_->http_address())->port, "GET /metrics");
  };
  learner_->LoadJob(3);
  learner_->Serve(3, *weights_[1]);
  EXPECT_THAT(scrape(), HasSubstr("halfstep_rollout_weight_version 1\n"));
  learner_->LoadJob(4, kMaxTokens / 2);  // another size, so another engine
  EXPECT_THAT(scrape(), HasSubstr("halfstep_rollout_weight_version 0\n"));
  EXPECT_THAT(scrape(), HasSubstr("halfstep_rollout_kv_cache_usage_ratio 0\n"));
}

TEST_F(RolloutServerTest, RefusesWeightsOfAnotherDigest) {
  learner_->LoadJob(3);
  learner_->SetFaults({.flip_a_bit = true});
  learner_->SendPrepare(3, *weights_[0]);
  const v1::RolloutFailure failure = AwaitFailure();
  EXPECT_EQ(failure.job_epoch(), 3u);
  EXPECT_EQ(failure.subject(), v1::RolloutFailure::SUBJECT_WEIGHTS);
  EXPECT_EQ(failure.weights().version(), 0u);
  EXPECT_EQ(failure.weights().manifest_digest(), weights_[0]->manifest().manifest_digest);
  EXPECT_EQ(failure.reason(), "WEIGHTS_DIGEST_MISMATCH");
  EXPECT_THAT(failure.message(), HasSubstr("tensor '"));
  EXPECT_THAT(failure.message(), HasSubstr("of version 0 arrived with digest"));
  learner_->Serve(3, *weights_[0]);
  ASSERT_TRUE(learner_->Send(MakeAssign(3, 1, 0)));
  ExpectSame(AwaitSamples(1, 3), Expected(1, 0));
}

TEST_F(RolloutServerTest, ResumesATransferThatBreaks) {
  learner_->LoadJob(3);
  learner_->SetFaults({.cut_after_bytes = 5000});
  learner_->Serve(3, *weights_[0]);
  EXPECT_THAT(learner_->fetch_offsets(), ElementsAre(0, 5000));
}

TEST_F(RolloutServerTest, AFetchThatFailedGoesOnWithTheNextOrderForTheSameSet) {
  learner_->LoadJob(3);
  learner_->SetFaults({.cut_after_bytes = 5000, .gone_at_cut = true});
  learner_->SendPrepare(3, *weights_[0]);
  EXPECT_EQ(AwaitFailure().reason(), "NOT_FOUND");
  learner_->Serve(3, *weights_[0]);
  EXPECT_THAT(learner_->fetch_offsets(), ElementsAre(0, 5000));
  ASSERT_TRUE(learner_->Send(MakeAssign(3, 1, 0)));
  ExpectSame(AwaitSamples(1, 3), Expected(1, 0));
  // Another set starts from its beginning.
  learner_->Serve(3, *weights_[1]);
  EXPECT_THAT(learner_->fetch_offsets(), ElementsAre(0, 5000, 0));
}

TEST_F(RolloutServerTest, GivesUpOnWeightsThatTheLearnerDoesNotHold) {
  learner_->LoadJob(3);
  learner_->SendPrepare(3, *MakeWeights(9));
  EXPECT_EQ(AwaitFailure().reason(), "NOT_FOUND");
}

TEST_F(RolloutServerTest, IgnoresOrdersAndGroupsOfAnotherEpoch) {
  learner_->LoadJob(3);
  learner_->Serve(3, *weights_[0]);
  learner_->SendPrepare(2, *weights_[1]);
  learner_->SendCommit(2, *weights_[1]);
  ASSERT_TRUE(learner_->Send(MakeAssign(2, 50, 0)));
  ASSERT_TRUE(learner_->Send(MakeAssign(3, 51, 0)));
  ExpectSame(AwaitSamples(51, 3), Expected(51, 0));
  EXPECT_THAT(learner_->fetch_offsets(), ElementsAre(0));
}

TEST_F(RolloutServerTest, RefusesWeightsThatDoNotFitTheModel) {
  learner_->LoadJob(3);
  ModelConfig other = TinyConfig();
  other.layers = 2;
  const auto master = UnpackedTinyWeights(1, DType::kFloat32, other);
  OwnedTensor rope("rope", DType::kFloat32, {kMaxTokens, 2, 8});
  learner_->SendPrepare(3,
                        *WeightSet::Create(0, master->parameters(), DType::kFloat16, rope.view()));
  EXPECT_EQ(AwaitFailure().reason(), "WEIGHTS_LAYOUT_MISMATCH");
}

TEST_F(RolloutServerTest, RefusesACommitOfWeightsThatAreNotStaged) {
  learner_->LoadJob(3);
  learner_->SendCommit(3, *weights_[0]);
  const v1::RolloutFailure failure = AwaitFailure();
  EXPECT_EQ(failure.subject(), v1::RolloutFailure::SUBJECT_WEIGHTS);
  EXPECT_EQ(failure.weights().manifest_digest(), weights_[0]->manifest().manifest_digest);
  EXPECT_EQ(failure.reason(), "WEIGHTS_NOT_STAGED");
}

TEST_F(RolloutServerTest, ReportsAModelItCannotLoad) {
  std::vector<BundleFile> files = TinyModelFiles();
  files[0].contents = R"({"model_type": "mamba"})";
  learner_->SetModel(files);
  v1::LearnerMessage message;
  message.mutable_load_job()->set_job_epoch(4);
  message.mutable_load_job()->set_model_digest(BundleDigest(files));
  message.mutable_load_job()->set_precision(v1::PRECISION_FP16);
  message.mutable_load_job()->set_max_sequence_tokens(kMaxTokens);
  message.mutable_load_job()->set_max_sequences(4);
  ASSERT_TRUE(learner_->Send(message));
  const v1::RolloutFailure failure = AwaitFailure();
  EXPECT_EQ(failure.subject(), v1::RolloutFailure::SUBJECT_LOAD_JOB);
  EXPECT_EQ(failure.reason(), "UNSUPPORTED_ARCHITECTURE");
  EXPECT_THAT(failure.message(), HasSubstr("config.json"));
  message.mutable_load_job()->set_model_digest("0123");
  ASSERT_TRUE(learner_->Send(message));
  EXPECT_EQ(AwaitFailure().reason(), "MODEL_DIGEST_MISMATCH");
}

TEST(RolloutServerMemoryTest, ReportsACacheThatIsTooSmall) {
  FakeLearner learner;
  auto server = StartServer(learner, /*kv_cache_bytes=*/1000);
  learner.Welcome();
  v1::LearnerMessage message;
  message.mutable_load_job()->set_job_epoch(1);
  message.mutable_load_job()->set_model_digest(BundleDigest(TinyModelFiles()));
  message.mutable_load_job()->set_precision(v1::PRECISION_FP16);
  message.mutable_load_job()->set_max_sequence_tokens(kMaxTokens);
  message.mutable_load_job()->set_max_sequences(4);
  ASSERT_TRUE(learner.Send(message));
  const v1::RolloutFailure failure =
      learner.Await("RolloutFailure", [](const v1::RolloutMessage& m) { return m.has_failure(); })
          .failure();
  EXPECT_EQ(failure.reason(), "KV_CACHE_TOO_SMALL");
}

TEST_F(RolloutServerTest, HandsBackAGroupOfAVersionItDoesNotServe) {
  learner_->LoadJob(3);
  learner_->Serve(3, *weights_[0]);
  // Also while weights are fetched, whose failure it must not seem to be.
  learner_->SendPrepare(3, *weights_[1]);
  ASSERT_TRUE(learner_->Send(MakeAssign(3, 7, 5)));
  const v1::RolloutFailure failure = AwaitFailure();
  EXPECT_EQ(failure.subject(), v1::RolloutFailure::SUBJECT_GROUP);
  EXPECT_EQ(failure.purpose(), v1::PURPOSE_TRAIN);
  EXPECT_EQ(failure.group(), 7u);
  EXPECT_EQ(failure.reason(), "VERSION_NOT_SERVED");
  const v1::RolloutMessage message =
      learner_->Await("Samples", [](const v1::RolloutMessage& m) { return m.has_samples(); });
  ASSERT_EQ(message.samples().samples_size(), 3);
  for (const v1::Sample& sample : message.samples().samples()) {
    EXPECT_EQ(sample.finish_reason(), v1::FINISH_REASON_CANCELLED);
  }
}

TEST_F(RolloutServerTest, SendsNothingOfAnAbandonedGroup) {
  learner_->LoadJob(3);
  learner_->Serve(3, *weights_[0]);
  v1::LearnerMessage abandon;
  abandon.mutable_abandon()->set_job_epoch(3);
  abandon.mutable_abandon()->set_purpose(v1::PURPOSE_TRAIN);
  std::vector<uint64_t> abandoned;
  for (uint64_t group = 100; group < 108; ++group) {
    ASSERT_TRUE(learner_->Send(MakeAssign(3, group, 0)));
    abandon.mutable_abandon()->add_groups(group);
  }
  ASSERT_TRUE(learner_->Send(abandon));
  ASSERT_TRUE(learner_->Send(MakeAssign(3, 7, 0)));
  std::map<uint32_t, Sample> samples;
  bool abandon_seen = false;
  while (samples.size() < 3) {
    const v1::RolloutMessage message =
        learner_->Await("Samples", [](const v1::RolloutMessage& m) { return m.has_samples(); });
    ASSERT_TRUE(message.has_samples());
    for (const v1::Sample& in : message.samples().samples()) {
      // Some may have been finished before the order to abandon them came; none may follow the
      // group that was given after it.
      if (in.group() == 7) {
        abandon_seen = true;
        samples[in.index()] = FromProto(in)->sample;
      } else {
        EXPECT_FALSE(abandon_seen);
      }
    }
  }
  ExpectSame(samples, Expected(7, 0));
}

TEST_F(RolloutServerTest, AttachesAgainToALearnerThatRestarted) {
  learner_->LoadJob(3);
  learner_->Serve(3, *weights_[0]);
  ASSERT_TRUE(learner_->Send(MakeAssign(3, 7, 0)));
  const int port = learner_->port();
  learner_ = nullptr;
  learner_ = std::make_unique<FakeLearner>(port);
  learner_->AddWeights(weights_[0]);
  learner_->Welcome();
  learner_->LoadJob(4);
  learner_->Serve(4, *weights_[0]);
  EXPECT_EQ(learner_->model_fetches(), 0) << "it has the model";
  EXPECT_TRUE(learner_->fetch_offsets().empty()) << "it serves these weights";
  ASSERT_TRUE(learner_->Send(MakeAssign(4, 8, 0)));
  ExpectSame(AwaitSamples(8, 3), Expected(8, 0));
}

TEST_F(RolloutServerTest, AttachesAgainWhenItsStreamBreaks) {
  learner_->LoadJob(3);
  learner_->Serve(3, *weights_[0]);
  learner_->Disconnect();
  learner_->Welcome();
  learner_->LoadJob(3);
  learner_->Serve(3, *weights_[0]);
  ASSERT_TRUE(learner_->Send(MakeAssign(3, 9, 0)));
  ExpectSame(AwaitSamples(9, 3), Expected(9, 0));
}

TEST_F(RolloutServerTest, CreditGoesOnOverJobsOfOneStream) {
  learner_->LoadJob(3);
  const uint64_t credit = AwaitCredit(1);
  learner_->Serve(3, *weights_[0]);
  ASSERT_TRUE(learner_->Send(MakeAssign(3, 1, 0)));
  AwaitSamples(1, 3);
  v1::LearnerMessage unload;
  unload.mutable_unload_job()->set_job_epoch(3);
  ASSERT_TRUE(learner_->Send(unload));
  learner_->LoadJob(4);
  EXPECT_EQ(AwaitCredit(1), credit + 1);
  learner_->Serve(4, *weights_[0]);
  ASSERT_TRUE(learner_->Send(MakeAssign(4, 2, 0)));
  ExpectSame(AwaitSamples(2, 3), Expected(2, 0));
}

TEST_F(RolloutServerTest, StoppingFinishesWhatItHolds) {
  learner_->LoadJob(3);
  learner_->Serve(3, *weights_[0]);
  for (uint64_t group = 0; group < 4; ++group) {
    ASSERT_TRUE(learner_->Send(MakeAssign(3, group, 0)));
  }
  size_t samples = 0;
  uint64_t last = 0;
  auto count = [&](const v1::RolloutMessage& m) {
    if (m.has_samples()) {
      samples += m.samples().samples_size();
      last = m.samples().sequence_number();
    }
  };
  std::thread stopper([&] { server_->Stop(absl::Now() + kPatience); });
  learner_->Await("Leaving", [&](const v1::RolloutMessage& m) {
    count(m);
    return m.has_leaving();
  });
  v1::LearnerMessage released;
  released.mutable_released();
  ASSERT_TRUE(learner_->Send(released));
  while (samples < 12) {
    count(learner_->Await("Samples", [](const v1::RolloutMessage& m) { return m.has_samples(); }));
  }
  Acknowledge(last);
  stopper.join();
  EXPECT_EQ(samples, 12u);
}

TEST(RolloutServerStartTest, NamesTheAddressThatIsTaken) {
  FakeLearner learner;
  RolloutServerOptions options;
  options.learner.target = learner.address();
  options.server.listen = learner.address();
  const auto server = RolloutServer::Start(std::move(options));
  EXPECT_EQ(server.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(ReasonOf(server.status()), "ADDRESS_IN_USE");
  EXPECT_THAT(std::string(server.status().message()),
              HasSubstr("cannot listen on " + learner.address()));
}

}  // namespace
}  // namespace halfstep
