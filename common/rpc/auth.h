// SPDX-License-Identifier: Apache-2.0
// Who may call what: bearer tokens and certificate identities give a role, a table gives each
// method its roles, and what is in no table is denied.
#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace halfstep {

enum class Role { kAdmin, kSubmitter, kViewer, kRollout };

const char* RoleName(Role role);

// Full gRPC method name ("/halfstep.v1.TrainingJobService/GetTrainingJob") to the roles that may
// call it.
using MethodRoles = std::map<std::string, std::set<Role>>;

// The table of every method of the halfstep.v1 services.
const MethodRoles& HalfstepMethodRoles();

// What a caller shows: the value of its "authorization" header and the names in its verified client
// certificate (none without mTLS).
struct CallerEvidence {
  std::string authorization;
  std::vector<std::string> identities;
};

// A name with its role, as one line of a credentials file: "role value".
struct RoleGrant {
  Role role;
  std::string value;
};

// Parses lines "role value"; blank lines and lines that start with '#' are skipped.
// INVALID_ARGUMENT (reason BAD_CREDENTIALS_FILE) names file and line. A file that others may read
// or that holds no line is refused too. Values never appear in messages.
absl::StatusOr<std::vector<RoleGrant>> ReadRoleGrants(const std::string& path);

// Decides every call of a server. Immutable after construction; thread-safe.
class Authorizer {
 public:
  struct Options {
    std::vector<RoleGrant> tokens;
    std::vector<RoleGrant> identities;
    // Nobody needs to show anything: every caller is admin. For servers that only this machine
    // reaches.
    bool open = false;
  };
  Authorizer(Options options, MethodRoles methods);

  // OK, UNAUTHENTICATED (no valid evidence) or PERMISSION_DENIED (role may not call it, or the
  // method is in no table), each with a reason. Compares with every token in time that does not
  // depend on where they differ.
  absl::Status Check(const std::string& method, const CallerEvidence& evidence) const;

 private:
  absl::StatusOr<std::set<Role>> RolesOf(const CallerEvidence& evidence) const;

  const Options options_;
  const MethodRoles methods_;
};

}  // namespace halfstep
