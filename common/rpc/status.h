// SPDX-License-Identifier: Apache-2.0
// The one place where absl::Status and grpc::Status become each other. On the wire every error
// carries google.rpc.Status with an ErrorInfo (domain "halfstep") and, for mistakes in single
// fields, a BadRequest; here they are the reason and the violations of common/base/error_reason.h.
#pragma once

#include <grpcpp/support/status.h>

#include "absl/status/status.h"

namespace halfstep {

// A status without a reason gets the name of its code as reason. Violations beyond 32 KiB in all
// are cut off, because the details travel in a header of bounded size.
grpc::Status ToGrpcStatus(const absl::Status& status);

// The reverse; line and column of violations are not known on this side.
absl::Status FromGrpcStatus(const grpc::Status& status);

}  // namespace halfstep
