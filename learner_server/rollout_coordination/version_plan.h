// SPDX-License-Identifier: Apache-2.0
// Which rollout should serve which policy version: a pure decision over what waits and who is
// there.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <vector>

#include "learner_server/rollout_coordination/group_table.h"

namespace halfstep {

struct VersionServer {
  SessionId session = 0;
  // Served, or being switched to; nothing for a rollout that has yet to load its first set.
  std::optional<uint64_t> version;
  // Holds groups or is between two sets: it cannot be moved now.
  bool busy = false;
};

struct VersionPlan {
  // For every server that is not busy: the version it should serve next.
  std::map<SessionId, uint64_t> targets;
  // The lowest version that groups wait for while nobody serves it or will: groups of higher
  // versions must wait too, so that somebody gets idle and can take it up.
  std::optional<uint64_t> starved;
};

// `waiting`: groups not held by anybody, by version; published versions only. `newest`: the highest
// published version, where servers go that no waiting group needs. Lower versions are looked after
// first, each by at most as many servers as groups wait for it; a server that is there already is
// taken before one that would have to switch.
VersionPlan PlanVersions(const std::map<uint64_t, int64_t>& waiting,
                         const std::vector<VersionServer>& servers, uint64_t newest);

// The version a busy server on `serving` should fetch beside its work: the next one that groups
// wait for, else `newest`; nothing when it serves that already.
std::optional<uint64_t> NextVersion(const std::map<uint64_t, int64_t>& waiting, uint64_t serving,
                                    uint64_t newest);

}  // namespace halfstep
