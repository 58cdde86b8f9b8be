// SPDX-License-Identifier: Apache-2.0
// Weights from the learner's WeightService into a rollout's staging area over loopback, every
// digest checked, beside the same stream read and thrown away. Argument: rollouts that fetch at
// once.
#include <benchmark/benchmark.h>
#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "common/base/clock.h"
#include "common/metrics/registry.h"
#include "common/model/model_weights.h"
#include "common/rpc/channel.h"
#include "common/rpc/server.h"
#include "common/weight_sync/staging_area.h"
#include "halfstep/v1/weights.grpc.pb.h"
#include "kernels/check.h"
#include "learner_server/rollout_coordination/weight_service.h"

namespace halfstep {
namespace {

class NoSink final : public SampleSink {
 public:
  void OnSample(const GroupAssignment&, const std::string&, Sample) override {}
  void OnGroupLost(const GroupAssignment&, const absl::Status&) override {}
};

// About 200 MB in FP16.
ModelConfig Config() {
  ModelConfig config;
  config.vocab_size = 16384;
  config.hidden_size = 1024;
  config.intermediate_size = 4096;
  config.layers = 5;
  config.heads = 16;
  config.kv_heads = 8;
  config.head_dim = 64;
  config.max_positions = 1024;
  config.tie_word_embeddings = true;
  return config;
}

// A learner that has published one set, and the address of its service.
struct Learner {
  Learner() : layout(std::make_shared<const ParameterLayout>(Config())) {
    ParameterBuffer master(layout, DType::kFloat32, "master");
    for (size_t i = 0; i < layout->specs().size(); ++i) {
      const Tensor view = master.view(static_cast<int>(i));
      for (int64_t e = 0; e < view.elements(); ++e) {
        view.as<float>()[e] = static_cast<float>(e % 1021) * 1e-3f;
      }
    }
    const ModelWeights model = Model();
    set = WeightSet::Create(1, master, DType::kFloat16, model.rope_table());
    RolloutJob job;
    job.epoch = 1;
    coordinator.BeginJob(job, &sink);
    coordinator.Publish(set);
    server = *RpcServer::Start(ServerOptions(), {{&service, "halfstep.v1.WeightService"}});
  }
  ~Learner() {
    server->Stop(absl::Seconds(1));
    coordinator.EndJob();
  }
  ModelWeights Model() const { return ModelWeights(Config(), layout, DType::kFloat16, 1024); }

  std::shared_ptr<const ParameterLayout> layout;
  NoSink sink;
  Registry registry;
  LearnerMetrics metrics{registry};
  RolloutCoordinator coordinator{CoordinatorOptions(), &Clock::Real(), &metrics};
  WeightService service{&coordinator};
  std::shared_ptr<const WeightSet> set;
  std::unique_ptr<RpcServer> server;
};

template <class Take>
void Fetch(const Learner& learner, const Take& take) {
  ChannelOptions options;
  options.target = learner.server->address();
  const std::shared_ptr<grpc::Channel> channel = *MakeChannel(options);
  grpc::ClientContext context;
  v1::FetchWeightsRequest request;
  request.set_job_epoch(1);
  request.set_version(1);
  request.set_manifest_digest(learner.set->manifest().manifest_digest);
  auto reader = v1::WeightService::NewStub(channel)->FetchWeights(&context, request);
  v1::WeightChunk chunk;
  while (reader->Read(&chunk)) take(chunk);
  HALFSTEP_CHECK(reader->Finish().ok());
}

template <class Rollout>
void Run(benchmark::State& state, const Learner& learner, const Rollout& rollout) {
  for (auto _ : state) {
    std::vector<std::thread> threads;
    for (int64_t i = 0; i < state.range(0); ++i) threads.emplace_back([&, i] { rollout(i); });
    for (std::thread& thread : threads) thread.join();
  }
  // Per rollout.
  state.SetBytesProcessed(state.iterations() *
                          static_cast<int64_t>(learner.set->manifest().total_bytes));
}

void BM_StreamAlone(benchmark::State& state) {
  const Learner learner;
  Run(state, learner, [&](int64_t) {
    Fetch(learner, [](const v1::WeightChunk& c) { benchmark::DoNotOptimize(&c); });
  });
}
BENCHMARK(BM_StreamAlone)
    ->Arg(1)
    ->Arg(2)
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime()
    ->MeasureProcessCPUTime();

void BM_StagedAndVerified(benchmark::State& state) {
  const Learner learner;
  const ModelWeights model = learner.Model();
  std::vector<std::unique_ptr<StagingArea>> areas;
  for (int64_t i = 0; i < state.range(0); ++i)
    areas.push_back(std::make_unique<StagingArea>(model));
  uint64_t version = 1;
  Run(state, learner, [&](int64_t i) {
    StagingArea& area = *areas[static_cast<size_t>(i)];
    WeightManifest manifest = learner.set->manifest();
    if (i == 0) ++version;
    manifest.version = version + static_cast<uint64_t>(i) * 1000000;
    HALFSTEP_CHECK(area.Begin(manifest).ok());
    Fetch(learner, [&](const v1::WeightChunk& chunk) {
      const auto* data = reinterpret_cast<const uint8_t*>(chunk.data().data());
      HALFSTEP_CHECK(area.Append(chunk.offset(), {data, chunk.data().size()}).ok());
    });
    HALFSTEP_CHECK(area.complete());
  });
}
BENCHMARK(BM_StagedAndVerified)
    ->Arg(1)
    ->Arg(2)
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime()
    ->MeasureProcessCPUTime();

void BM_Create(benchmark::State& state) {
  const Learner learner;
  ParameterBuffer master(learner.layout, DType::kFloat32, "master");
  const ModelWeights model = learner.Model();
  for (auto _ : state) {
    benchmark::DoNotOptimize(WeightSet::Create(2, master, DType::kFloat16, model.rope_table()));
  }
  state.SetBytesProcessed(state.iterations() *
                          static_cast<int64_t>(learner.set->manifest().total_bytes));
}
BENCHMARK(BM_Create)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace halfstep

BENCHMARK_MAIN();
