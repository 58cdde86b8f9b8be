// SPDX-License-Identifier: Apache-2.0
#include "rollout_server/assignment_book.h"

#include <utility>

namespace halfstep {

void AssignmentBook::Reset() {
  const Ticket next = next_ticket_;
  *this = AssignmentBook();
  next_ticket_ = next;
}

void AssignmentBook::DropAll() {
  groups_.clear();
  tickets_.clear();
  queue_.clear();
  unacknowledged_.clear();
  held_ = 0;
}

Ticket AssignmentBook::Take(const GroupKey& key, uint32_t samples) {
  Drop(key);
  const Ticket ticket = next_ticket_++;
  Group& group = groups_[ticket];
  group.key = key;
  for (uint32_t i = 0; i < samples; ++i) group.missing.insert(group.missing.end(), i);
  tickets_[key] = ticket;
  ++taken_;
  ++held_;
  return ticket;
}

std::optional<Ticket> AssignmentBook::Drop(const GroupKey& key) {
  const auto it = tickets_.find(key);
  if (it == tickets_.end()) return std::nullopt;
  const Ticket ticket = it->second;
  std::erase_if(queue_, [ticket](const Queued& queued) { return queued.ticket == ticket; });
  groups_.erase(ticket);
  tickets_.erase(it);
  --held_;
  return ticket;
}

bool AssignmentBook::Add(Ticket ticket, Sample sample) {
  const auto it = groups_.find(ticket);
  if (it == groups_.end() || it->second.missing.erase(sample.index) == 0) return false;
  ++it->second.queued;
  queue_.push_back({ticket, std::move(sample)});
  return true;
}

bool AssignmentBook::Missing(Ticket ticket) const {
  const auto it = groups_.find(ticket);
  return it != groups_.end() && !it->second.missing.empty();
}

void AssignmentBook::GiveUp(Ticket ticket) {
  const auto it = groups_.find(ticket);
  if (it == groups_.end()) return;
  const std::set<uint32_t> missing = it->second.missing;
  for (const uint32_t index : missing) {
    Sample cancelled;
    cancelled.index = index;
    cancelled.finish_reason = FinishReason::kCancelled;
    Add(ticket, std::move(cancelled));
  }
}

std::optional<AssignmentBook::Batch> AssignmentBook::NextBatch(const BatchLimits& limits) {
  if (queue_.empty()) return std::nullopt;
  Batch batch;
  batch.sequence_number = next_sequence_++;
  size_t completed = 0;
  size_t tokens = 0;
  while (!queue_.empty() && batch.samples.size() < limits.samples) {
    Queued& queued = queue_.front();
    tokens += queued.sample.tokens.size();
    if (!batch.samples.empty() && tokens > limits.tokens) break;
    const auto it = groups_.find(queued.ticket);
    Group& group = it->second;
    batch.samples.push_back({group.key, std::move(queued.sample)});
    queue_.pop_front();
    if (--group.queued == 0 && group.missing.empty()) {
      tickets_.erase(group.key);
      groups_.erase(it);
      ++completed;
    }
  }
  unacknowledged_.push_back({batch.sequence_number, completed});
  return batch;
}

void AssignmentBook::Acknowledge(uint64_t sequence_number) {
  while (!unacknowledged_.empty() && unacknowledged_.front().sequence_number <= sequence_number) {
    held_ -= unacknowledged_.front().groups_completed;
    unacknowledged_.pop_front();
  }
}

}  // namespace halfstep
