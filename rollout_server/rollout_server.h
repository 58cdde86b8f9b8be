// SPDX-License-Identifier: Apache-2.0
// RolloutServer: the whole server as one object: main.cc runs one, tests may run several.
#pragma once

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/rpc/channel.h"
#include "common/rpc/server.h"

namespace halfstep {

struct RolloutServerOptions {
  std::string id;          // empty: made from the host's name, and the port if it is fixed
  ChannelOptions learner;  // target: where the learner's services are
  ServerOptions server;    // of GenerationService; its metrics are set by the server
  // Of metrics and probes, in plain text; public only with server.insecure.
  std::string http = "127.0.0.1:0";
  int threads = 0;            // of the engine; 0: one per core
  size_t kv_cache_bytes = 0;  // 0: what a job needs, within half of free memory
  // Written once both ports are known (common/rpc/port_file.h). Empty: no file.
  std::string port_file;
};

// Thread-safe.
class RolloutServer {
 public:
  // Listens and starts attaching to the learner, which need not be there yet. Needs nothing but its
  // address: model, tokenizer and weights come from there.
  static absl::StatusOr<std::unique_ptr<RolloutServer>> Start(RolloutServerOptions options);
  // Stops without draining.
  ~RolloutServer();

  const std::string& id() const;
  const std::string& grpc_address() const;
  const std::string& http_address() const;

  // Why this server cannot be given work; OK while it is attached.
  absl::Status ready() const;

  // Leaves the learner: finishes what it holds until `drain_deadline`, then stops everything.
  // Idempotent.
  void Stop(absl::Time drain_deadline);

 private:
  struct Impl;
  explicit RolloutServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace halfstep
