// SPDX-License-Identifier: Apache-2.0
// What every call of the command has in common: errors that say who does not answer and what to do,
// and an end when the person at the terminal wants one.
#pragma once

#include <grpcpp/client_context.h>
#include <grpcpp/support/status.h>

#include <functional>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"

namespace halfstep {

// Whom a call goes to.
struct Peer {
  std::string kind;    // "learner", "rollout server"
  std::string binary;  // what to start
  std::string flag;    // that names another
  std::string target;
  absl::Duration timeout;  // of a call
};

// The peer's own errors as they are. An answer that is missing is UNAVAILABLE (reason such as
// LEARNER_UNREACHABLE) or DEADLINE_EXCEEDED (LEARNER_SLOW) with the peer's address and what to do.
absl::Status ExplainCall(const grpc::Status& status, const Peer& peer);

// Cancels a call as soon as `go_on`, which is asked a few times a second on a thread of its own,
// says false, until destroyed. Both must outlive it.
class Canceller {
 public:
  Canceller(grpc::ClientContext* context, const std::function<bool()>& go_on);
  ~Canceller();
  Canceller(const Canceller&) = delete;
  Canceller& operator=(const Canceller&) = delete;

 private:
  absl::Notification done_;
  std::thread thread_;
};

}  // namespace halfstep
