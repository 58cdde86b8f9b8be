// SPDX-License-Identifier: Apache-2.0
// GroupTable: which groups of a job wait, which rollout holds which, and which of their samples
// were admitted. Bookkeeping only: it knows no stream, no policy and no clock.
//
// A free group is one draw of one rollout: its samples are kept here until the last one came, and
// what is kept of a group whose rollout loses it is forgotten; the next one generates the group
// from its start, as it does anyway. To keep it would favour short responses, for those are what
// has ended when a rollout is lost. Let a response have ended by then with probability q. Were each
// sample that ended kept and only the others drawn again, such a response would come out 1 + (1-q)
// times as often as the policy draws it; with the n samples of a group drawn again together, 1 +
// q^(n-1) (1-q) times, which is at most about 1 + 1/(e n). What is left is that of the groups
// themselves: one without long responses is more likely to be complete in time. Draws depend on
// seed, group, index and position alone, so that under the same weights the second draw is the
// first one, and nothing is favoured at all. In a group that names its version this is always so
// (profile bitwise; in fast but for rounding), and what was admitted of it stays. One way to a
// mixed draw is left: a session that loses a group and is given it again at once, where what it had
// sent before still arrives.
#pragma once

#include <compare>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "common/trajectory/trajectory.h"

namespace halfstep {

// One attached stream; never used twice by a learner.
using SessionId = uint64_t;

// A group given to one session.
struct GroupHold {
  std::vector<bool> delivered;  // by sample index, whatever became of the sample
  uint32_t left = 0;            // samples not delivered
  std::string refused;          // why the last sample that was not admitted was refused
  absl::Time since;
  absl::Time deadline;
};

struct Group {
  std::shared_ptr<const GroupAssignment> assignment;
  absl::Duration allowance;    // time a session has for it
  std::vector<bool> admitted;  // by sample index
  std::vector<Sample> kept;    // of a free group: those admitted, in the order of arrival
  uint32_t missing = 0;        // samples not admitted
  int reassignments = 0;
  bool queued = true;
  // A rollout that failed at it gets it again only after `avoid_until`.
  std::string avoid;
  absl::Time avoid_until = absl::InfinitePast();
  std::map<SessionId, GroupHold> holds;
};

// What a rollout must serve to be given a group: exactly `version`, or at least it where `free`.
// Groups of an exact version come first.
struct VersionNeed {
  bool free = false;
  uint64_t version = 0;
  bool MetBy(uint64_t served) const { return free ? served >= version : served == version; }
  friend auto operator<=>(const VersionNeed&, const VersionNeed&) = default;
};

// Not thread-safe.
class GroupTable {
 public:
  // Canonical order of waiting groups: the version, then purpose and ordinal.
  struct QueueKey {
    VersionNeed need;
    GroupKey key;
    friend auto operator<=>(const QueueKey&, const QueueKey&) = default;
  };
  struct Load {
    int64_t groups = 0;
    int64_t samples = 0;       // not delivered
    int64_t exact_groups = 0;  // of those, groups that are not free
  };
  enum class Receipt { kAdmitted, kDuplicate };

  // Queues a group; false when one of its key is known. `now` starts no clock: the time until
  // `assignment.deadline` is what each session gets from the moment the group is given to it.
  bool Add(GroupAssignment assignment, absl::Time now);
  // Forgets the group, but for its key among the last ones erased.
  void Erase(const GroupKey& key);
  bool ErasedLately(const GroupKey& key) const { return erased_.contains(key); }

  const Group* Find(const GroupKey& key) const;
  const std::map<GroupKey, Group>& groups() const { return groups_; }
  const std::set<QueueKey>& queue() const { return queue_; }
  // Samples not admitted, over waiting and held groups: of one need, or of all.
  int64_t MissingOf(const VersionNeed& need) const;
  int64_t missing() const;
  Load LoadOf(SessionId session) const;
  // Keys that `session` holds, ascending.
  std::vector<GroupKey> HeldBy(SessionId session) const;

  // Gives the group to `session`, which does not hold it, and takes it from the queue if it is
  // there.
  void Hold(const GroupKey& key, SessionId session, absl::Time now);
  // Takes it back from `session`. The group is neither queued nor erased by that.
  void Release(const GroupKey& key, SessionId session);
  // Queues a group that nobody holds once more, avoiding `rollout_id` until `avoid_until`. Of a
  // free one every sample is missing again.
  void Requeue(const GroupKey& key, const std::string& rollout_id, absl::Time avoid_until);

  // Notes that `session`, which holds the group, delivered sample `index`, below the group's count.
  // It is admitted unless `refused` says why not, or its index was before.
  Receipt Deliver(const GroupKey& key, SessionId session, uint32_t index,
                  const std::string& refused);
  // Keeps a sample of a free group, which was admitted.
  void Keep(const GroupKey& key, Sample sample);
  // The samples kept of a group, which then keeps none. REQUIRES: none is missing.
  std::vector<Sample> TakeComplete(const GroupKey& key);

 private:
  Group& At(const GroupKey& key);

  std::map<GroupKey, Group> groups_;
  std::set<QueueKey> queue_;
  std::map<SessionId, std::set<GroupKey>> held_;
  std::map<SessionId, int64_t> undelivered_;
  std::map<SessionId, int64_t> exact_held_;
  std::map<VersionNeed, int64_t> missing_;
  std::set<GroupKey> erased_;
  std::deque<GroupKey> erased_order_;
};

}  // namespace halfstep
