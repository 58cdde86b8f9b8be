// SPDX-License-Identifier: Apache-2.0
#include "rollout_server/generation/scheduler.h"

#include <algorithm>
#include <utility>

#include "kernels/check.h"
#include "kernels/ops/attention.h"

namespace halfstep {
namespace {

constexpr SequenceId kNone = 0;

// A sequence is admitted only if the running ones still find a block each for this many steps; else
// it would soon be preempted, and its prompt computed twice.
constexpr int64_t kAdmissionHorizonSteps = 4;

int64_t BlocksFor(int64_t tokens) { return (tokens + kKvBlockTokens - 1) / kKvBlockTokens; }

}  // namespace

Scheduler::Scheduler(const SchedulerOptions& options)
    : options_(options), allocator_(options.blocks) {
  HALFSTEP_CHECK_GT(options_.blocks, 0);
  HALFSTEP_CHECK_GT(options_.max_running, 0);
  HALFSTEP_CHECK_GT(options_.max_step_tokens, options_.max_running);
}

bool Scheduler::Fits(int64_t tokens) const { return BlocksFor(tokens) <= allocator_.total(); }

bool Scheduler::HasRoom(int64_t samples) const {
  return waiting() + samples <= options_.max_waiting;
}

SequenceId Scheduler::AddGroup(int64_t prompt, int64_t samples, int64_t max_tokens) {
  HALFSTEP_CHECK_GT(prompt, 0);
  HALFSTEP_CHECK_GT(samples, 0);
  HALFSTEP_CHECK_LE(prompt, max_tokens);
  HALFSTEP_CHECK(Fits(max_tokens));
  HALFSTEP_CHECK(HasRoom(samples));
  auto group = std::make_shared<Group>();
  group->prompt = prompt;
  group->first = next_id_;
  group->samples = samples;
  group->leader = kNone;
  for (int64_t i = 0; i < samples; ++i) {
    const SequenceId id = next_id_++;
    Entry& entry = entries_[id];
    entry.group = group;
    entry.tokens = prompt;
    waiting_.insert(waiting_.end(), id);
  }
  return group->first;
}

void Scheduler::Cancel(SequenceId sequence) {
  HALFSTEP_CHECK(!entries_.at(sequence).planned);
  Remove(sequence);
}

void Scheduler::RecomputeAll() {
  while (!running_.empty()) {
    const SequenceId id = *running_.begin();
    SendBack(id, &entries_.at(id));
  }
}

void Scheduler::Schedule(StepPlan* plan) {
  plan->Clear();
  PlanDecodes(plan);
  PlanPrompts(plan);
  AdmitWaiting(plan);
}

void Scheduler::PlanDecodes(StepPlan* plan) {
  // By id, because making room takes sequences out of running_.
  for (auto it = running_.begin(); it != running_.end();) {
    const SequenceId id = *it;
    Entry& entry = entries_.at(id);
    if (entry.remaining() == 1) {
      const bool needs_block = BlocksFor(entry.tokens) > static_cast<int64_t>(entry.blocks.size());
      // Without a block the sequence sits this step out; older ones are ahead of it and will
      // finish.
      if (!needs_block || MakeRoom(id)) {
        if (needs_block) entry.blocks.push_back(allocator_.Allocate());
        Plan(id, &entry, 1, plan);
      }
    }
    it = running_.upper_bound(id);
  }
}

void Scheduler::PlanPrompts(StepPlan* plan) {
  for (auto it = running_.begin();
       it != running_.end() && plan->tokens < options_.max_step_tokens;) {
    const SequenceId id = *it;
    Entry& entry = entries_.at(id);
    if (!entry.planned && entry.remaining() > 1) {
      Plan(id, &entry, std::min(entry.remaining(), options_.max_step_tokens - plan->tokens), plan);
    }
    it = running_.upper_bound(id);
  }
}

void Scheduler::AdmitWaiting(StepPlan* plan) {
  for (auto it = waiting_.begin(); it != waiting_.end();) {
    if (running() >= options_.max_running || plan->tokens >= options_.max_step_tokens) return;
    const SequenceId id = *it;
    Entry& entry = entries_.at(id);
    if (!WaitsForLeader(entry)) {
      // Nobody overtakes: otherwise short sequences would starve a long one.
      if (!Admit(id, &entry)) return;
      Plan(id, &entry, std::min(entry.remaining(), options_.max_step_tokens - plan->tokens), plan);
    }
    it = waiting_.upper_bound(id);
  }
}

bool Scheduler::WaitsForLeader(const Entry& entry) const {
  if (entry.group->leader == kNone) return false;
  return entry.fresh() || entry.group->prompt >= kKvBlockTokens;
}

bool Scheduler::Admit(SequenceId id, Entry* entry) {
  Group& group = *entry->group;
  // At least one token must go through the model to give logits, so the last one is never shared.
  const int64_t shared =
      std::min(group.prompt, entry->tokens - 1) / kKvBlockTokens * kKvBlockTokens;
  const Entry* holder = shared > 0 ? PrefixHolder(group, shared) : nullptr;
  const int64_t shared_blocks = holder == nullptr ? 0 : shared / kKvBlockTokens;
  const int64_t needed = BlocksFor(entry->tokens) - shared_blocks;
  const int64_t spare = (running() * kAdmissionHorizonSteps + kKvBlockTokens - 1) / kKvBlockTokens;
  if (allocator_.free() < needed + spare) return false;

  for (int64_t i = 0; i < shared_blocks; ++i) {
    allocator_.Retain(holder->blocks[i]);
    entry->blocks.push_back(holder->blocks[i]);
  }
  for (int64_t i = 0; i < needed; ++i) entry->blocks.push_back(allocator_.Allocate());
  entry->computed = shared_blocks * kKvBlockTokens;
  shared_prompt_tokens_ += entry->computed;
  if (entry->fresh() || (holder == nullptr && shared > 0)) group.leader = id;
  waiting_.erase(id);
  running_.insert(id);
  return true;
}

void Scheduler::Plan(SequenceId id, Entry* entry, int64_t count, StepPlan* plan) {
  entry->planned = true;
  const auto chunk = static_cast<int64_t>(plan->chunks.size());
  plan->chunks.push_back({id, entry->computed, count, &entry->blocks});
  plan->tokens += count;
  if (count < entry->remaining()) return;
  plan->draws.push_back({id, chunk});
  if (entry->group->leader == id && entry->fresh()) Fork(*entry, chunk, plan);
}

void Scheduler::Fork(const Entry& leader, int64_t chunk, StepPlan* plan) {
  const Group& group = *leader.group;
  const int64_t full = group.prompt / kKvBlockTokens;
  const bool partial = group.prompt % kKvBlockTokens != 0;
  for (SequenceId id = group.first; id < group.first + group.samples; ++id) {
    if (running() >= options_.max_running) return;
    if (partial && allocator_.free() == 0) return;
    if (waiting_.count(id) == 0) continue;
    Entry& entry = entries_.at(id);
    if (!entry.fresh()) continue;
    for (int64_t i = 0; i < full; ++i) {
      allocator_.Retain(leader.blocks[i]);
      entry.blocks.push_back(leader.blocks[i]);
    }
    if (partial) {
      entry.blocks.push_back(allocator_.Allocate());
      plan->copies.push_back({leader.blocks[full], entry.blocks[full]});
    }
    entry.computed = group.prompt;
    entry.planned = true;
    shared_prompt_tokens_ += group.prompt;
    plan->draws.push_back({id, chunk});
    waiting_.erase(id);
    running_.insert(id);
  }
}

bool Scheduler::MakeRoom(SequenceId id) {
  while (allocator_.free() == 0) {
    auto newest = std::find_if(running_.rbegin(), running_.rend(), [&](SequenceId candidate) {
      return !entries_.at(candidate).planned;
    });
    // The sequence itself is not planned yet, so the search ends there at the latest.
    const SequenceId victim = *newest;
    if (victim == id) return false;
    SendBack(victim, &entries_.at(victim));
    ++preemptions_;
  }
  return true;
}

void Scheduler::SendBack(SequenceId id, Entry* entry) {
  ReleaseBlocks(entry);
  entry->computed = 0;
  if (entry->group->leader == id) entry->group->leader = kNone;
  running_.erase(id);
  waiting_.insert(id);
}

void Scheduler::Commit(const StepPlan& plan, std::span<const SequenceId> finished) {
  for (const PlannedChunk& chunk : plan.chunks) {
    Entry& entry = entries_.at(chunk.sequence);
    Group& group = *entry.group;
    entry.planned = false;
    entry.computed += chunk.count;
    if (group.leader == chunk.sequence && entry.computed >= group.prompt) group.leader = kNone;
  }
  for (const PlannedDraw& draw : plan.draws) {
    Entry& entry = entries_.at(draw.sequence);
    entry.planned = false;
    ++entry.tokens;
  }
  for (const SequenceId id : finished) Remove(id);
}

void Scheduler::Remove(SequenceId id) {
  Entry& entry = entries_.at(id);
  ReleaseBlocks(&entry);
  if (entry.group->leader == id) entry.group->leader = kNone;
  running_.erase(id);
  waiting_.erase(id);
  entries_.erase(id);
}

void Scheduler::ReleaseBlocks(Entry* entry) {
  // From the end, so that the next sequence takes them in the order of positions.
  for (auto block = entry->blocks.rbegin(); block != entry->blocks.rend(); ++block) {
    allocator_.Release(*block);
  }
  entry->blocks.clear();
}

const Scheduler::Entry* Scheduler::PrefixHolder(const Group& group, int64_t tokens) const {
  for (SequenceId id = group.first; id < group.first + group.samples; ++id) {
    const auto it = entries_.find(id);
    if (it == entries_.end() || running_.count(id) == 0) continue;
    if (it->second.computed >= tokens) return &it->second;
  }
  return nullptr;
}

}  // namespace halfstep
