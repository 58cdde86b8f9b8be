// SPDX-License-Identifier: Apache-2.0
// RolloutCoordinator: the scheduling pass after everything that happens, and what time brings.
#include <algorithm>
#include <iterator>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/error_reason.h"
#include "common/trajectory/proto_convert.h"
#include "common/weight_sync/weight_proto.h"
#include "halfstep/v1/rollout_coordination.pb.h"
#include "learner_server/rollout_coordination/rollout_coordinator.h"

namespace halfstep {

void RolloutCoordinator::Schedule() {
  do {
    RemoveDoomed();
    if (job_ != nullptr && !job_->published.empty()) {
      const VersionPlan plan = SwitchVersions();
      AssignWaiting(plan);
      AssignCopies();
    }
    // A full outbox dooms its session in the middle of the pass.
  } while (AnyDoomed());
  ExportStates();
}

bool RolloutCoordinator::AnyDoomed() const {
  return std::any_of(sessions_.begin(), sessions_.end(),
                     [](const auto& entry) { return !entry.second.doomed.ok(); });
}

void RolloutCoordinator::RemoveDoomed() {
  for (auto it = sessions_.begin(); it != sessions_.end();) {
    if (it->second.doomed.ok()) {
      ++it;
      continue;
    }
    Remove(it->second);
    ended_[it->first] = it->second.rollout_id;
    it = sessions_.erase(it);
  }
}

bool RolloutCoordinator::MayWork(const RolloutSession& session) const {
  return session.doomed.ok() && !session.leaving && session.job_epoch == job_->spec->epoch &&
         session.state != RolloutState::kSuspect;
}

// ---- Versions

std::map<uint64_t, int64_t> RolloutCoordinator::WaitingByVersion() const {
  std::map<uint64_t, int64_t> waiting;
  for (const GroupTable::QueueKey& entry : job_->groups.queue()) {
    if (entry.need.free) break;  // what is newest will do
    if (job_->published.contains(entry.need.version)) ++waiting[entry.need.version];
  }
  return waiting;
}

VersionPlan RolloutCoordinator::SwitchVersions() {
  const std::map<uint64_t, int64_t> waiting = WaitingByVersion();
  const uint64_t newest = job_->published.rbegin()->first;
  std::vector<VersionServer> servers;
  for (auto& [id, session] : sessions_) {
    if (!MayWork(session) || !session.job_loaded) continue;
    // A set that was released in the meantime is not worth waiting for, where groups name versions.
    // Where none does it is still newer than the one that is served, and its transfer holds it.
    for (std::optional<WeightIdentity>* set : {&session.preparing, &session.staged}) {
      const bool released = *set && !job_->published.contains((*set)->version);
      if (released && !job_->spec->free_versions) set->reset();
    }
    VersionServer server{id, std::nullopt, job_->groups.LoadOf(id).exact_groups > 0};
    if (session.committing) {
      server.version = session.committing->version;
      server.busy = true;
    } else if (session.serving) {
      server.version = session.serving->version;
    }
    servers.push_back(server);
  }
  VersionPlan plan = PlanVersions(waiting, servers, newest);
  for (auto& [id, session] : sessions_) session.moving = false;
  for (const auto& [id, version] : plan.targets) SteerTo(sessions_.at(id), version);
  for (const VersionServer& server : servers) {
    RolloutSession& session = sessions_.at(server.session);
    if (!server.busy || session.committing || session.preparing || session.staged) continue;
    const std::optional<uint64_t> next = NextVersion(waiting, *server.version, newest);
    if (next) Prepare(session, *next);
  }
  return plan;
}

void RolloutCoordinator::SteerTo(RolloutSession& session, uint64_t version) {
  WeightIdentity target = job_->published.at(version)->manifest().identity();
  if (session.serving == target) return;
  session.moving = true;
  if (session.preparing == target) return;
  if (job_->spec->free_versions) {
    // What is on its way is taken up first: were it given up for each newer set, a learner that
    // publishes faster than a rollout fetches would keep it at an old one.
    if (session.preparing) return;
    if (session.staged) target = *session.staged;
  }
  if (session.staged != target) {
    Prepare(session, version);
    return;
  }
  v1::LearnerMessage message;
  message.mutable_commit_weights()->set_job_epoch(session.job_epoch);
  ToProto(target, message.mutable_commit_weights()->mutable_weights());
  session.committing = std::exchange(session.staged, std::nullopt);
  session.serving = std::nullopt;
  session.phase_since = clock_.Now();
  Apply(session, RolloutEvent::kCommitSent);
  Send(session, std::move(message));
}

void RolloutCoordinator::Prepare(RolloutSession& session, uint64_t version) {
  const WeightManifest& manifest = job_->published.at(version)->manifest();
  v1::LearnerMessage message;
  message.mutable_prepare_weights()->set_job_epoch(session.job_epoch);
  ToProto(manifest, message.mutable_prepare_weights()->mutable_manifest());
  session.preparing = manifest.identity();
  session.staged = std::nullopt;
  session.phase_since = clock_.Now();
  Send(session, std::move(message));
}

// ---- Groups

void RolloutCoordinator::AssignWaiting(const VersionPlan& plan) {
  const std::set<GroupTable::QueueKey>& queue = job_->groups.queue();
  for (auto it = queue.begin(); it != queue.end();) {
    const VersionNeed need = it->need;
    if (plan.starved && (need.free || need.version > *plan.starved)) return;
    const GroupKey key = it->key;
    ++it;
    bool nobody = true;
    RolloutSession* session = PickFor(*job_->groups.Find(key), &nobody);
    if (session != nullptr) {
      Give(key, *session);
    } else if (nobody) {
      it = queue.upper_bound({need, {Purpose::kEval, UINT64_MAX}});
    }
  }
}

RolloutSession* RolloutCoordinator::PickFor(const Group& group, bool* nobody) {
  const VersionNeed need{group.assignment->free, group.assignment->version};
  int expected = 0;  // rollouts that serve or will soon
  bool others = false;
  for (const auto& [id, session] : sessions_) {
    if (!MayWork(session)) continue;
    ++expected;
    if (session.state == RolloutState::kServing && session.rollout_id != group.avoid) others = true;
  }
  if (expected == 0) return nullptr;
  const bool avoiding = others && clock_.Now() < group.avoid_until;
  // Nobody takes more than its share while others are still on their way. Where rollouts hold
  // groups of several needs at once, it is the share of all.
  const int64_t missing =
      job_->spec->free_versions ? job_->groups.missing() : job_->groups.MissingOf(need);
  const int64_t share = (missing + expected - 1) / expected;
  RolloutSession* best = nullptr;
  int64_t best_load = 0;
  for (auto& [id, session] : sessions_) {
    // A free group may be given to a rollout that is about to change its weights.
    if (!MayWork(session) || session.state != RolloutState::kServing ||
        (session.moving && !need.free) || session.free_credit() == 0 ||
        !need.MetBy(session.serving->version)) {
      continue;
    }
    const int64_t load = job_->groups.LoadOf(id).samples;
    if (load >= share && load > 0) continue;
    *nobody = false;
    if (avoiding && session.rollout_id == group.avoid) continue;
    const bool better = best == nullptr || load < best_load ||
                        (load == best_load && session.free_credit() > best->free_credit());
    if (better) {
      best = &session;
      best_load = load;
    }
  }
  return best;
}

void RolloutCoordinator::AssignCopies() {
  if (job_->spec->profile != Profile::kBitwise || job_->mean_group_time <= absl::ZeroDuration()) {
    return;
  }
  const absl::Time now = clock_.Now();
  const absl::Duration slow = job_->mean_group_time * options_.copy_after_mean_times;
  for (auto& [id, session] : sessions_) {
    if (!MayWork(session) || session.state != RolloutState::kServing || session.moving ||
        job_->groups.LoadOf(id).groups > 0) {
      continue;
    }
    std::vector<std::pair<absl::Time, GroupKey>> candidates;
    for (const auto& [key, group] : job_->groups.groups()) {
      // A copy of a free group would be another one.
      if (group.assignment->free || group.assignment->version != session.serving->version ||
          group.holds.size() != 1) {
        continue;
      }
      const absl::Time since = group.holds.begin()->second.since;
      if (now - since >= slow) candidates.emplace_back(since, key);
    }
    std::sort(candidates.begin(), candidates.end());
    // Half of them: the other half may well be finished where it is.
    const size_t count = std::min<uint64_t>((candidates.size() + 1) / 2, session.free_credit());
    for (size_t i = 0; i < count; ++i) Give(candidates[i].second, session);
  }
}

void RolloutCoordinator::Give(const GroupKey& key, RolloutSession& session) {
  job_->groups.Hold(key, session.id, clock_.Now());
  ++session.assigned;
  v1::LearnerMessage message;
  ToProto(*job_->groups.Find(key)->assignment, message.mutable_assign());
  Send(session, std::move(message));
}

// ---- Time

void RolloutCoordinator::Tick() {
  {
    absl::MutexLock lock(&mutex_);
    for (auto& [id, session] : sessions_) TickSession(session);
    if (job_ != nullptr) ExpireHolds();
    Schedule();
  }
  DeliverPending();
}

void RolloutCoordinator::TickSession(RolloutSession& session) {
  const absl::Time now = clock_.Now();
  const absl::Duration silence = now - session.last_heard;
  if (!session.doomed.ok()) return;
  if (!session.greeted) {
    if (silence < options_.hello_timeout) return;
    session.doomed =
        Error(absl::StatusCode::kDeadlineExceeded, "NO_HELLO",
              absl::StrCat("no Hello came within ", absl::FormatDuration(options_.hello_timeout)));
    return;
  }
  if (silence >= options_.lost_after) {
    session.doomed = Error(absl::StatusCode::kDeadlineExceeded, "ROLLOUT_SILENT",
                           absl::StrCat("nothing was heard of rollout '", session.rollout_id,
                                        "' for ", absl::FormatDuration(silence)));
    return;
  }
  if (silence >= options_.suspect_after && session.state != RolloutState::kSuspect) {
    Apply(session, RolloutEvent::kSilent);
    GiveBackAll(session, "it went silent");
  }
  if (session.in_phase() && now - session.phase_since >= options_.phase_timeout) {
    session.doomed =
        Error(absl::StatusCode::kDeadlineExceeded, "ROLLOUT_TOO_SLOW",
              absl::StrCat("rollout '", session.rollout_id, "' did not ", PhaseOf(session),
                           " within ", absl::FormatDuration(options_.phase_timeout)));
    return;
  }
  if (now - session.last_heartbeat_sent >= options_.heartbeat_interval) {
    session.last_heartbeat_sent = now;
    v1::LearnerMessage message;
    message.mutable_heartbeat();
    Send(session, std::move(message));
  }
}

void RolloutCoordinator::ExpireHolds() {
  const absl::Time now = clock_.Now();
  std::vector<std::pair<GroupKey, SessionId>> expired;
  for (const auto& [key, group] : job_->groups.groups()) {
    for (const auto& [id, hold] : group.holds) {
      if (hold.deadline <= now) expired.emplace_back(key, id);
    }
  }
  for (const auto& [key, id] : expired) {
    RolloutSession& session = sessions_.at(id);
    SendAbandon(session, {key});
    GiveBack(key, session, "its deadline passed", /*avoid=*/true);
  }
}

// ---- What is seen from outside

std::string RolloutCoordinator::PhaseOf(const RolloutSession& session) {
  if (!session.job_loaded) return "load the job";
  if (session.preparing) return absl::StrCat("fetch weights version ", session.preparing->version);
  if (session.committing) {
    return absl::StrCat("switch to weights version ", session.committing->version);
  }
  return "";
}

void RolloutCoordinator::ExportStates() {
  std::array<int, std::size(kAllRolloutStates)> counts{};
  for (const auto& [id, session] : sessions_) {
    if (session.greeted) ++counts[static_cast<size_t>(session.state)];
  }
  const auto& gauges = metrics_.rollouts_connected;
  gauges["joining"].Set(counts[static_cast<size_t>(RolloutState::kJoining)]);
  gauges["loading"].Set(counts[static_cast<size_t>(RolloutState::kLoading)]);
  gauges["ready"].Set(counts[static_cast<size_t>(RolloutState::kReady)]);
  gauges["serving"].Set(counts[static_cast<size_t>(RolloutState::kServing)]);
  gauges["suspect"].Set(counts[static_cast<size_t>(RolloutState::kSuspect)]);
}

std::string RolloutCoordinator::WaitingFor() const {
  const absl::Time now = clock_.Now();
  const auto ago = [now](absl::Time since) {
    return absl::FormatDuration(absl::Floor(now - since, absl::Milliseconds(100)));
  };
  std::vector<std::string> parts;
  for (const auto& [id, session] : sessions_) {
    if (!session.greeted) continue;
    std::string part = absl::StrCat("rollout '", session.rollout_id, "' is ", Name(session.state));
    if (session.serving) absl::StrAppend(&part, " version ", session.serving->version);
    if (session.in_phase()) {
      absl::StrAppend(&part, ", has to ", PhaseOf(session), " since ", ago(session.phase_since));
    }
    if (session.stuck) {
      absl::StrAppend(&part, ", without progress for ", ago(session.progress_since));
    } else if (session.state == RolloutState::kSuspect) {
      absl::StrAppend(&part, ", silent for ", ago(session.last_heard));
    }
    if (job_ != nullptr) {
      const std::vector<GroupKey> held = job_->groups.HeldBy(id);
      absl::Time oldest = absl::InfiniteFuture();
      for (const GroupKey& key : held) {
        oldest = std::min(oldest, job_->groups.Find(key)->holds.at(id).since);
      }
      if (!held.empty()) {
        absl::StrAppend(&part, ", holds ", held.size(), " groups, the oldest for ", ago(oldest));
      }
    }
    if (session.failures > 0) absl::StrAppend(&part, ", failed with ", session.last_failure);
    parts.push_back(std::move(part));
  }
  if (parts.empty()) parts.push_back("no rollout server is attached");
  if (refusal_) {
    parts.push_back(absl::StrCat("rollout '", refusal_->rollout_id, "' was sent away ",
                                 ago(refusal_->when), " ago: ", refusal_->why));
  }
  if (job_ != nullptr) {
    std::map<VersionNeed, int64_t> waiting;
    for (const GroupTable::QueueKey& entry : job_->groups.queue()) ++waiting[entry.need];
    for (const auto& [need, groups] : waiting) {
      const bool published = need.free || job_->published.contains(need.version);
      parts.push_back(absl::StrCat(groups, " groups wait for a rollout that serves version ",
                                   need.version, need.free ? " or later" : "",
                                   published ? "" : " (not published)"));
    }
  }
  return absl::StrJoin(parts, "; ");
}

}  // namespace halfstep
