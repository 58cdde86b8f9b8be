// SPDX-License-Identifier: Apache-2.0
#include "learner_server/training/health_monitor.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <numeric>
#include <span>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/metrics/names.h"
#include "learner_server/training/step_metrics.h"

namespace halfstep {
namespace {

constexpr double kNoBound = std::numeric_limits<double>::infinity();
// How far back within the bound a figure must be before the alarm is cleared.
constexpr double kClearBelow = 0.8;  // of an upper bound
constexpr double kClearAbove = 1.5;  // times a lower one

static_assert(std::size(metric::kHealthAlarms) == kHealthAlarmCount);

double MeanOf(std::span<const double> values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

double MedianOf(std::span<const double> values) {
  std::vector<double> sorted(values.begin(), values.end());
  const auto middle = sorted.begin() + static_cast<std::ptrdiff_t>(sorted.size() / 2);
  std::nth_element(sorted.begin(), middle, sorted.end());
  return *middle;
}

std::string Percent(double share) { return absl::StrFormat("%.0f %%", 100 * share); }

bool IsLowerBound(HealthAlarm alarm) { return alarm == HealthAlarm::kEntropyCollapse; }

bool Crosses(HealthAlarm alarm, double value, double bound) {
  if (alarm == HealthAlarm::kConstantReward) return value >= bound;
  return IsLowerBound(alarm) ? value < bound : value > bound;
}

bool IsWellWithin(HealthAlarm alarm, double value, double bound) {
  return IsLowerBound(alarm) ? value > kClearAbove * bound : value <= kClearBelow * bound;
}

std::string SentenceOf(HealthAlarm alarm, int64_t step, double value, double bound) {
  const std::string at = absl::StrCat("step ", step, ": ");
  switch (alarm) {
    case HealthAlarm::kConstantReward:
      return absl::StrCat(at, Percent(value), " of the groups of the last ",
                          HealthMonitor::kRewardSteps,
                          " steps had equal rewards for all their samples (bound ", Percent(bound),
                          "), so there is next to nothing to learn from; look at the reward, or at "
                          "whether the task is already solved or out of reach");
    case HealthAlarm::kEntropyCollapse:
      return absl::StrFormat(
          "%sthe policy's entropy fell to %.3g nats per token, the mean of the last %d steps "
          "(bound "
          "%.3g); it hardly explores any more: lower the learning rate, or look at the samples",
          at, value, HealthMonitor::kEntropySteps, bound);
    case HealthAlarm::kMismatchJump:
      return absl::StrFormat(
          "%srollout and learner log-probs differ by %.3g nats per token in the mean of the last "
          "compared steps (bound %.3g); look for a rollout with other weights, precision or build",
          at, value, bound);
    case HealthAlarm::kGradientNormJump:
      return absl::StrFormat(
          "%sthe gradient norm is %.3g in the mean of the last %d updates (bound %.3g, %g times "
          "the "
          "median before); lower the learning rate or optimizer.clip_norm",
          at, value, HealthMonitor::kGradientSteps, bound, HealthMonitor::kGradientRise);
    case HealthAlarm::kUnscorableShare:
      return absl::StrCat(at, Percent(value), " of the responses of the last ",
                          HealthMonitor::kUnscorableSteps, " steps have no score (bound ",
                          Percent(bound),
                          "); look at reward_outcomes, the answers of the data and the reward's "
                          "settings");
  }
  return "";
}

std::optional<double> ShareOf(int64_t part, int64_t whole) {
  if (whole == 0) return std::nullopt;
  return static_cast<double>(part) / static_cast<double>(whole);
}

}  // namespace

// What an alarm looks at.
struct HealthMonitor::Reading {
  double value = 0;
  double before = 0;  // median of the steps before; NaN while there are too few
  double bound = kNoBound;
};

const char* Name(HealthAlarm alarm) { return metric::kHealthAlarms[static_cast<size_t>(alarm)]; }

HealthFigures HealthFiguresOf(const StepRecord& record, bool supervised) {
  HealthFigures figures{.step = record.step};
  for (const OptimizerStepReport& update : record.updates) {
    if (update.applied && update.gradient_norm > 0) figures.gradient_norm = update.gradient_norm;
  }
  if (supervised) return figures;
  if (record.batch.samples > record.batch.groups) {
    figures.zero_std_group_share = ShareOf(record.batch.zero_std_groups, record.batch.groups);
  } else if (record.batch.groups > 0) {
    // A group of one response is always all equal; the batch is what is compared.
    figures.zero_std_group_share = record.batch.reward_std == 0 ? 1 : 0;
  }
  double entropy = 0;
  for (const OptimizerStepReport& update : record.updates) entropy += update.entropy_sum;
  if (record.tokens_trained() > 0) {
    figures.entropy = entropy / static_cast<double>(record.tokens_trained());
  }
  if (record.mismatch.tokens_compared > 0) figures.mismatch = record.mismatch.abs_mean;
  figures.tokens_compared = record.mismatch.tokens_compared;
  const auto dropped = record.batch.samples_dropped.find("unscored");
  figures.unscorable_share = ShareOf(
      dropped == record.batch.samples_dropped.end() ? 0 : dropped->second, record.batch.samples);
  return figures;
}

HealthMonitor::HealthMonitor(const HealthOptions& options, HealthState* state)
    : options_(options), state_(state) {}

bool HealthMonitor::raised(HealthAlarm alarm) const { return state_->raised.contains(Name(alarm)); }

std::optional<double> HealthMonitor::MismatchOf(const HealthFigures& figures) const {
  if (!options_.bitwise && figures.tokens_compared < kLeastCompared) return std::nullopt;
  return figures.mismatch;
}

bool HealthMonitor::IsMismatchJump(const HealthFigures& figures) const {
  const std::optional<double> mismatch = MismatchOf(figures);
  if (raised(HealthAlarm::kMismatchJump) || !mismatch || !std::isfinite(*mismatch)) return false;
  const auto history = state_->history.find(Name(HealthAlarm::kMismatchJump));
  Reading reading{.value = *mismatch, .before = std::numeric_limits<double>::quiet_NaN()};
  if (history != state_->history.end() &&
      static_cast<int64_t>(history->second.size()) >= kLeastHistory) {
    reading.before = MedianOf(history->second);
  }
  return Crosses(HealthAlarm::kMismatchJump, *mismatch, ReadMismatch(reading).bound);
}

std::vector<HealthEvent> HealthMonitor::Observe(const HealthFigures& figures) {
  const std::optional<double> values[kHealthAlarmCount] = {
      figures.zero_std_group_share, figures.entropy, MismatchOf(figures), figures.gradient_norm,
      figures.unscorable_share};
  std::vector<HealthEvent> events;
  for (int i = 0; i < kHealthAlarmCount; ++i) {
    const auto alarm = static_cast<HealthAlarm>(i);
    // Nothing new: as before.
    if (!values[i] || !std::isfinite(*values[i])) continue;
    Record(alarm, values[i]);
    const std::optional<Reading> reading = Read(alarm);
    if (!reading) continue;
    const auto found = state_->raised.find(Name(alarm));
    const bool was_raised = found != state_->raised.end();
    const double bound = was_raised ? found->second : reading->bound;
    if (was_raised ? !IsWellWithin(alarm, reading->value, bound)
                   : !Crosses(alarm, reading->value, bound)) {
      continue;
    }
    HealthEvent event{
        .alarm = alarm, .raised = !was_raised, .value = reading->value, .bound = bound};
    if (was_raised) {
      state_->raised.erase(found);
      event.sentence = absl::StrFormat("step %d: %s is over: %.3g, and the bound was %.3g",
                                       figures.step, Name(alarm), reading->value, bound);
    } else {
      state_->raised[Name(alarm)] = bound;
      event.sentence = SentenceOf(alarm, figures.step, reading->value, bound);
    }
    events.push_back(std::move(event));
  }
  return events;
}

void HealthMonitor::Record(HealthAlarm alarm, std::optional<double> value) {
  std::vector<double>& history = state_->history[Name(alarm)];
  history.push_back(*value);
  if (alarm == HealthAlarm::kEntropyCollapse && !state_->first_entropy &&
      static_cast<int64_t>(history.size()) == kEntropySteps) {
    state_->first_entropy = MeanOf(history);
  }
  if (static_cast<int64_t>(history.size()) > kHistory) history.erase(history.begin());
}

std::optional<HealthMonitor::Reading> HealthMonitor::ReadRecent(HealthAlarm alarm,
                                                                int64_t steps) const {
  const std::vector<double>& history = state_->history.at(Name(alarm));
  const int64_t before = static_cast<int64_t>(history.size()) - steps;
  if (before < 0) return std::nullopt;
  Reading reading;
  reading.value = MeanOf(std::span(history).last(static_cast<size_t>(steps)));
  reading.before = before < kLeastHistory
                       ? std::numeric_limits<double>::quiet_NaN()
                       : MedianOf(std::span(history).first(static_cast<size_t>(before)));
  return reading;
}

std::optional<HealthMonitor::Reading> HealthMonitor::Read(HealthAlarm alarm) const {
  const auto with_bound = [&](int64_t steps, double bound) {
    std::optional<Reading> reading = ReadRecent(alarm, steps);
    if (reading) reading->bound = bound;
    return reading;
  };
  switch (alarm) {
    case HealthAlarm::kConstantReward:
      return with_bound(kRewardSteps, kAllEqualShare);
    case HealthAlarm::kEntropyCollapse: {
      const std::optional<Reading> reading = ReadRecent(alarm, kEntropySteps);
      return reading ? std::optional(ReadEntropy(*reading)) : std::nullopt;
    }
    case HealthAlarm::kMismatchJump: {
      // One step is enough where bits are promised.
      const std::optional<Reading> reading =
          ReadRecent(alarm, options_.bitwise ? 1 : kMismatchSteps);
      return reading ? std::optional(ReadMismatch(*reading)) : std::nullopt;
    }
    case HealthAlarm::kGradientNormJump: {
      std::optional<Reading> reading = ReadRecent(alarm, kGradientSteps);
      if (reading && !std::isnan(reading->before)) reading->bound = kGradientRise * reading->before;
      return reading;
    }
    case HealthAlarm::kUnscorableShare:
      return with_bound(kUnscorableSteps, kUnscorable);
  }
  return std::nullopt;
}

HealthMonitor::Reading HealthMonitor::ReadEntropy(Reading reading) const {
  reading.bound = kEntropyOfFirst * state_->first_entropy.value_or(0);
  if (!std::isnan(reading.before)) {
    reading.bound = std::max(reading.bound, kEntropyFall * reading.before);
  }
  return reading;
}

HealthMonitor::Reading HealthMonitor::ReadMismatch(Reading reading) const {
  if (options_.bitwise) {
    reading.bound = 0;
    return reading;
  }
  reading.bound = kMismatchCeiling;
  if (!std::isnan(reading.before)) {
    reading.bound =
        std::min(reading.bound, std::max(kMismatchFloor, kMismatchRise * reading.before));
  }
  return reading;
}

}  // namespace halfstep
