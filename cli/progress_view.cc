// SPDX-License-Identifier: Apache-2.0
#include "cli/progress_view.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/console.h"
#include "common/config/enum_names.h"
#include "halfstep/v1/training_job.pb.h"

namespace halfstep {
namespace {

std::optional<double> Find(const v1::StepFinished& step, const char* name) {
  const auto found = step.metrics().find(name);
  if (found == step.metrics().end()) return std::nullopt;
  return found->second;
}

absl::Time TimeOf(const v1::TrainingJobEvent& event) {
  return absl::FromUnixSeconds(event.time().seconds()) + absl::Nanoseconds(event.time().nanos());
}

// Shares of the step's time that went into waiting, computing and publishing.
std::string TimeShares(const v1::StepFinished& step) {
  const double total = Find(step, "time_total").value_or(0);
  if (total <= 0) return "";
  const auto share = [&](std::initializer_list<const char*> names) {
    double seconds = 0;
    for (const char* name : names) seconds += Find(step, name).value_or(0);
    return static_cast<int>(std::lround(100 * seconds / total));
  };
  return absl::StrCat(" | wait ", share({"time_wait", "time_score"}), "% train ",
                      share({"time_forward_backward", "time_optimizer"}), "% sync ",
                      share({"time_publish"}), "%");
}

std::string AfterReason(const std::string& reason, const std::string& message) {
  if (reason.empty() && message.empty()) return "";
  return absl::StrCat(": ", reason, reason.empty() || message.empty() ? "" : ": ", message);
}

}  // namespace

std::string StepLine(const v1::StepFinished& step, std::optional<double> last_reward) {
  std::string line = absl::StrCat("step ", step.step(), "/", step.steps());
  if (const auto reward = Find(step, "reward_mean")) {
    absl::StrAppendFormat(&line, " reward %.3f", *reward);
    if (last_reward) absl::StrAppendFormat(&line, " (%+.3f)", *reward - *last_reward);
  } else if (const auto loss = Find(step, "loss")) {
    absl::StrAppendFormat(&line, " loss %.4f", *loss);
  }
  if (const auto length = Find(step, "length_mean")) {
    absl::StrAppendFormat(&line, " len %.0f", *length);
  }
  if (const auto kl = Find(step, "mismatch_k3")) absl::StrAppendFormat(&line, " kl %.3g", *kl);
  if (const auto scale = Find(step, "loss_scale"))
    absl::StrAppendFormat(&line, " scale %.0f", *scale);
  line += TimeShares(step);
  if (const auto rate = Find(step, "tokens_per_second")) {
    absl::StrAppend(&line, " | ", Short(*rate), " tok/s");
  }
  return line;
}

void ProgressView::Line(const std::string& text) {
  bar_.Clear();
  out_ << text << "\n";
  DrawBar();
  out_.flush();
}

void ProgressView::OnEvent(const v1::TrainingJobEvent& event) {
  if (event.has_step_finished()) {
    OnStep(event.step_finished(), TimeOf(event));
  } else if (event.has_evaluation_finished()) {
    const v1::EvaluationFinished& evaluation = event.evaluation_finished();
    Line(absl::StrCat("held-out prompts after step ", evaluation.step(), ": ",
                      Percent(evaluation.accuracy()), " (greedy ", Percent(evaluation.greedy()),
                      ") of ", evaluation.prompts()));
  } else if (event.has_checkpoint_written()) {
    Line(absl::StrCat("checkpoint of step ", event.checkpoint_written().step(), ": ",
                      event.checkpoint_written().path()));
  } else if (event.has_state_changed()) {
    Line(
        absl::StrCat("job is ", YamlName(event.state_changed().state()),
                     AfterReason(event.state_changed().reason(), event.state_changed().message())));
  } else if (event.has_notice()) {
    Line(absl::StrCat("notice", AfterReason(event.notice().reason(), event.notice().message())));
  }
}

void ProgressView::OnStep(const v1::StepFinished& step, absl::Time time) {
  if (steps_ == 0 || step.step() < step_) {
    first_step_ = step.step();
    first_time_ = time;
  }
  step_ = step.step();
  steps_ = step.steps();
  last_time_ = time;
  Line(StepLine(step, last_reward_));
  last_reward_ = Find(step, "reward_mean");
}

void ProgressView::DrawBar() {
  std::optional<absl::Duration> left;
  if (step_ > first_step_) {
    left = (last_time_ - first_time_) / static_cast<double>(step_ - first_step_) *
           static_cast<double>(steps_ - step_);
  }
  bar_.Draw(step_, steps_, left);
}

}  // namespace halfstep
