// SPDX-License-Identifier: Apache-2.0
#include "common/rpc/auth.h"

#include <sys/stat.h>

#include <cstdint>
#include <optional>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "common/base/error_reason.h"
#include "common/base/file.h"
#include "common/base/status_macros.h"

namespace halfstep {
namespace {

constexpr size_t kMaxCredentialsBytes = 1 << 20;
constexpr char kBearer[] = "bearer ";

std::optional<Role> ParseRole(const std::string& name) {
  for (const Role role : {Role::kAdmin, Role::kSubmitter, Role::kViewer, Role::kRollout}) {
    if (name == RoleName(role)) return role;
  }
  return std::nullopt;
}

// Looks at every byte of both whatever they hold; only the length of `given`, which the caller
// knows, shows in the time.
bool EqualInConstantTime(const std::string& secret, const std::string& given) {
  uint32_t difference = static_cast<uint32_t>(secret.size() ^ given.size());
  for (size_t i = 0; i < given.size(); ++i) {
    const char expected = secret.empty() ? '\0' : secret[i % secret.size()];
    difference |= static_cast<uint8_t>(expected ^ given[i]);
  }
  return difference == 0;
}

absl::Status BadFile(const std::string& path, const std::string& problem) {
  return Error(absl::StatusCode::kInvalidArgument, "BAD_CREDENTIALS_FILE",
               absl::StrCat(path, ": ", problem));
}

absl::Status Unauthenticated(const std::string& reason, const std::string& message) {
  return Error(absl::StatusCode::kUnauthenticated, reason, message);
}

}  // namespace

const char* RoleName(Role role) {
  switch (role) {
    case Role::kAdmin:
      return "admin";
    case Role::kSubmitter:
      return "submitter";
    case Role::kViewer:
      return "viewer";
    case Role::kRollout:
      return "rollout";
  }
  return "unknown";
}

const MethodRoles& HalfstepMethodRoles() {
  static const auto* const table = [] {
    const std::set<Role> readers = {Role::kAdmin, Role::kSubmitter, Role::kViewer};
    const std::set<Role> writers = {Role::kAdmin, Role::kSubmitter};
    const std::set<Role> rollouts = {Role::kAdmin, Role::kRollout};
    return new MethodRoles{
        {"/halfstep.v1.TrainingJobService/CreateTrainingJob", writers},
        {"/halfstep.v1.TrainingJobService/GetTrainingJob", readers},
        {"/halfstep.v1.TrainingJobService/ListTrainingJobs", readers},
        {"/halfstep.v1.TrainingJobService/CancelTrainingJob", writers},
        {"/halfstep.v1.TrainingJobService/PauseTrainingJob", writers},
        {"/halfstep.v1.TrainingJobService/ResumeTrainingJob", writers},
        {"/halfstep.v1.TrainingJobService/WatchTrainingJob", readers},
        {"/halfstep.v1.RolloutCoordinationService/Attach", rollouts},
        {"/halfstep.v1.WeightService/FetchWeights", rollouts},
        {"/halfstep.v1.WeightService/FetchModel", rollouts},
        {"/halfstep.v1.GenerationService/Generate", writers},
        {"/halfstep.v1.GenerationService/GetServerInfo", readers},
    };
  }();
  return *table;
}

absl::StatusOr<std::vector<RoleGrant>> ReadRoleGrants(const std::string& path) {
  HALFSTEP_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxCredentialsBytes));
  struct stat info;
  if (stat(path.c_str(), &info) == 0 && (info.st_mode & S_IROTH) != 0) {
    return BadFile(path, "every user of this machine may read it; chmod o-r it");
  }
  std::vector<RoleGrant> grants;
  int line_number = 0;
  for (const absl::string_view raw : absl::StrSplit(text, '\n')) {
    ++line_number;
    const std::string line(absl::StripAsciiWhitespace(raw));
    if (line.empty() || line[0] == '#') continue;
    const std::vector<std::string> words =
        absl::StrSplit(line, absl::ByAnyChar(" \t"), absl::SkipEmpty());
    const std::optional<Role> role = ParseRole(words[0]);
    if (words.size() != 2 || !role) {
      return BadFile(path, absl::StrCat("line ", line_number,
                                        ": expected 'role value' with a role of admin, submitter, "
                                        "viewer, rollout"));
    }
    grants.push_back({*role, words[1]});
  }
  if (grants.empty()) return BadFile(path, "holds no line 'role value'");
  return grants;
}

Authorizer::Authorizer(Options options, MethodRoles methods)
    : options_(std::move(options)), methods_(std::move(methods)) {}

absl::StatusOr<std::set<Role>> Authorizer::RolesOf(const CallerEvidence& evidence) const {
  std::set<Role> roles;
  for (const RoleGrant& grant : options_.identities) {
    for (const std::string& identity : evidence.identities) {
      if (grant.value == identity) roles.insert(grant.role);
    }
  }
  if (!evidence.authorization.empty()) {
    if (!absl::StartsWithIgnoreCase(evidence.authorization, kBearer)) {
      return Unauthenticated("BAD_CREDENTIALS", "the authorization header is not 'Bearer <token>'");
    }
    const std::string token = evidence.authorization.substr(sizeof(kBearer) - 1);
    bool known = false;
    for (const RoleGrant& grant : options_.tokens) {
      if (!EqualInConstantTime(grant.value, token)) continue;
      roles.insert(grant.role);
      known = true;
    }
    if (!known) return Unauthenticated("BAD_CREDENTIALS", "the bearer token is not known here");
  }
  if (roles.empty()) {
    return Unauthenticated(
        "CREDENTIALS_MISSING",
        "this server needs a bearer token (--token-file) or a client certificate "
        "with a role");
  }
  return roles;
}

absl::Status Authorizer::Check(const std::string& method, const CallerEvidence& evidence) const {
  std::set<Role> roles = {Role::kAdmin};
  if (!options_.open) {
    HALFSTEP_ASSIGN_OR_RETURN(roles, RolesOf(evidence));
  }
  const auto entry = methods_.find(method);
  if (entry != methods_.end()) {
    for (const Role role : roles) {
      if (entry->second.count(role) > 0) return absl::OkStatus();
    }
  }
  const std::string names =
      absl::StrJoin(roles, ", ", [](std::string* out, Role role) { out->append(RoleName(role)); });
  return WithReason(
      absl::PermissionDeniedError(absl::StrCat("role ", names, " may not call ", method)),
      {"ROLE_NOT_ALLOWED", {{"method", method}, {"role", names}}});
}

}  // namespace halfstep
