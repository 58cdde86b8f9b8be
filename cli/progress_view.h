// SPDX-License-Identifier: Apache-2.0
// A job's events as they come: a line per step and, on a terminal, a bar below them.
#pragma once

#include <cstdint>
#include <optional>
#include <ostream>
#include <string>

#include "absl/time/time.h"
#include "cli/progress_bar.h"

namespace halfstep::v1 {
class StepFinished;
class TrainingJobEvent;
}  // namespace halfstep::v1

namespace halfstep {

// Not thread-safe.
class ProgressView {
 public:
  // `out` must outlive it.
  ProgressView(std::ostream* out, bool terminal) : out_(*out), bar_(out, terminal) {}

  void OnEvent(const v1::TrainingJobEvent& event);
  // A line from elsewhere.
  void Line(const std::string& text);

 private:
  void OnStep(const v1::StepFinished& step, absl::Time time);
  void DrawBar();

  std::ostream& out_;
  ProgressBar bar_;
  int64_t step_ = 0;
  int64_t steps_ = 0;
  int64_t first_step_ = 0;  // of this view, for the time left
  absl::Time first_time_;
  absl::Time last_time_;
  std::optional<double> last_reward_;
};

// "step 42/200 reward 0.710 (+0.020) len 18 kl 0 scale 65536 | wait 12% train 71% sync 3% | 18.4k
// tok/s". `last_reward`: of the step before, if there was one.
std::string StepLine(const v1::StepFinished& step, std::optional<double> last_reward);

}  // namespace halfstep
