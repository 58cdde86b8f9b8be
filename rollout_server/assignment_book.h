// SPDX-License-Identifier: Apache-2.0
// AssignmentBook: the groups a rollout server was given on one stream, their finished samples on
// the way out, and the credit that follows from them. Pure bookkeeping.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <set>
#include <vector>

#include "common/trajectory/proto_convert.h"
#include "common/trajectory/trajectory.h"

namespace halfstep {

// A group as taken; never used twice, so that news of an earlier one cannot be mistaken for it.
using Ticket = uint64_t;

// Not thread-safe.
class AssignmentBook {
 public:
  // Forgets everything and starts the counts of a stream afresh.
  void Reset();
  // Drops every group; the counts of the stream go on.
  void DropAll();

  // Notes a group that arrived. An earlier one of the same key is dropped.
  Ticket Take(const GroupKey& key, uint32_t samples);
  // Samples of the group are not wanted any more; those not yet sent are thrown away. Returns its
  // ticket if it was held.
  std::optional<Ticket> Drop(const GroupKey& key);
  // Queues a finished sample. False when the ticket is not held (any more).
  bool Add(Ticket ticket, Sample sample);
  // Whether samples of the group are still to be added.
  bool Missing(Ticket ticket) const;
  // Queues a cancelled sample for every one still missing, which hands the group back to the
  // learner.
  void GiveUp(Ticket ticket);

  // What one message may carry; it carries at least one sample.
  struct BatchLimits {
    size_t samples = 64;
    size_t tokens = size_t{1} << 18;
  };
  // Takes queued samples for the next message and returns them with its sequence number (ascending
  // from 1); nothing when none are queued.
  struct Batch {
    uint64_t sequence_number = 0;
    std::vector<KeyedSample> samples;
  };
  std::optional<Batch> NextBatch(const BatchLimits& limits);
  // Every message up to this one was dealt with.
  void Acknowledge(uint64_t sequence_number);

  // Groups that count against the capacity: samples missing, not sent or not acknowledged.
  size_t groups_held() const { return held_; }
  // Total of groups that may ever be given on this stream when `capacity` are held at once.
  uint64_t Credit(uint64_t capacity) const { return taken_ - held_ + capacity; }
  bool empty() const { return held_ == 0; }

 private:
  struct Group {
    GroupKey key;
    std::set<uint32_t> missing;  // indices
    size_t queued = 0;           // samples finished and not sent
  };
  struct Queued {
    Ticket ticket;
    Sample sample;
  };
  // What an acknowledgement of a message means.
  struct Sent {
    uint64_t sequence_number;
    size_t groups_completed;
  };

  Ticket next_ticket_ = 1;
  uint64_t next_sequence_ = 1;
  uint64_t taken_ = 0;
  size_t held_ = 0;
  std::map<Ticket, Group> groups_;
  std::map<GroupKey, Ticket> tickets_;
  std::deque<Queued> queue_;
  std::deque<Sent> unacknowledged_;
};

}  // namespace halfstep
