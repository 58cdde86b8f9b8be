// SPDX-License-Identifier: Apache-2.0
#include "common/rpc/port_file.h"

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "common/base/file.h"
#include "common/base/json.h"
#include "common/base/status_macros.h"

namespace halfstep {
namespace {

constexpr size_t kMaxBytes = 64 << 10;

}  // namespace

absl::Status WritePortFile(const std::string& path, const ServerPorts& ports) {
  const nlohmann::json json = {{"grpc", ports.grpc}, {"http", ports.http}, {"pid", ports.pid}};
  return WriteFileAtomic(path, json.dump() + "\n");
}

absl::StatusOr<ServerPorts> ReadPortFile(const std::string& path) {
  HALFSTEP_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxBytes));
  HALFSTEP_ASSIGN_OR_RETURN(const nlohmann::json json, ParseJson(text));
  const auto is_port_file = [&] {
    return json.is_object() && json.contains("grpc") && json["grpc"].is_string() &&
           json.contains("http") && json["http"].is_string() && json.contains("pid") &&
           json["pid"].is_number_integer();
  };
  if (!is_port_file()) {
    return absl::InvalidArgumentError(absl::StrCat(path, " is not the port file of a server"));
  }
  return ServerPorts{json["grpc"].get<std::string>(), json["http"].get<std::string>(),
                     json["pid"].get<pid_t>()};
}

}  // namespace halfstep
