// SPDX-License-Identifier: Apache-2.0
// TrainingJobService: what job_manager.h does, over gRPC.
#pragma once

#include <memory>

#include "common/rpc/server.h"

namespace halfstep {

class JobManager;

// Thread-safe. No call blocks a gRPC thread: requests run on two threads of its own, the checks of
// new jobs, one after the other, on a third, and watchers are written to whenever their job has
// news and their client has taken the event before.
class JobService {
 public:
  // `manager` must outlive it.
  explicit JobService(JobManager* manager);
  // The server that hosts it must have stopped.
  ~JobService();

  // For RpcServer::Start.
  HostedService hosted();

  // Ends every watch, now and from here on, with UNAVAILABLE (reason LEARNER_STOPPING): clients
  // attach again with their cursor. Call before the server stops, which would wait for them.
  void EndWatches();

 private:
  class Service;
  std::unique_ptr<Service> service_;
};

}  // namespace halfstep
