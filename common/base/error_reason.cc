// SPDX-License-Identifier: Apache-2.0
// Payloads are lists of netstrings ("5:hello"), which need no escaping and no schema.
#include "common/base/error_reason.h"

#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace halfstep {
namespace {

constexpr char kReasonUrl[] = "type.halfstep.dev/reason";
constexpr char kViolationsUrl[] = "type.halfstep.dev/field_violations";

void AppendNetstring(std::string& out, const std::string& value) {
  absl::StrAppend(&out, value.size(), ":", value);
}

// The netstrings of `payload` up to its end or to the first that is malformed.
std::vector<std::string> ReadNetstrings(const std::string& payload) {
  std::vector<std::string> values;
  size_t at = 0;
  while (at < payload.size()) {
    const size_t colon = payload.find(':', at);
    size_t length = 0;
    if (colon == std::string::npos || !absl::SimpleAtoi(payload.substr(at, colon - at), &length) ||
        length > payload.size() - colon - 1) {
      break;
    }
    values.push_back(payload.substr(colon + 1, length));
    at = colon + 1 + length;
  }
  return values;
}

std::vector<std::string> ReadPayload(const absl::Status& status, const char* url) {
  const absl::optional<absl::Cord> payload = status.GetPayload(url);
  return payload ? ReadNetstrings(std::string(*payload)) : std::vector<std::string>();
}

}  // namespace

absl::Status Error(absl::StatusCode code, std::string reason, const std::string& message) {
  return WithReason(absl::Status(code, message), ErrorReason{std::move(reason), {}});
}

absl::Status WithReason(absl::Status status, ErrorReason reason) {
  std::string payload;
  AppendNetstring(payload, reason.reason);
  for (const auto& [key, value] : reason.metadata) {
    AppendNetstring(payload, key);
    AppendNetstring(payload, value);
  }
  status.SetPayload(kReasonUrl, absl::Cord(payload));
  return status;
}

absl::Status WithFieldViolations(absl::Status status,
                                 const std::vector<FieldViolation>& violations) {
  std::string payload;
  for (const FieldViolation& violation : violations) {
    AppendNetstring(payload, violation.field);
    AppendNetstring(payload, violation.description);
    AppendNetstring(payload, std::to_string(violation.line));
    AppendNetstring(payload, std::to_string(violation.column));
  }
  status.SetPayload(kViolationsUrl, absl::Cord(payload));
  return status;
}

absl::Status WithContext(const absl::Status& status, const std::string& context) {
  if (status.ok()) return status;
  absl::Status result(status.code(), absl::StrCat(context, ": ", status.message()));
  status.ForEachPayload([&result](absl::string_view url, const absl::Cord& payload) {
    result.SetPayload(url, payload);
  });
  return result;
}

std::optional<ErrorReason> GetErrorReason(const absl::Status& status) {
  const std::vector<std::string> values = ReadPayload(status, kReasonUrl);
  if (values.empty()) return std::nullopt;
  ErrorReason reason{values[0], {}};
  for (size_t i = 1; i + 1 < values.size(); i += 2) reason.metadata[values[i]] = values[i + 1];
  return reason;
}

std::vector<FieldViolation> GetFieldViolations(const absl::Status& status) {
  const std::vector<std::string> values = ReadPayload(status, kViolationsUrl);
  std::vector<FieldViolation> violations;
  for (size_t i = 0; i + 3 < values.size(); i += 4) {
    FieldViolation violation{values[i], values[i + 1], 0, 0};
    if (!absl::SimpleAtoi(values[i + 2], &violation.line) ||
        !absl::SimpleAtoi(values[i + 3], &violation.column)) {
      break;
    }
    violations.push_back(std::move(violation));
  }
  return violations;
}

std::string ReasonOf(const absl::Status& status) {
  const std::optional<ErrorReason> reason = GetErrorReason(status);
  return reason ? reason->reason : "";
}

}  // namespace halfstep
