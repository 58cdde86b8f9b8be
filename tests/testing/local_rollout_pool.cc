// SPDX-License-Identifier: Apache-2.0
#include "tests/testing/local_rollout_pool.h"

#include <algorithm>
#include <utility>

#include "common/model/model_config.h"
#include "kernels/check.h"
#include "kernels/ops/elementwise.h"
#include "kernels/workspace.h"

namespace halfstep {

void LocalRolloutPool::BeginJob(const RolloutJob& job, SampleSink* sink) {
  ModelConfig config;
  for (const ModelFile& file : job.files) {
    if (file.name == "config.json") config = *ParseModelConfig(file.bytes, file.name);
  }
  for (const ModelFile& file : job.files) {
    if (file.name == "generation_config.json") {
      HALFSTEP_CHECK(MergeGenerationConfig(file.bytes, file.name, &config).ok());
    }
  }
  layout_ = std::make_shared<const ParameterLayout>(config);
  rope_positions_ = job.max_sequence_tokens;
  sink_ = sink;
  free_versions_ = job.free_versions;
  EngineOptions options;
  options.config = config;
  options.dtype = dtype_.value_or(job.precision);
  options.fp32 = job.fp32;
  options.profile = job.profile;
  options.max_sequence_tokens = job.max_sequence_tokens;
  options.max_sequences = job.max_sequences;
  if (on_step_) {
    options.on_step = [this](const StepReport&, const EngineStats& stats) { on_step_(stats); };
  }
  absl::StatusOr<std::unique_ptr<Engine>> engine = Engine::Create(std::move(options));
  HALFSTEP_CHECK(engine.ok());
  absl::MutexLock lock(&mutex_);
  engine_ = *std::move(engine);
  ++jobs_begun_;
  version_ = -1;
}

void LocalRolloutPool::EndJob() {
  {
    absl::MutexLock lock(&mutex_);
    queue_.clear();
  }
  engine_->Stop();
  absl::MutexLock lock(&mutex_);
  engine_.reset();
  published_.clear();
  running_ = 0;
}

void LocalRolloutPool::Publish(std::shared_ptr<const WeightSet> weights) {
  absl::MutexLock pump_lock(&pump_mutex_);
  const uint64_t version = weights->manifest().version;
  if (free_versions_) {
    engine_->SetWeights(Load(*weights), version, [](const absl::Status&) {});
  }
  absl::MutexLock lock(&mutex_);
  if (free_versions_) version_ = static_cast<int64_t>(version);
  published_[version] = std::move(weights);
}

void LocalRolloutPool::ReleaseWeightsBelow(uint64_t version) {
  absl::MutexLock lock(&mutex_);
  published_.erase(published_.begin(), published_.lower_bound(version));
}

void LocalRolloutPool::Assign(std::vector<GroupAssignment> groups) {
  {
    absl::MutexLock lock(&mutex_);
    for (GroupAssignment& group : groups) queue_.push_back(std::move(group));
  }
  Pump();
}

RolloutPoolStatus LocalRolloutPool::Status() const {
  absl::MutexLock lock(&mutex_);
  RolloutPoolStatus status;
  status.rollouts_serving = 1;
  status.waiting_for = "the engine of this process";
  return status;
}

std::vector<uint64_t> LocalRolloutPool::held_versions() const {
  absl::MutexLock lock(&mutex_);
  std::vector<uint64_t> versions;
  for (const auto& [version, weights] : published_) versions.push_back(version);
  return versions;
}

int64_t LocalRolloutPool::jobs_begun() const {
  absl::MutexLock lock(&mutex_);
  return jobs_begun_;
}

void LocalRolloutPool::Pump() {
  absl::MutexLock pump_lock(&pump_mutex_);
  std::vector<GroupAssignment> ready;
  std::shared_ptr<const WeightSet> weights;
  {
    absl::MutexLock lock(&mutex_);
    while (!queue_.empty()) {
      const int64_t version = static_cast<int64_t>(queue_.front().version);
      if (version != version_ && !queue_.front().free) {
        if (running_ > 0) break;
        weights = published_.at(queue_.front().version);
        version_ = version;
      }
      ++running_;
      ready.push_back(std::move(queue_.front()));
      queue_.pop_front();
    }
  }
  if (weights != nullptr) {
    const bool stale = stale_ && loaded_before_ != nullptr;
    engine_->SetWeights(Load(stale ? *loaded_before_ : *weights), weights->manifest().version,
                        [](const absl::Status&) {});
    loaded_before_ = weights;
  }
  for (const GroupAssignment& assignment : ready) Submit(assignment);
}

void LocalRolloutPool::Submit(const GroupAssignment& assignment) {
  auto left = std::make_shared<uint32_t>(assignment.samples);
  GroupCallbacks callbacks;
  callbacks.on_sample = [this, assignment, left](Sample sample) {
    if (rotate_log_probs_ && !sample.log_probs.empty()) {
      std::rotate(sample.log_probs.begin(), sample.log_probs.begin() + 1, sample.log_probs.end());
    }
    if (assignment.version >= shift_from_) {
      for (float& log_prob : sample.log_probs) log_prob += shift_;
    }
    sink_->OnSample(assignment, rollout_id_, std::move(sample));
    if (--*left == 0) OnGroupDone();
  };
  callbacks.on_failure = [this, assignment](const absl::Status& why) {
    if (!absl::IsCancelled(why)) sink_->OnGroupLost(assignment, why);
  };
  const absl::StatusOr<GroupHandle> handle =
      engine_->Submit(RequestOf(assignment), std::move(callbacks));
  if (!handle.ok()) sink_->OnGroupLost(assignment, handle.status());
}

void LocalRolloutPool::OnGroupDone() {
  {
    absl::MutexLock lock(&mutex_);
    --running_;
  }
  Pump();
}

std::shared_ptr<const ModelWeights> LocalRolloutPool::Load(const WeightSet& weights) const {
  const EngineOptions& options = engine_->options();
  auto loaded =
      std::make_shared<ModelWeights>(options.config, layout_, options.dtype, rope_positions_);
  Workspace workspace;
  ExecContext ctx;
  ctx.workspace = &workspace;
  const uint8_t* from = weights.bytes().data();
  int parameter = 0;
  for (const TensorManifest& tensor : weights.manifest().tensors) {
    const Tensor to = tensor.name == kRopeTableName ? loaded->rope_table()
                                                    : loaded->parameters().view(parameter++);
    Cast(ctx, ConstTensor(from, tensor.dtype, to.shape()), Overflow::kInfinity, to);
    from += tensor.bytes;
  }
  if (flip_a_bit_) {
    HALFSTEP_CHECK_EQ(SizeOf(options.dtype), sizeof(uint16_t));
    *static_cast<uint16_t*>(loaded->parameters().view(layout_->final_norm()).data()) ^= 1;
  }
  loaded->Pack(ctx);
  return loaded;
}

}  // namespace halfstep
