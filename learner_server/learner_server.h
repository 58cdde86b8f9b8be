// SPDX-License-Identifier: Apache-2.0
// LearnerServer: the whole server as one object: main.cc runs one, tests may run several.
#pragma once

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/rpc/server.h"

namespace halfstep {

struct LearnerServerOptions {
  ServerOptions server;  // its metrics are set by the learner
  // Of metrics and probes, in plain text; public only with server.insecure.
  std::string http = "127.0.0.1:0";
  std::string root = ".";  // every path of a job is below it, links followed
  std::string state;       // folder of the job store; empty: .halfstep in the root
  int threads = 0;         // of the trainer; 0: one per core
  bool recompute_activations = false;
  // Without a serving rollout: how long until a job pauses.
  absl::Duration no_rollout_timeout = absl::Minutes(10);
  // What one rollout may take for a group before another gets it.
  absl::Duration group_timeout = absl::Minutes(10);
  // What a rollout that holds groups may go without progress before others get them.
  absl::Duration stuck_timeout = absl::Minutes(2);
  // What all groups of a batch, or of an evaluation, may take together until a job pauses.
  absl::Duration batch_timeout = absl::Hours(2);
  // Written once both ports are known (common/rpc/port_file.h). Empty: no file.
  std::string port_file;
};

// Thread-safe.
class LearnerServer {
 public:
  // Listens, takes up the jobs of its store and is ready for calls. Errors: those of
  // RpcServer::Start, CheckPlainAddress, HttpServer::Start and JobStore::Open; NOT_FOUND for a root
  // that is no folder.
  static absl::StatusOr<std::unique_ptr<LearnerServer>> Start(LearnerServerOptions options);
  // Stops, waiting for the running job as long as it takes to notice.
  ~LearnerServer();

  const std::string& grpc_address() const;
  const std::string& http_address() const;

  // Tells watchers and rollouts to come back later, stops the running job, which goes on at the
  // next start, and ends the servers. DEADLINE_EXCEEDED when the job has not stopped within
  // `grace`: then nothing can be torn down in order, and the process should end.
  absl::Status Stop(absl::Duration grace);

 private:
  struct Impl;
  explicit LearnerServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace halfstep
