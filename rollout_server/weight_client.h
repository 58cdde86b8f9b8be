// SPDX-License-Identifier: Apache-2.0
// WeightClient: fetches a model's files and weights from the learner's WeightService.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/weight_sync/staging_area.h"
#include "rollout_server/model_bundle.h"

namespace grpc {
class Channel;
class ClientContext;
}  // namespace grpc

namespace halfstep {

struct WeightClientOptions {
  absl::Duration attempt_timeout = absl::Minutes(2);  // of one call
  int attempts_without_progress = 5;
  absl::Duration backoff = absl::Milliseconds(100);  // doubled with each attempt without progress
};

// Fetches on the caller's thread, one at a time; Cancel may come from any other.
class WeightClient {
 public:
  WeightClient(std::shared_ptr<grpc::Channel> channel, WeightClientOptions options);
  ~WeightClient();

  // Every file, in the order sent; DATA_LOSS (reason MODEL_DIGEST_MISMATCH) unless their digest is
  // `digest`; RESOURCE_EXHAUSTED above 256 MiB.
  absl::StatusOr<std::vector<BundleFile>> FetchModel(uint64_t job_epoch, const std::string& digest);

  // Completes what `staging` was begun with, from where it stands: a call that breaks is resumed at
  // the byte it broke at. Gives up, with the last error, after `attempts_without_progress`; at once
  // for a digest that does not fit (DATA_LOSS), an unknown version (NOT_FOUND), and when cancelled.
  absl::Status FetchWeights(uint64_t job_epoch, StagingArea* staging);

  // Ends the fetch in progress and every later one with CANCELLED, until Allow.
  void Cancel();
  void Allow();

 private:
  class Call;
  absl::Status FetchWeightsOnce(uint64_t job_epoch, StagingArea* staging);
  // Waits; CANCELLED at once when Cancel is called.
  absl::Status Pause(absl::Duration duration);

  const std::shared_ptr<grpc::Channel> channel_;
  const WeightClientOptions options_;
  absl::Mutex mutex_;
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  grpc::ClientContext* active_ ABSL_GUARDED_BY(mutex_) = nullptr;
};

}  // namespace halfstep
