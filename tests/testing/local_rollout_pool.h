// SPDX-License-Identifier: Apache-2.0
// LocalRolloutPool: one real generation engine in this process instead of rollout servers.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "learner_server/data/rollout_pool.h"
#include "rollout_server/generation/engine.h"

namespace halfstep {

// Thread-safe.
class LocalRolloutPool final : public RolloutPool {
 public:
  // One bit of every set that is loaded gets flipped, and no digest is looked at: the lowest of the
  // first 16-bit weight of the final norm.
  void FlipABitOfTheWeights() { flip_a_bit_ = true; }
  // What it says it serves is what it served before.
  void ServeStaleWeights() { stale_ = true; }
  // Whatever the job says.
  void ComputeIn(DType dtype) { dtype_ = dtype; }
  // Each log-prob is given to the token before, the first to the last.
  void RotateLogProbs() { rotate_log_probs_ = true; }
  // From a version on every log-prob is off by so much.
  void ShiftLogProbs(float by, uint64_t from_version) {
    shift_ = by;
    shift_from_ = from_version;
  }
  void SetRolloutId(const std::string& rollout_id) { rollout_id_ = rollout_id; }

  // EngineOptions::on_step of every engine; it may hold the engine up.
  void OnEngineStep(std::function<void(const EngineStats&)> hook) { on_step_ = std::move(hook); }

  void BeginJob(const RolloutJob& job, SampleSink* sink) override;
  void EndJob() override;
  void Publish(std::shared_ptr<const WeightSet> weights) override;
  void ReleaseWeightsBelow(uint64_t version) override;
  void Assign(std::vector<GroupAssignment> groups) override;
  RolloutPoolStatus Status() const override;

  // Versions held now, for tests of what is released.
  std::vector<uint64_t> held_versions() const;
  int64_t jobs_begun() const;

 private:
  // Submits what may run: groups of the version in force, or of the next one once nothing else
  // runs.
  void Pump() ABSL_LOCKS_EXCLUDED(mutex_);
  void Submit(const GroupAssignment& assignment);
  void OnGroupDone() ABSL_LOCKS_EXCLUDED(mutex_);
  std::shared_ptr<const ModelWeights> Load(const WeightSet& weights) const;

  absl::Mutex pump_mutex_;  // held while the engine is told, so that weights go before their groups
  mutable absl::Mutex mutex_;
  SampleSink* sink_ = nullptr;
  std::unique_ptr<Engine> engine_;
  std::shared_ptr<const ParameterLayout> layout_;
  int64_t rope_positions_ = 0;
  bool flip_a_bit_ = false;
  bool stale_ = false;
  bool rotate_log_probs_ = false;
  float shift_ = 0;
  uint64_t shift_from_ = 0;
  std::optional<DType> dtype_;
  std::string rollout_id_ = "local";
  std::shared_ptr<const WeightSet> loaded_before_;  // with stale_; of the pump
  bool free_versions_ = false;
  std::function<void(const EngineStats&)> on_step_;
  int64_t jobs_begun_ ABSL_GUARDED_BY(mutex_) = 0;
  std::map<uint64_t, std::shared_ptr<const WeightSet>> published_ ABSL_GUARDED_BY(mutex_);
  std::deque<GroupAssignment> queue_ ABSL_GUARDED_BY(mutex_);
  int64_t running_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t version_ ABSL_GUARDED_BY(mutex_) = -1;
};

}  // namespace halfstep
