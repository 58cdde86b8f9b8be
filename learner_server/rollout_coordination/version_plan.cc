// SPDX-License-Identifier: Apache-2.0
#include "learner_server/rollout_coordination/version_plan.h"

#include <algorithm>

namespace halfstep {

VersionPlan PlanVersions(const std::map<uint64_t, int64_t>& waiting,
                         const std::vector<VersionServer>& servers, uint64_t newest) {
  VersionPlan plan;
  std::vector<const VersionServer*> idle;
  std::map<uint64_t, int64_t> servers_of;
  for (const VersionServer& server : servers) {
    if (server.busy) {
      if (server.version) ++servers_of[*server.version];
    } else {
      idle.push_back(&server);
    }
  }
  for (const auto& [version, groups] : waiting) {
    int64_t& serving = servers_of[version];
    // Those who are there come first; the order of the others stays.
    std::stable_partition(idle.begin(), idle.end(), [v = version](const VersionServer* server) {
      return server->version == v;
    });
    size_t taken = 0;
    while (taken < idle.size() && serving < groups) {
      plan.targets[idle[taken]->session] = version;
      ++serving;
      ++taken;
    }
    idle.erase(idle.begin(), idle.begin() + static_cast<std::ptrdiff_t>(taken));
    if (serving == 0 && groups > 0 && !plan.starved) plan.starved = version;
  }
  for (const VersionServer* server : idle) plan.targets[server->session] = newest;
  return plan;
}

std::optional<uint64_t> NextVersion(const std::map<uint64_t, int64_t>& waiting, uint64_t serving,
                                    uint64_t newest) {
  const auto next = waiting.upper_bound(serving);
  const uint64_t version = next != waiting.end() ? next->first : newest;
  return version > serving ? std::optional(version) : std::nullopt;
}

}  // namespace halfstep
