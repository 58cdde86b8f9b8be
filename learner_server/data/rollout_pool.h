// SPDX-License-Identifier: Apache-2.0
// What the trainer needs of the rollout servers, whoever and however many they are.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/model/fp32_parts.h"
#include "common/trajectory/trajectory.h"
#include "common/weight_sync/weight_set.h"
#include "kernels/dtype.h"
#include "kernels/exec_context.h"

namespace halfstep {

// Receives samples as they arrive. Called from transport threads, one call at a time; must not
// block.
class SampleSink {
 public:
  virtual ~SampleSink() = default;
  // A checked sample, exactly once per (group, index); those of a free group are of one rollout.
  virtual void OnSample(const GroupAssignment& assignment, const std::string& rollout_id,
                        Sample sample) = 0;
  // A group that was given up after its bounded number of reassignments.
  virtual void OnGroupLost(const GroupAssignment& assignment, const absl::Status& why) = 0;
};

// One file of a model folder, sent to rollouts as it is.
struct ModelFile {
  std::string name;
  std::string bytes;
};

// What every rollout must load before it can serve the job.
struct RolloutJob {
  uint64_t epoch = 0;            // ascending over the life of the learner's store
  std::vector<ModelFile> files;  // config.json, tokenizer.json, generation_config.json
  int64_t vocab_size = 0;        // token ids of samples are checked against it
  DType precision = DType::kFloat16;
  Fp32Parts fp32;
  Profile profile = Profile::kBitwise;
  int64_t max_sequence_tokens = 0;
  int64_t max_sequences = 0;
  // Training groups name no version: servers take up each new one without finishing their work.
  bool free_versions = false;
};

// Counters of one job, for the summary and metrics.
struct RolloutPoolStatus {
  int rollouts_serving = 0;  // or about to: what they switch to is verified
  int64_t groups_reassigned = 0;
  // A sentence: what each rollout does or holds, since when, and which one was last sent away, why.
  std::string waiting_for;
};

// Thread-safe.
class RolloutPool {
 public:
  virtual ~RolloutPool() = default;

  // From here on every attached and attaching rollout is told to load `job`. `sink` must outlive
  // EndJob.
  virtual void BeginJob(const RolloutJob& job, SampleSink* sink) = 0;
  // Abandons what is outstanding; no call to the sink happens after it returns.
  virtual void EndJob() = 0;

  // Makes a version available. Rollouts prepare it in the background and commit it once they hold
  // no work that an older one must finish; versions that no outstanding or later group can name are
  // released by ReleaseWeightsBelow.
  virtual void Publish(std::shared_ptr<const WeightSet> weights) = 0;
  virtual void ReleaseWeightsBelow(uint64_t version) = 0;

  // Queues groups; each is given to a rollout that serves exactly its version, a free one to any
  // that serves at least it. The caller keeps at most a few batches outstanding.
  virtual void Assign(std::vector<GroupAssignment> groups) = 0;

  virtual RolloutPoolStatus Status() const = 0;
};

}  // namespace halfstep
