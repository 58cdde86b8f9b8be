// SPDX-License-Identifier: Apache-2.0
#include "cli/client_call.h"

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "common/base/error_reason.h"
#include "common/rpc/status.h"

namespace halfstep {
namespace {

constexpr absl::Duration kAskInterval = absl::Milliseconds(100);

// "rollout server", "SLOW": "ROLLOUT_SERVER_SLOW".
std::string Reason(const Peer& peer, const char* what) {
  return absl::StrCat(absl::StrReplaceAll(absl::AsciiStrToUpper(peer.kind), {{" ", "_"}}), "_",
                      what);
}

}  // namespace

absl::Status ExplainCall(const grpc::Status& grpc_status, const Peer& peer) {
  const absl::Status status = FromGrpcStatus(grpc_status);
  // An answer of the peer has a reason; a missing answer has none.
  if (status.ok() || !ReasonOf(status).empty()) return status;
  if (status.code() == absl::StatusCode::kUnavailable) {
    return Error(status.code(), Reason(peer, "UNREACHABLE"),
                 absl::StrCat("no ", peer.kind, " answers at ", peer.target, " (", status.message(),
                              "); start ", peer.binary, ", or name another with ", peer.flag));
  }
  if (status.code() == absl::StatusCode::kDeadlineExceeded) {
    return Error(status.code(), Reason(peer, "SLOW"),
                 absl::StrCat("the ", peer.kind, " at ", peer.target, " did not answer within ",
                              absl::FormatDuration(peer.timeout), "; wait longer with --timeout"));
  }
  return status;
}

Canceller::Canceller(grpc::ClientContext* context, const std::function<bool()>& go_on)
    : thread_([this, context, &go_on] {
        while (!done_.WaitForNotificationWithTimeout(kAskInterval)) {
          if (go_on()) continue;
          context->TryCancel();
          return;
        }
      }) {}

Canceller::~Canceller() {
  done_.Notify();
  thread_.join();
}

}  // namespace halfstep
