// SPDX-License-Identifier: Apache-2.0
// Sends model files and published weights to whoever asks, each at its own pace.
#pragma once

#include "halfstep/v1/weights.grpc.pb.h"
#include "learner_server/rollout_coordination/rollout_coordinator.h"

namespace halfstep {

// Callback API. All transfers read the same bytes; a set stays in memory while it is being sent,
// also when the coordinator has released it.
class WeightService final : public v1::WeightService::CallbackService {
 public:
  // `coordinator` must outlive it.
  explicit WeightService(const RolloutCoordinator* coordinator) : coordinator_(*coordinator) {}

  // NOT_FOUND (reason WEIGHTS_NOT_HELD) for a job epoch, version or digest that is not held;
  // OUT_OF_RANGE (reason BAD_WEIGHT_OFFSET) for an offset beyond the set.
  grpc::ServerWriteReactor<v1::WeightChunk>* FetchWeights(
      grpc::CallbackServerContext* context, const v1::FetchWeightsRequest* request) override;
  // NOT_FOUND (reason JOB_NOT_RUNNING) for a job epoch that is not held.
  grpc::ServerWriteReactor<v1::ModelFileChunk>* FetchModel(
      grpc::CallbackServerContext* context, const v1::FetchModelRequest* request) override;

 private:
  const RolloutCoordinator& coordinator_;
};

}  // namespace halfstep
