// SPDX-License-Identifier: Apache-2.0
// Fills the rollout server's metrics from what the engine reports.
#pragma once

#include "absl/time/time.h"
#include "common/metrics/rollout_metrics.h"
#include "rollout_server/generation/engine.h"

namespace halfstep {

// Called by one engine at a time.
class MetricsExporter {
 public:
  // `registry` must outlive it.
  explicit MetricsExporter(Registry* registry) : metrics_(*registry) {}

  // See EngineOptions::on_step.
  void OnStep(const StepReport& report, const EngineStats& stats);
  // Gauges go back to zero; the next engine starts its counts anew.
  void OnEngineStopped();
  void OnWeightsPrepared(absl::Duration took);

 private:
  RolloutMetrics metrics_;
  EngineStats last_;
};

}  // namespace halfstep
