// SPDX-License-Identifier: Apache-2.0
// JobSession: the job this server works on: model, engine and weights. One loader thread carries
// out what the learner orders, in order: load, prepare (fetch, verify, pack), commit.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "common/model/fp32_parts.h"
#include "common/weight_sync/staging_area.h"
#include "common/weight_sync/weight_set.h"
#include "kernels/dtype.h"
#include "kernels/exec_context.h"
#include "rollout_server/generation/engine.h"
#include "rollout_server/model_bundle.h"
#include "rollout_server/weight_client.h"

namespace halfstep {

struct JobSpec {
  uint64_t epoch = 0;
  std::string model_digest;
  DType precision = DType::kFloat16;
  Fp32Parts fp32;
  Profile profile = Profile::kBitwise;
  int64_t max_sequence_tokens = 0;
  int64_t max_sequences = 0;
  friend bool operator==(const JobSpec&, const JobSpec&) = default;
};

struct JobSessionOptions {
  int threads = 1;            // of the engine
  size_t kv_cache_bytes = 0;  // see EngineOptions
  WeightClientOptions fetch;
  // See EngineOptions::on_step.
  std::function<void(const StepReport&, const EngineStats&)> on_step;
  // After the last on_step of an engine, and before the first of the next.
  std::function<void()> on_engine_stopped;
  // How long fetching, verifying and packing a set of weights took.
  std::function<void(absl::Duration)> on_weights_prepared;
};

// What became of orders; called on the loader's or the engine's thread, must not block. `order` is
// the number that the caller gave to the order.
struct JobSessionEvents {
  std::function<void(uint64_t order, uint64_t epoch)> job_loaded;
  std::function<void(uint64_t order, uint64_t epoch, const WeightIdentity&)> weights_ready;
  std::function<void(uint64_t order, uint64_t epoch, const WeightIdentity&)> serving;
  // `weights` of an order to prepare or commit them; nothing for one to load the job.
  std::function<void(uint64_t order, uint64_t epoch, const std::optional<WeightIdentity>& weights,
                     const absl::Status&)>
      failed;
};

// What can be used now. The engine may be stopping, and then refuses work.
struct LoadedJob {
  uint64_t epoch = 0;
  std::shared_ptr<Engine> engine;  // null until a job was loaded
  std::shared_ptr<const ModelBundle> bundle;
  std::optional<WeightIdentity> serving;
  bool staged = false;  // verified weights wait for their commit
};

// Thread-safe. Orders never block; those of an epoch that is not the last one loaded are ignored.
class JobSession {
 public:
  // `channel` leads to the learner's WeightService.
  JobSession(JobSessionOptions options, std::shared_ptr<grpc::Channel> channel,
             JobSessionEvents events);
  ~JobSession();

  // A job with the same model, precision and sizes keeps engine and weights, whatever its epoch.
  void Load(uint64_t order, const JobSpec& spec);
  // The model stays loaded, for the next job and for direct generation.
  void Unload(uint64_t epoch);
  void Prepare(uint64_t order, uint64_t epoch, WeightManifest manifest);
  void Commit(uint64_t order, uint64_t epoch, const WeightIdentity& weights);

  LoadedJob loaded() const;

  // Cancels what is in progress, stops the engine and joins. Idempotent.
  void Stop();

 private:
  struct Order {
    enum class Kind { kLoad, kPrepare, kCommit } kind = Kind::kLoad;
    uint64_t number = 0;
    uint64_t epoch = 0;
    JobSpec spec;
    WeightManifest manifest;  // to prepare
    WeightIdentity weights;   // to prepare or commit
  };

  void Enqueue(Order order) ABSL_LOCKS_EXCLUDED(mutex_);
  void Run();
  // Whether the order still stands; a fetch may then begin.
  bool Begin(const Order& order) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status LoadJob(const JobSpec& spec);
  void StopEngine(Engine* engine);
  absl::StatusOr<std::shared_ptr<Engine>> MakeEngine(const JobSpec& spec,
                                                     const ModelBundle& bundle);
  absl::Status PrepareWeights(uint64_t epoch, const WeightManifest& manifest);
  // Into the staging area, where a broken transfer of the same set goes on.
  absl::Status Fetch(uint64_t epoch, const WeightManifest& manifest);
  absl::StatusOr<std::shared_ptr<ModelWeights>> TakeSpareWeights(const WeightManifest& manifest);
  absl::Status CommitWeights(const Order& order);

  const JobSessionOptions options_;
  const JobSessionEvents events_;
  WeightClient client_;

  mutable absl::Mutex mutex_;
  std::deque<Order> orders_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  uint64_t epoch_ ABSL_GUARDED_BY(mutex_) = 0;  // of the last Load; 0 after Unload
  LoadedJob loaded_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<ModelWeights> serving_weights_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<ModelWeights> spare_weights_ ABSL_GUARDED_BY(mutex_);  // nobody else has it

  // Of the loader thread alone.
  std::optional<JobSpec> spec_;
  std::unique_ptr<StagingArea> staging_;
  int64_t staging_positions_ = 0;  // of the RoPE table it has room for
  std::shared_ptr<ModelWeights> staged_weights_;
  std::optional<WeightIdentity> staged_;

  absl::Mutex join_mutex_;
  std::thread thread_ ABSL_GUARDED_BY(join_mutex_);
};

}  // namespace halfstep
