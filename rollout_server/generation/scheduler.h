// SPDX-License-Identifier: Apache-2.0
// Scheduler: decides which tokens of which sequences the next step computes, and owns their cache
// blocks. Pure bookkeeping over counts: no tokens, no threads, no clock, no device.
//
// Sequences arrive in groups that share a prompt. The first sample of a group (its leader) computes
// the prompt; when its last prompt token is planned, the samples that wait fork from it: they share
// the full blocks, get a copy of the last partial one, and draw their first token from the same
// logits.
//
// Decoding sequences come first, then prompts in chunks, then waiting sequences, each oldest first.
// When a decoding sequence finds no free block, the newest sequences give theirs back and compute
// prompt and generated tokens again later (preemption by recomputation).
#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <span>
#include <unordered_map>
#include <vector>

#include "rollout_server/generation/block_allocator.h"
#include "rollout_server/generation/step_plan.h"

namespace halfstep {

struct SchedulerOptions {
  int64_t blocks = 0;          // of the cache
  int64_t max_running = 256;   // sequences that hold blocks at once
  int64_t max_waiting = 4096;  // sequences not yet started
  int64_t max_step_tokens =
      0;  // of one step; above max_running, so that decoding cannot starve prompts
};

// Not thread-safe.
class Scheduler {
 public:
  explicit Scheduler(const SchedulerOptions& options);

  // Whether a sequence of `tokens` can ever be computed.
  bool Fits(int64_t tokens) const;
  // Whether the waiting queue takes `samples` more.
  bool HasRoom(int64_t samples) const;

  // Queues `samples` sequences over one prompt of `prompt` tokens, each at most `max_tokens` long
  // in all. Returns the id of the first; the others follow consecutively. REQUIRES: prompt, samples
  // > 0; prompt <= max_tokens; Fits(max_tokens); HasRoom(samples).
  SequenceId AddGroup(int64_t prompt, int64_t samples, int64_t max_tokens);

  // Forgets a sequence that has not finished. Not between Schedule and Commit.
  void Cancel(SequenceId sequence);

  // Every running sequence gives its blocks back and computes all its tokens again: the cache holds
  // nothing that is still true. Not between Schedule and Commit.
  void RecomputeAll();

  // Plans a step into `plan`, which is empty when nothing is left to do. A plan must be committed
  // before the next call of any kind.
  void Schedule(StepPlan* plan);

  // The plan was carried out: every draw gave its sequence one more token, and `finished` (a subset
  // of the drawn sequences) need no other.
  void Commit(const StepPlan& plan, std::span<const SequenceId> finished);

  int64_t running() const { return static_cast<int64_t>(running_.size()); }
  int64_t waiting() const { return static_cast<int64_t>(waiting_.size()); }
  int64_t preemptions() const { return preemptions_; }
  int64_t shared_prompt_tokens() const { return shared_prompt_tokens_; }
  const BlockAllocator& blocks() const { return allocator_; }

 private:
  struct Group {
    int64_t prompt = 0;
    SequenceId first = 0;
    int64_t samples = 0;
    // The running sequence that computes the prompt for the others; 0 when none does.
    SequenceId leader = 0;
  };
  struct Entry {
    std::shared_ptr<Group> group;
    int64_t tokens = 0;    // prompt and generated
    int64_t computed = 0;  // tokens whose keys and values are in the cache
    bool planned = false;  // in the plan being made
    std::vector<int32_t> blocks;

    int64_t remaining() const { return tokens - computed; }
    bool fresh() const { return tokens == group->prompt; }
  };

  void PlanDecodes(StepPlan* plan);
  void PlanPrompts(StepPlan* plan);
  void AdmitWaiting(StepPlan* plan);
  // Whether `entry` now holds the blocks it needs to start.
  bool Admit(SequenceId id, Entry* entry);
  void Plan(SequenceId id, Entry* entry, int64_t count, StepPlan* plan);
  void Fork(const Entry& leader, int64_t chunk, StepPlan* plan);
  // Frees blocks of sequences newer than `id` until one is free; false when there are none left to
  // take.
  bool MakeRoom(SequenceId id);
  // From running to waiting, with nothing computed.
  void SendBack(SequenceId id, Entry* entry);
  void Remove(SequenceId id);
  void ReleaseBlocks(Entry* entry);
  bool WaitsForLeader(const Entry& entry) const;
  // A running sequence whose cache holds the prompt of `group` up to `tokens`; null when none does.
  const Entry* PrefixHolder(const Group& group, int64_t tokens) const;

  const SchedulerOptions options_;
  BlockAllocator allocator_;
  SequenceId next_id_ = 1;
  std::unordered_map<SequenceId, Entry> entries_;
  std::set<SequenceId> waiting_;
  std::set<SequenceId> running_;
  int64_t preemptions_ = 0;
  int64_t shared_prompt_tokens_ = 0;
};

}  // namespace halfstep
