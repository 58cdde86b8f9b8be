// SPDX-License-Identifier: Apache-2.0
// Both services over loopback, with rollouts that follow the protocol by script.
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <thread>

#include "common/base/error_reason.h"
#include "common/metrics/registry.h"
#include "common/rpc/channel.h"
#include "common/rpc/server.h"
#include "common/rpc/status.h"
#include "common/weight_sync/model_files.h"
#include "learner_server/rollout_coordination/rollout_coordination_service.h"
#include "learner_server/rollout_coordination/weight_service.h"
#include "tests/learner_server/rollout_coordination/fake_rollout.h"

namespace halfstep {
namespace {

const absl::Duration kPatience = absl::Seconds(60);

// RecordingSink for threads.
class WaitingSink final : public SampleSink {
 public:
  void OnSample(const GroupAssignment& assignment, const std::string& rollout_id,
                Sample sample) override {
    absl::MutexLock lock(&mutex_);
    sink_.OnSample(assignment, rollout_id, std::move(sample));
  }
  void OnGroupLost(const GroupAssignment& assignment, const absl::Status& why) override {
    absl::MutexLock lock(&mutex_);
    sink_.OnGroupLost(assignment, why);
  }
  // Waits for that many different samples and returns what came.
  RecordingSink WaitFor(size_t samples) {
    absl::MutexLock lock(&mutex_);
    auto enough = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return sink_.samples.size() >= samples;
    };
    EXPECT_TRUE(mutex_.AwaitWithTimeout(absl::Condition(&enough), kPatience));
    return sink_;
  }

 private:
  absl::Mutex mutex_;
  RecordingSink sink_ ABSL_GUARDED_BY(mutex_);
};

// A rollout at the other end of a real stream, on its own thread.
class WireRollout final : public FakeRollout {
 public:
  WireRollout(std::shared_ptr<grpc::Channel> channel, Options options, bool generates)
      : FakeRollout(nullptr, std::move(options)), generates_(generates) {
    stub_ = v1::RolloutCoordinationService::NewStub(channel);
    context_.set_deadline(absl::ToChronoTime(absl::Now() + kPatience));
    stream_ = stub_->Attach(&context_);
    thread_ = std::thread([this] { Run(); });
  }
  ~WireRollout() override {
    Kill();
    if (thread_.joinable()) thread_.join();
  }

  void Put(v1::RolloutMessage message) override { stream_->Write(message); }
  void Kill() { context_.TryCancel(); }
  absl::Status Wait() {
    thread_.join();
    return status_;
  }
  // Waits until it was given a group.
  void AwaitGroup() {
    absl::MutexLock lock(&mutex_);
    EXPECT_TRUE(mutex_.AwaitWithTimeout(absl::Condition(&has_group_), kPatience));
  }
  bool drained = false;

 private:
  void Run() {
    SayHello();
    v1::LearnerMessage message;
    while (stream_->Read(&message)) {
      drained |= message.has_drain();
      Obey(message);
      if (generates_) FinishAll();
      absl::MutexLock lock(&mutex_);
      has_group_ |= message.has_assign();
    }
    status_ = FromGrpcStatus(stream_->Finish());
  }

  const bool generates_;
  grpc::ClientContext context_;
  std::unique_ptr<v1::RolloutCoordinationService::Stub> stub_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::RolloutMessage, v1::LearnerMessage>> stream_;
  absl::Mutex mutex_;
  bool has_group_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status status_;
  std::thread thread_;
};

class RolloutServiceTest : public ::testing::Test {
 protected:
  RolloutServiceTest() {
    absl::StatusOr<std::unique_ptr<RpcServer>> started = RpcServer::Start(
        ServerOptions(), {{&attach_service, "halfstep.v1.RolloutCoordinationService"},
                          {&weight_service, "halfstep.v1.WeightService"}});
    EXPECT_TRUE(started.ok()) << started.status();
    server = *std::move(started);
    ChannelOptions options;
    options.target = server->address();
    channel = *MakeChannel(options);
  }
  ~RolloutServiceTest() override {
    coordinator.EndJob();
    coordinator.Drain();
    server->Stop(absl::Seconds(5));
  }

  void Begin() {
    coordinator.BeginJob(TinyJob(), &sink);
    coordinator.Publish(TinyWeights(0));
  }
  void Assign(uint64_t groups) {
    std::vector<GroupAssignment> assignments;
    for (uint64_t i = 0; i < groups; ++i) assignments.push_back(TinyGroup(Train(i), 0));
    coordinator.Assign(std::move(assignments));
  }
  // All bytes from `offset` on, and how the call ended.
  absl::Status Fetch(uint64_t version, uint64_t offset, std::string* bytes) {
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(absl::Now() + kPatience));
    v1::FetchWeightsRequest request;
    request.set_job_epoch(1);
    request.set_version(version);
    request.set_manifest_digest(TinyWeights(0)->manifest().manifest_digest);
    request.set_offset(offset);
    auto reader = v1::WeightService::NewStub(channel)->FetchWeights(&context, request);
    v1::WeightChunk chunk;
    while (reader->Read(&chunk)) {
      EXPECT_EQ(chunk.offset(), offset + bytes->size());
      bytes->append(chunk.data());
    }
    return FromGrpcStatus(reader->Finish());
  }

  static CoordinatorOptions Options() {
    CoordinatorOptions options;
    options.incarnation = "learner-1";
    options.numerics_fingerprint = "bits";
    return options;
  }

  WaitingSink sink;
  Registry registry;
  LearnerMetrics metrics{registry};
  RolloutCoordinator coordinator{Options(), &Clock::Real(), &metrics};
  RolloutCoordinationService attach_service{&coordinator};
  WeightService weight_service{&coordinator};
  std::unique_ptr<RpcServer> server;
  std::shared_ptr<grpc::Channel> channel;
};

TEST_F(RolloutServiceTest, DeliversEverySampleOnce) {
  Begin();
  WireRollout a(channel, {"a"}, true);
  WireRollout b(channel, {"b"}, true);
  Assign(200);
  const RecordingSink got = sink.WaitFor(400);
  for (const auto& [key, count] : got.samples) EXPECT_EQ(count, 1);
}

TEST_F(RolloutServiceTest, AKilledRolloutsGroupsGoToAnother) {
  Begin();
  WireRollout a(channel, {"a"}, false);
  Assign(20);
  a.AwaitGroup();
  WireRollout b(channel, {"b"}, true);
  a.Kill();
  sink.WaitFor(40);
  EXPECT_GT(coordinator.Status().groups_reassigned, 0);
  EXPECT_FALSE(a.Wait().ok());
}

TEST_F(RolloutServiceTest, ARefusalReachesTheRolloutWithItsReason) {
  Begin();
  WireRollout stranger(channel, {"s", "1", "other bits"}, false);
  const absl::Status status = stranger.Wait();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ReasonOf(status), "NUMERICS_FINGERPRINT_MISMATCH");
}

TEST_F(RolloutServiceTest, AStreamMayBeRefusedBeforeItsHello) {
  CoordinatorOptions options = Options();
  options.max_ungreeted = 0;
  RolloutCoordinator full(options, &Clock::Real(), &metrics);
  RolloutCoordinationService service(&full);
  const auto other = *RpcServer::Start({}, {{&service, "halfstep.v1.RolloutCoordinationService"}});
  ChannelOptions dial;
  dial.target = other->address();
  WireRollout rollout(*MakeChannel(dial), {"r"}, false);
  const absl::Status status = rollout.Wait();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ReasonOf(status), "TOO_MANY_STREAMS");
  other->Stop(absl::Seconds(5));
}

TEST_F(RolloutServiceTest, DrainEndsEveryStream) {
  Begin();
  WireRollout a(channel, {"a"}, false);
  Assign(1);
  a.AwaitGroup();
  coordinator.Drain();
  const absl::Status status = a.Wait();
  EXPECT_TRUE(a.drained);
  EXPECT_EQ(ReasonOf(status), "LEARNER_STOPPING");
}

TEST_F(RolloutServiceTest, WeightsComeFromAnyOffset) {
  Begin();
  const auto set = TinyWeights(0);
  for (const uint64_t offset : {uint64_t{0}, uint64_t{13}, set->manifest().total_bytes}) {
    std::string bytes;
    EXPECT_TRUE(Fetch(0, offset, &bytes).ok());
    const auto want = set->bytes().subspan(offset);
    EXPECT_EQ(bytes, std::string(want.begin(), want.end()));
  }
  std::string bytes;
  EXPECT_EQ(ReasonOf(Fetch(0, set->manifest().total_bytes + 1, &bytes)), "BAD_WEIGHT_OFFSET");
  EXPECT_EQ(ReasonOf(Fetch(1, 0, &bytes)), "WEIGHTS_NOT_HELD");
  coordinator.ReleaseWeightsBelow(1);
  EXPECT_EQ(ReasonOf(Fetch(0, 0, &bytes)), "WEIGHTS_NOT_HELD");
}

TEST_F(RolloutServiceTest, ModelFilesComeWhole) {
  RolloutJob job = TinyJob();
  job.files = {
      {"config.json", "{}"}, {"empty.json", ""}, {"tokenizer.json", std::string(3 << 20, 't')}};
  coordinator.BeginJob(job, &sink);
  grpc::ClientContext context;
  v1::FetchModelRequest request;
  request.set_job_epoch(1);
  auto reader = v1::WeightService::NewStub(channel)->FetchModel(&context, request);
  std::vector<ModelFile> files;
  v1::ModelFileChunk chunk;
  while (reader->Read(&chunk)) {
    EXPECT_LE(chunk.data().size(), size_t{1} << 20);
    if (!chunk.file_name().empty()) files.push_back({chunk.file_name(), ""});
    files.back().bytes += chunk.data();
  }
  EXPECT_TRUE(reader->Finish().ok());
  ASSERT_EQ(files.size(), 3u);
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(files[i].name, job.files[i].name);
    EXPECT_EQ(files[i].bytes, job.files[i].bytes);
  }
  grpc::ClientContext again;
  request.set_job_epoch(2);
  auto refused = v1::WeightService::NewStub(channel)->FetchModel(&again, request);
  EXPECT_FALSE(refused->Read(&chunk));
  EXPECT_EQ(ReasonOf(FromGrpcStatus(refused->Finish())), "JOB_NOT_RUNNING");
}

}  // namespace
}  // namespace halfstep
