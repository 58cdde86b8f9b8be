// SPDX-License-Identifier: Apache-2.0
#include "rollout_server/generation_service.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <map>
#include <string>

#include "common/base/error_reason.h"
#include "common/rpc/channel.h"
#include "common/rpc/status.h"
#include "halfstep/v1/generation.grpc.pb.h"
#include "rollout_server/rollout_server.h"
#include "tests/rollout_server/fake_learner.h"
#include "tests/rollout_server/tiny_model.h"

namespace halfstep {
namespace {

class GenerationServiceTest : public ::testing::Test {
 protected:
  GenerationServiceTest() {
    RolloutServerOptions options;
    options.id = "rollout-g";
    options.learner.target = learner_.address();
    options.threads = 1;
    server_ = *RolloutServer::Start(std::move(options));
    learner_.Welcome();
    ChannelOptions channel;
    channel.target = server_->grpc_address();
    stub_ = v1::GenerationService::NewStub(*MakeChannel(channel));
  }

  void Serve() {
    const auto master = UnpackedTinyWeights(3, DType::kFloat32);
    OwnedTensor rope("rope", DType::kFloat32, {64, 2, 8});
    FillRopeTable(TinyConfig().rope, rope);
    const auto weights = WeightSet::Create(5, master->parameters(), DType::kFloat16, rope);
    learner_.AddWeights(weights);
    learner_.LoadJob(1);
    learner_.Serve(1, *weights);
  }

  static v1::GenerateRequest Request() {
    v1::GenerateRequest request;
    request.set_text("1+2=");
    request.mutable_sampling()->set_temperature(1);
    request.mutable_sampling()->set_max_new_tokens(30);
    request.set_samples(2);
    request.set_seed(9);
    return request;
  }

  struct Answer {
    std::vector<int32_t> tokens;
    std::string text;
    size_t log_probs = 0;
    uint64_t version = 0;
    v1::FinishReason finish_reason = v1::FINISH_REASON_UNSPECIFIED;
  };

  absl::Status Generate(const v1::GenerateRequest& request, std::map<uint32_t, Answer>* answers) {
    const auto context = MakeContext(absl::Seconds(60));
    auto reader = stub_->Generate(context.get(), request);
    v1::GenerateResponse response;
    while (reader->Read(&response)) {
      Answer& answer = (*answers)[response.index()];
      answer.tokens.insert(answer.tokens.end(), response.tokens().begin(), response.tokens().end());
      answer.text += response.text();
      answer.log_probs += response.log_probs_size();
      answer.version = response.version();
      answer.finish_reason = response.finish_reason();
    }
    return FromGrpcStatus(reader->Finish());
  }

  FakeLearner learner_;
  std::unique_ptr<RolloutServer> server_;
  std::unique_ptr<v1::GenerationService::Stub> stub_;
};

TEST_F(GenerationServiceTest, IsUnavailableWithoutWeights) {
  std::map<uint32_t, Answer> answers;
  const absl::Status status = Generate(Request(), &answers);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(ReasonOf(status), "NO_WEIGHTS");
}

TEST_F(GenerationServiceTest, StreamsTokensAndTextOfEverySample) {
  Serve();
  std::map<uint32_t, Answer> answers;
  const absl::Status status = Generate(Request(), &answers);
  ASSERT_TRUE(status.ok()) << status;
  ASSERT_EQ(answers.size(), 2u);
  const auto files = TinyModelFiles();
  const auto tokenizer = *Tokenizer::FromJson(files[1].contents, "tokenizer.json");
  for (const auto& [index, answer] : answers) {
    EXPECT_FALSE(answer.tokens.empty());
    EXPECT_EQ(answer.log_probs, answer.tokens.size());
    EXPECT_EQ(answer.text, tokenizer->Decode(answer.tokens, SpecialTokens::kOmit));
    EXPECT_EQ(answer.version, 5u);
    const bool stopped = answer.tokens.back() == 1;
    EXPECT_EQ(answer.finish_reason, stopped ? v1::FINISH_REASON_STOP : v1::FINISH_REASON_LENGTH);
  }
  std::map<uint32_t, Answer> again;
  ASSERT_TRUE(Generate(Request(), &again).ok());
  EXPECT_EQ(again[1].tokens, answers[1].tokens) << "the same seed gives the same tokens";
}

TEST_F(GenerationServiceTest, RefusesWhatCannotBeGenerated) {
  Serve();
  std::map<uint32_t, Answer> answers;
  v1::GenerateRequest request = Request();
  request.mutable_sampling()->set_max_new_tokens(1000);
  EXPECT_EQ(Generate(request, &answers).code(), absl::StatusCode::kInvalidArgument);
  request = Request();
  request.set_samples(1000);
  EXPECT_EQ(Generate(request, &answers).code(), absl::StatusCode::kInvalidArgument);
  request = Request();
  request.mutable_token_ids()->add_ids(261);
  EXPECT_EQ(Generate(request, &answers).code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(GenerationServiceTest, WithoutALengthAResponseHasWhatThereIsRoomFor) {
  Serve();
  std::map<uint32_t, Answer> answers;
  v1::GenerateRequest request = Request();
  request.mutable_sampling()->clear_max_new_tokens();
  const absl::Status status = Generate(request, &answers);
  ASSERT_TRUE(status.ok()) << status;
  for (const auto& [index, answer] : answers) {
    const bool stopped = answer.tokens.back() == 1;
    EXPECT_TRUE(stopped || answer.tokens.size() == 64 - 4) << answer.tokens.size();
  }
}

TEST_F(GenerationServiceTest, ACancelledCallEnds) {
  Serve();
  grpc::ClientContext context;
  auto reader = stub_->Generate(&context, Request());
  context.TryCancel();
  v1::GenerateResponse response;
  while (reader->Read(&response)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
}

TEST_F(GenerationServiceTest, TellsWhatItServes) {
  Serve();
  v1::ServerInfo info;
  const auto context = MakeContext(absl::Seconds(60));
  ASSERT_TRUE(stub_->GetServerInfo(context.get(), {}, &info).ok());
  EXPECT_EQ(info.rollout_id(), "rollout-g");
  EXPECT_EQ(info.version(), 5u);
  EXPECT_EQ(info.model_digest(), BundleDigest(TinyModelFiles()));
  EXPECT_GT(info.kv_blocks_total(), 0);
  EXPECT_FALSE(info.build().empty());
}

}  // namespace
}  // namespace halfstep
