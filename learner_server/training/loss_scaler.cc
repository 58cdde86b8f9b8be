// SPDX-License-Identifier: Apache-2.0
#include "learner_server/training/loss_scaler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/error_reason.h"
#include "common/base/status_macros.h"
#include "kernels/check.h"

namespace halfstep {
namespace {

constexpr float kLargestPowerOfTwo = 0x1p127f;

bool IsPowerOfTwo(float value) {
  int exponent = 0;
  return std::isnormal(value) && value > 0 && std::frexp(value, &exponent) == 0.5f;
}

absl::Status CheckPowerOfTwo(const char* field, float value) {
  if (IsPowerOfTwo(value)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("loss_scale.", field, " is ", value,
                   "; it must be a positive power of two, so that unscaling is exact"));
}

}  // namespace

absl::StatusOr<LossScaleOptions> LossScalePreset(const std::string& name) {
  if (name == "default") return LossScaleOptions{};
  if (name == "torch") return LossScaleOptions{.interval = 2000, .minimum = 0, .maximum = 0};
  if (name == "deepspeed") {
    return LossScaleOptions{.interval = 1000, .hysteresis = 2, .maximum = 0};
  }
  if (name == "megatron") {
    return LossScaleOptions{.initial = 0x1p32f, .interval = 1000, .hysteresis = 2, .maximum = 0};
  }
  if (name == "static") return LossScaleOptions{.minimum = 0, .maximum = 0, .dynamic = false};
  return absl::InvalidArgumentError(
      absl::StrCat("loss_scale.preset \"", name,
                   "\" is unknown; use default, torch, deepspeed, megatron or static"));
}

absl::Status CheckLossScaleOptions(const LossScaleOptions& options) {
  HALFSTEP_RETURN_IF_ERROR(CheckPowerOfTwo("initial", options.initial));
  HALFSTEP_RETURN_IF_ERROR(CheckPowerOfTwo("factors[0] (growth)", options.growth));
  HALFSTEP_RETURN_IF_ERROR(CheckPowerOfTwo("factors[1] (backoff)", options.backoff));
  if (options.minimum != 0) {
    HALFSTEP_RETURN_IF_ERROR(CheckPowerOfTwo("range[0] (min)", options.minimum));
  }
  if (options.maximum != 0) {
    HALFSTEP_RETURN_IF_ERROR(CheckPowerOfTwo("range[1] (max)", options.maximum));
  }
  if (options.growth < 1 || options.backoff > 0.5f) {
    return absl::InvalidArgumentError(absl::StrCat("loss_scale.factors are [", options.growth, ", ",
                                                   options.backoff,
                                                   "]; growth must be at least 1 and backoff at "
                                                   "most 0.5"));
  }
  if (options.interval < 1 || options.hysteresis < 1) {
    return absl::InvalidArgumentError("loss_scale.interval and hysteresis must be at least 1");
  }
  if (options.initial < options.minimum ||
      (options.maximum != 0 && options.initial > options.maximum)) {
    return absl::InvalidArgumentError(absl::StrCat("loss_scale.initial ", options.initial,
                                                   " lies outside loss_scale.range [",
                                                   options.minimum, ", ", options.maximum, "]"));
  }
  return absl::OkStatus();
}

LossScaler::LossScaler(const LossScaleOptions& options) : options_(options) {
  HALFSTEP_CHECK(CheckLossScaleOptions(options_).ok());
  state_.scale = options.initial;
  state_.hysteresis_left = options.hysteresis;
}

LossScaler::LossScaler(const LossScaleOptions& options, LossScalerState state)
    : options_(options), state_(std::move(state)) {
  HALFSTEP_CHECK(CheckLossScaleOptions(options_).ok());
  HALFSTEP_CHECK(IsPowerOfTwo(state_.scale));
}

void LossScaler::Calibrate(double scale) {
  const double within = std::clamp<double>(scale, minimum(), maximum());
  state_.scale = static_cast<float>(std::exp2(std::floor(std::log2(within))));
}

absl::Status LossScaler::Update(bool found_inf) {
  if (found_inf) return Skip();
  Apply();
  return absl::OkStatus();
}

absl::Status LossScaler::Skip() {
  ++state_.skipped_steps;
  ++state_.skips_in_row;
  state_.good = 0;
  if (state_.applied_steps > 0) Remember('s');
  state_.hysteresis_left = std::max<int64_t>(0, state_.hysteresis_left - 1);
  if (options_.dynamic && state_.hysteresis_left == 0) {
    if (state_.scale <= minimum()) {
      return Error(
          absl::StatusCode::kFailedPrecondition, "LOSS_SCALE_FLOOR",
          absl::StrCat("gradients overflow even at the smallest loss scale, ", state_.scale,
                       "; look at the first tensor with a non-finite gradient, lower the "
                       "learning rate or train in bf16"));
    }
    state_.scale = std::max(state_.scale * options_.backoff, minimum());
  }
  const bool searching = options_.dynamic && state_.applied_steps == 0;
  const int64_t in_window = std::count(state_.window.begin(), state_.window.end(), 's');
  const bool window_full = static_cast<int64_t>(state_.window.size()) == kWindow;
  if (!searching &&
      (state_.skips_in_row >= kMaxSkipsInRow || (window_full && in_window > kMaxSkipsInWindow))) {
    return Error(absl::StatusCode::kFailedPrecondition, "DIVERGED",
                 absl::StrCat("training has diverged: ", state_.skips_in_row,
                              " optimizer steps skipped in a row, ", in_window, " of the last ",
                              state_.window.size(), ", at loss scale ", state_.scale));
  }
  return absl::OkStatus();
}

void LossScaler::Apply() {
  ++state_.applied_steps;
  state_.skips_in_row = 0;
  Remember('a');
  if (!options_.dynamic) return;
  if (++state_.good < options_.interval) return;
  state_.good = 0;
  state_.hysteresis_left = options_.hysteresis;
  // Divided on this side, because the product could be Inf.
  state_.scale =
      state_.scale > maximum() / options_.growth ? maximum() : state_.scale * options_.growth;
}

void LossScaler::Remember(char outcome) {
  if (static_cast<int64_t>(state_.window.size()) == kWindow) state_.window.erase(0, 1);
  state_.window.push_back(outcome);
}

float LossScaler::minimum() const {
  return options_.minimum != 0 ? options_.minimum : std::numeric_limits<float>::min();
}

float LossScaler::maximum() const {
  return options_.maximum != 0 ? options_.maximum : kLargestPowerOfTwo;
}

}  // namespace halfstep
