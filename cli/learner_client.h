// SPDX-License-Identifier: Apache-2.0
// The job API from the caller's side, with deadlines, and watching that survives broken streams.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/rpc/channel.h"
#include "halfstep/v1/training_job.pb.h"

namespace halfstep {

struct WatchOptions {
  int64_t cursor = 0;  // events after it
  // False ends the watch.
  std::function<bool(const v1::TrainingJobEvent&)> on_event;
  // Asked a few times a second, from another thread; false ends the watch.
  std::function<bool()> go_on = [] { return true; };
  // How long the learner may be unreachable.
  absl::Duration patience = absl::Minutes(2);
};

// Thread-safe.
class LearnerClient {
 public:
  // `timeout`: of each call but Watch. Errors: those of MakeChannel.
  static absl::StatusOr<std::unique_ptr<LearnerClient>> Make(const ChannelOptions& channel,
                                                             absl::Duration timeout);
  ~LearnerClient();

  // Errors of the calls are the learner's; one that cannot be reached is UNAVAILABLE, with its
  // address and what to do.
  absl::StatusOr<v1::TrainingJob> Create(const v1::CreateTrainingJobRequest& request);
  absl::StatusOr<v1::TrainingJob> Get(const std::string& name);
  absl::StatusOr<v1::TrainingJob> Pause(const std::string& name);
  absl::StatusOr<v1::TrainingJob> Resume(const std::string& name);
  absl::StatusOr<v1::TrainingJob> Cancel(const std::string& name);
  absl::StatusOr<v1::ListTrainingJobsResponse> List(const v1::ListTrainingJobsRequest& request);

  // Every event after the cursor, once and in order, until the job is finished (OK), on_event or
  // go_on say false (CANCELLED), or the learner stays unreachable (UNAVAILABLE). Attaches again by
  // itself.
  absl::Status Watch(const std::string& name, const WatchOptions& options);

 private:
  struct Impl;
  explicit LearnerClient(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace halfstep
