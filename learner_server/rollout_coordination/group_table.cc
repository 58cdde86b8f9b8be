// SPDX-License-Identifier: Apache-2.0
#include "learner_server/rollout_coordination/group_table.h"

#include <utility>

#include "kernels/check.h"

namespace halfstep {
namespace {

// Samples of a finished group come at most as late as the rollouts' heartbeats tell them of it.
constexpr size_t kErasedRemembered = 4096;

VersionNeed NeedOf(const GroupAssignment& assignment) {
  return {assignment.free, assignment.version};
}

}  // namespace

Group& GroupTable::At(const GroupKey& key) {
  const auto it = groups_.find(key);
  HALFSTEP_CHECK(it != groups_.end());
  return it->second;
}

const Group* GroupTable::Find(const GroupKey& key) const {
  const auto it = groups_.find(key);
  return it == groups_.end() ? nullptr : &it->second;
}

bool GroupTable::Add(GroupAssignment assignment, absl::Time now) {
  const auto [it, added] = groups_.try_emplace(assignment.key);
  if (!added) return false;
  Group& group = it->second;
  group.allowance = assignment.deadline - now;
  group.admitted.assign(assignment.samples, false);
  group.missing = assignment.samples;
  missing_[NeedOf(assignment)] += group.missing;
  queue_.insert({NeedOf(assignment), assignment.key});
  group.assignment = std::make_shared<const GroupAssignment>(std::move(assignment));
  return true;
}

void GroupTable::Erase(const GroupKey& key) {
  Group& group = At(key);
  while (!group.holds.empty()) Release(key, group.holds.begin()->first);
  const VersionNeed need = NeedOf(*group.assignment);
  int64_t& missing = missing_[need];
  missing -= group.missing;
  if (missing == 0) missing_.erase(need);
  queue_.erase({need, key});
  groups_.erase(key);
  if (erased_.insert(key).second) erased_order_.push_back(key);
  if (erased_order_.size() > kErasedRemembered) {
    erased_.erase(erased_order_.front());
    erased_order_.pop_front();
  }
}

int64_t GroupTable::MissingOf(const VersionNeed& need) const {
  const auto it = missing_.find(need);
  return it == missing_.end() ? 0 : it->second;
}

int64_t GroupTable::missing() const {
  int64_t missing = 0;
  for (const auto& [need, samples] : missing_) missing += samples;
  return missing;
}

GroupTable::Load GroupTable::LoadOf(SessionId session) const {
  Load load;
  if (const auto it = held_.find(session); it != held_.end()) {
    load.groups = static_cast<int64_t>(it->second.size());
  }
  if (const auto it = undelivered_.find(session); it != undelivered_.end()) {
    load.samples = it->second;
  }
  if (const auto it = exact_held_.find(session); it != exact_held_.end()) {
    load.exact_groups = it->second;
  }
  return load;
}

std::vector<GroupKey> GroupTable::HeldBy(SessionId session) const {
  const auto it = held_.find(session);
  if (it == held_.end()) return {};
  return {it->second.begin(), it->second.end()};
}

void GroupTable::Hold(const GroupKey& key, SessionId session, absl::Time now) {
  Group& group = At(key);
  const auto [it, added] = group.holds.try_emplace(session);
  HALFSTEP_CHECK(added);
  GroupHold& hold = it->second;
  hold.left = group.assignment->samples;
  hold.delivered.assign(hold.left, false);
  hold.since = now;
  hold.deadline = now + group.allowance;
  held_[session].insert(key);
  undelivered_[session] += hold.left;
  exact_held_[session] += !group.assignment->free;
  queue_.erase({NeedOf(*group.assignment), key});
  group.queued = false;
}

void GroupTable::Release(const GroupKey& key, SessionId session) {
  Group& group = At(key);
  const auto hold = group.holds.find(session);
  HALFSTEP_CHECK(hold != group.holds.end());
  const auto undelivered = undelivered_.find(session);
  undelivered->second -= hold->second.left;
  exact_held_[session] -= !group.assignment->free;
  const auto held = held_.find(session);
  held->second.erase(key);
  if (held->second.empty()) {
    held_.erase(held);
    undelivered_.erase(undelivered);
    exact_held_.erase(session);
  }
  group.holds.erase(hold);
}

void GroupTable::Requeue(const GroupKey& key, const std::string& rollout_id,
                         absl::Time avoid_until) {
  Group& group = At(key);
  HALFSTEP_CHECK(group.holds.empty() && !group.queued);
  group.queued = true;
  group.avoid = rollout_id;
  group.avoid_until = avoid_until;
  ++group.reassignments;
  if (group.assignment->free) {
    const uint32_t samples = group.assignment->samples;
    missing_[NeedOf(*group.assignment)] += samples - group.missing;
    group.missing = samples;
    group.admitted.assign(samples, false);
    group.kept.clear();
  }
  queue_.insert({NeedOf(*group.assignment), key});
}

GroupTable::Receipt GroupTable::Deliver(const GroupKey& key, SessionId session, uint32_t index,
                                        const std::string& refused) {
  Group& group = At(key);
  const auto it = group.holds.find(session);
  HALFSTEP_CHECK(it != group.holds.end());
  HALFSTEP_CHECK_LT(index, group.assignment->samples);
  GroupHold& hold = it->second;
  if (!hold.delivered[index]) {
    hold.delivered[index] = true;
    --hold.left;
    --undelivered_[session];
  }
  if (!refused.empty()) hold.refused = refused;
  if (!refused.empty() || group.admitted[index]) return Receipt::kDuplicate;
  group.admitted[index] = true;
  --group.missing;
  --missing_[NeedOf(*group.assignment)];
  return Receipt::kAdmitted;
}

void GroupTable::Keep(const GroupKey& key, Sample sample) {
  Group& group = At(key);
  HALFSTEP_CHECK(group.assignment->free && group.admitted.at(sample.index));
  group.kept.push_back(std::move(sample));
}

std::vector<Sample> GroupTable::TakeComplete(const GroupKey& key) {
  Group& group = At(key);
  HALFSTEP_CHECK_EQ(group.missing, 0u);
  return std::exchange(group.kept, {});
}

}  // namespace halfstep
