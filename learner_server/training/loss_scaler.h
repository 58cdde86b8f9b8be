// SPDX-License-Identifier: Apache-2.0
// LossScaler: dynamic loss scaling as a value, with the rules of docs/numerics.md and the published
// scalers of PyTorch, DeepSpeed and Megatron as presets.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace halfstep {

// Powers of two only, so that scaling and unscaling are exact.
struct LossScaleOptions {
  float initial = 65536;
  float growth = 2;
  float backoff = 0.5f;
  int64_t interval = 400;    // good steps before the scale grows
  int64_t hysteresis = 1;    // overflows, refilled by growth, before the scale shrinks
  float minimum = 1;         // 0: the smallest normal FP32 number
  float maximum = 16777216;  // 0: the largest power of two in FP32
  bool dynamic = true;       // false: the scale stays as it is
};

// "default", "torch", "deepspeed", "megatron", "static". INVALID_ARGUMENT for another name.
absl::StatusOr<LossScaleOptions> LossScalePreset(const std::string& name);

// INVALID_ARGUMENT, naming the field, for what no scaler can work with.
absl::Status CheckLossScaleOptions(const LossScaleOptions& options);

// Everything a scaler remembers; part of the checkpoint.
struct LossScalerState {
  float scale = 1;
  int64_t good = 0;  // applied steps since the scale changed or a step was skipped
  int64_t hysteresis_left = 0;
  int64_t skips_in_row = 0;
  int64_t applied_steps = 0;
  int64_t skipped_steps = 0;
  std::string
      window;  // outcomes since the first applied step, oldest first: 'a' applied, 's' skipped
  friend bool operator==(const LossScalerState&, const LossScalerState&) = default;
};

// A value: copy it freely. Not thread-safe.
class LossScaler {
 public:
  static constexpr int64_t kMaxSkipsInRow = 20;
  static constexpr int64_t kWindow = 200;
  static constexpr int64_t kMaxSkipsInWindow = kWindow / 10;

  // `options` pass CheckLossScaleOptions.
  explicit LossScaler(const LossScaleOptions& options);
  // Goes on from a saved state.
  LossScaler(const LossScaleOptions& options, LossScalerState state);

  float scale() const { return state_.scale; }
  // Exact.
  float inverse_scale() const { return 1.0f / state_.scale; }
  const LossScalerState& state() const { return state_; }

  // Takes the largest power of two up to `scale`, at least 2^-126, that lies within the range of
  // the options: what a measurement of the gradients found to fit, before the first step.
  void Calibrate(double scale);

  // After each optimizer step: whether its gradients had an Inf or NaN, so that it was skipped.
  // Fails with reason LOSS_SCALE_FLOOR when the scale would have to go below its minimum, and
  // DIVERGED when too many steps are skipped although some step was applied before; the run is then
  // over.
  absl::Status Update(bool found_inf);

 private:
  absl::Status Skip();
  void Apply();
  void Remember(char outcome);
  float minimum() const;
  float maximum() const;

  LossScaleOptions options_;
  LossScalerState state_;
};

}  // namespace halfstep
