// SPDX-License-Identifier: Apache-2.0
#include "common/rpc/status.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/error_reason.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace halfstep {
namespace {

constexpr char kDomain[] = "halfstep";
constexpr size_t kMaxMessageBytes = 8 * 1024;
constexpr size_t kMaxViolationBytes = 32 * 1024;

void AddErrorInfo(const absl::Status& status, google::rpc::Status& details) {
  google::rpc::ErrorInfo info;
  info.set_domain(kDomain);
  if (const auto reason = GetErrorReason(status)) {
    info.set_reason(reason->reason);
    info.mutable_metadata()->insert(reason->metadata.begin(), reason->metadata.end());
  } else {
    info.set_reason(absl::StatusCodeToString(status.code()));
  }
  details.add_details()->PackFrom(info);
}

void AddViolations(const absl::Status& status, google::rpc::Status& details) {
  const std::vector<FieldViolation> violations = GetFieldViolations(status);
  if (violations.empty()) return;
  google::rpc::BadRequest request;
  size_t bytes = 0;
  for (const FieldViolation& violation : violations) {
    bytes += violation.field.size() + violation.description.size();
    if (bytes > kMaxViolationBytes) break;
    auto* out = request.add_field_violations();
    out->set_field(violation.field);
    out->set_description(violation.description);
  }
  details.add_details()->PackFrom(request);
}

}  // namespace

grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  const std::string message = std::string(status.message()).substr(0, kMaxMessageBytes);
  google::rpc::Status details;
  details.set_code(static_cast<int>(status.code()));
  details.set_message(message);
  AddErrorInfo(status, details);
  AddViolations(status, details);
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), message,
                      details.SerializeAsString());
}

absl::Status FromGrpcStatus(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  absl::Status result(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
  google::rpc::Status details;
  if (!details.ParseFromString(status.error_details())) return result;
  for (const google::protobuf::Any& any : details.details()) {
    google::rpc::ErrorInfo info;
    google::rpc::BadRequest request;
    if (any.UnpackTo(&info)) {
      result =
          WithReason(result, {info.reason(), {info.metadata().begin(), info.metadata().end()}});
    } else if (any.UnpackTo(&request)) {
      std::vector<FieldViolation> violations;
      for (const auto& violation : request.field_violations()) {
        violations.push_back({violation.field(), violation.description()});
      }
      result = WithFieldViolations(result, violations);
    }
  }
  return result;
}

}  // namespace halfstep
