// SPDX-License-Identifier: Apache-2.0
// Samples of 200 tokens from one rollout over loopback through every intake check to the sink.
// Argument: samples per message. Counts memory before and after, which must not grow.
#include <benchmark/benchmark.h>
#include <grpcpp/grpcpp.h>

#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "common/base/clock.h"
#include "common/metrics/registry.h"
#include "common/rpc/channel.h"
#include "common/rpc/server.h"
#include "common/trajectory/proto_convert.h"
#include "kernels/check.h"
#include "learner_server/rollout_coordination/rollout_coordination_service.h"
#include "tests/learner_server/rollout_coordination/fake_rollout.h"

namespace halfstep {
namespace {

constexpr uint32_t kTokens = 200;
constexpr uint32_t kSamplesPerGroup = 16;
constexpr uint64_t kGroupsPerBatch = 256;

double ResidentMegabytes() {
  std::ifstream statm("/proc/self/statm");
  int64_t pages = 0, resident = 0;
  statm >> pages >> resident;
  return static_cast<double>(resident) * 4096 / 1e6;
}

class CountingSink final : public SampleSink {
 public:
  void OnSample(const GroupAssignment&, const std::string&, Sample sample) override {
    HALFSTEP_CHECK_EQ(sample.tokens.size(), size_t{kTokens});
    absl::MutexLock lock(&mutex_);
    ++count_;
  }
  void OnGroupLost(const GroupAssignment&, const absl::Status&) override { HALFSTEP_CHECK(false); }
  void WaitFor(int64_t count) {
    absl::MutexLock lock(&mutex_);
    auto enough = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return count_ >= count; };
    HALFSTEP_CHECK(mutex_.AwaitWithTimeout(absl::Condition(&enough), absl::Minutes(2)));
  }

 private:
  absl::Mutex mutex_;
  int64_t count_ ABSL_GUARDED_BY(mutex_) = 0;
};

// Answers the protocol and delivers every group at once, so many samples to a message.
class FloodingRollout final : public FakeRollout {
 public:
  FloodingRollout(const std::shared_ptr<grpc::Channel>& channel, int per_message)
      : FakeRollout(nullptr, {"flood", "1", "", 100000}), per_message_(per_message) {
    stub_ = v1::RolloutCoordinationService::NewStub(channel);
    stream_ = stub_->Attach(&context_);
    Sample sample;
    for (uint32_t i = 0; i < kTokens; ++i) {
      sample.tokens.push_back(static_cast<int32_t>(i * 37 % 8000));
      sample.log_probs.push_back(-0.01f * static_cast<float>(i));
    }
    sample.versions = {{0, kTokens}};
    ToProto(KeyedSample{Train(0), sample}, &template_);
    thread_ = std::thread([this] { Run(); });
  }
  ~FloodingRollout() override {
    context_.TryCancel();
    thread_.join();
  }
  void Put(v1::RolloutMessage message) override { stream_->Write(message); }

 private:
  void Run() {
    SayHello();
    v1::LearnerMessage in;
    while (stream_->Read(&in)) {
      if (in.has_assign()) {
        Flood(in.assign().group());
      } else {
        Obey(in);
      }
    }
  }
  void Flood(uint64_t group) {
    for (uint32_t index = 0; index < kSamplesPerGroup; ++index) {
      v1::Sample* sample = out_.mutable_samples()->add_samples();
      *sample = template_;
      sample->set_group(group);
      sample->set_index(index);
      if (out_.samples().samples_size() == per_message_) Flush();
    }
    if (out_.samples().samples_size() > 0) Flush();
  }
  void Flush() {
    out_.mutable_samples()->set_job_epoch(1);
    out_.mutable_samples()->set_sequence_number(++number_);
    stream_->Write(out_);
    out_.mutable_samples()->clear_samples();
  }

  const int per_message_;
  uint64_t number_ = 0;
  v1::Sample template_;
  v1::RolloutMessage out_;
  grpc::ClientContext context_;
  std::unique_ptr<v1::RolloutCoordinationService::Stub> stub_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::RolloutMessage, v1::LearnerMessage>> stream_;
  std::thread thread_;
};

void BM_Intake(benchmark::State& state) {
  CountingSink sink;
  Registry registry;
  LearnerMetrics metrics(registry);
  RolloutCoordinator coordinator(CoordinatorOptions(), &Clock::Real(), &metrics);
  RolloutCoordinationService service(&coordinator);
  auto server =
      *RpcServer::Start(ServerOptions(), {{&service, "halfstep.v1.RolloutCoordinationService"}});
  ChannelOptions options;
  options.target = server->address();
  RolloutJob job = TinyJob(Profile::kFast);
  job.vocab_size = 8000;
  job.max_sequence_tokens = 1000;
  coordinator.BeginJob(job, &sink);
  coordinator.Publish(TinyWeights(0));
  int64_t samples = 0;
  {
    FloodingRollout rollout(*MakeChannel(options), static_cast<int>(state.range(0)));
    uint64_t ordinal = 0;
    const auto batch = [&] {
      std::vector<GroupAssignment> groups;
      for (uint64_t i = 0; i < kGroupsPerBatch; ++i) {
        groups.push_back(TinyGroup(Train(ordinal++), 0, kSamplesPerGroup));
        groups.back().sampling.max_new_tokens = kTokens;
      }
      coordinator.Assign(std::move(groups));
      samples += kGroupsPerBatch * kSamplesPerGroup;
      sink.WaitFor(samples);
    };
    for (int i = 0; i < 4; ++i) batch();
    const double before = ResidentMegabytes();
    const int64_t warm = samples;
    for (auto _ : state) batch();
    state.SetItemsProcessed(samples - warm);
    state.counters["rss_mb"] = ResidentMegabytes();
    state.counters["rss_growth_mb"] = ResidentMegabytes() - before;
  }
  coordinator.EndJob();
  coordinator.Drain();
  server->Stop(absl::Seconds(5));
}
BENCHMARK(BM_Intake)
    ->Arg(1)
    ->Arg(16)
    ->Arg(64)
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime()
    ->MeasureProcessCPUTime();

}  // namespace
}  // namespace halfstep

BENCHMARK_MAIN();
