// SPDX-License-Identifier: Apache-2.0
// HealthMonitor: five alarms over the figures of the last steps (docs/numerics.md, "Health").
//
// An alarm is raised once its figure crosses its bound, and cleared once the figure is well back
// within it; in between it says nothing. Bounds that follow the run itself are kept as they were
// when the alarm was raised, so that a fault does not become the measure.
#pragma once

#include <cstdint>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace halfstep {

struct StepRecord;

// By the names of metric::kHealthAlarms.
enum class HealthAlarm : uint8_t {
  kConstantReward,    // the groups' rewards are all equal: nothing to learn from
  kEntropyCollapse,   // the policy's entropy fell far within a few steps, or to next to nothing
  kMismatchJump,      // rollout and learner disagree more than they did, or at all in `bitwise`
  kGradientNormJump,  // gradients several times as large as they were
  kUnscorableShare,   // responses without a score
};
inline constexpr int kHealthAlarmCount = 5;
const char* Name(HealthAlarm alarm);

// One step's figures; absent where the step had no such thing.
struct HealthFigures {
  int64_t step = 0;
  std::optional<double> zero_std_group_share = std::nullopt;  // 0 to 1
  std::optional<double> entropy = std::nullopt;               // nats per response token
  std::optional<double> mismatch = std::nullopt;  // mean |log mu - log pi|, nats per token
  // Over which `mismatch` is the mean.
  int64_t tokens_compared = std::numeric_limits<int64_t>::max();
  std::optional<double> gradient_norm = std::nullopt;     // unscaled, before clipping
  std::optional<double> unscorable_share = std::nullopt;  // 0 to 1
};
// Supervised steps have a gradient norm only. A gradient of exactly zero says nothing of its size.
HealthFigures HealthFiguresOf(const StepRecord& record, bool supervised);

// Everything a monitor remembers, by the alarm's name; part of the checkpoint.
struct HealthState {
  std::map<std::string, std::vector<double>> history;  // oldest first, at most kHistory
  std::map<std::string, double> raised;                // the bound that was crossed
  std::optional<double> first_entropy;                 // mean of the run's first steps

  friend bool operator==(const HealthState&, const HealthState&) = default;
};

struct HealthOptions {
  // Rollout and learner are promised to agree to the last bit: any mismatch is a jump.
  bool bitwise = true;
};

struct HealthEvent {
  HealthAlarm alarm = HealthAlarm::kConstantReward;
  bool raised = true;  // false: cleared
  double value = 0;
  double bound = 0;
  std::string sentence = "";  // for people: what was seen, and against what
};

// A value but for the state, which the caller owns and which outlives it. Not thread-safe.
class HealthMonitor {
 public:
  // Steps that a figure is compared with; the newest few of them are what is compared.
  static constexpr int64_t kHistory = 50;
  static constexpr int64_t kLeastHistory = 10;  // before a run is its own measure

  static constexpr int64_t kRewardSteps = 10;
  static constexpr double kAllEqualShare = 0.95;
  static constexpr int64_t kEntropySteps = 5;
  static constexpr double kEntropyFall = 0.2;      // of the median before
  static constexpr double kEntropyOfFirst = 0.02;  // of the run's first steps
  static constexpr int64_t kMismatchSteps = 3;
  // Of `fast`: |log mu - log pi| has a long tail, and the mean of a handful of tokens says nothing.
  static constexpr int64_t kLeastCompared = 32;
  static constexpr double kMismatchRise = 3;       // times the median before
  static constexpr double kMismatchFloor = 1e-5;   // nats; jumps below it are no news
  static constexpr double kMismatchCeiling = 0.1;  // nats; above it whatever was before
  static constexpr int64_t kGradientSteps = 3;
  static constexpr double kGradientRise = 6;  // times the median before
  static constexpr int64_t kUnscorableSteps = 5;
  static constexpr double kUnscorable = 0.1;

  HealthMonitor(const HealthOptions& options, HealthState* state);

  // Takes one step in; what was raised and cleared by it. Figures that are not finite are left out:
  // they end the run or skip the step by themselves.
  std::vector<HealthEvent> Observe(const HealthFigures& figures);

  bool raised(HealthAlarm alarm) const;

  // Whether a step with these figures, were it like this for as many steps as the alarm looks at,
  // would raise kMismatchJump. False while it is raised.
  bool IsMismatchJump(const HealthFigures& figures) const;

 private:
  struct Reading;

  // The mismatch that is looked at, if there is one.
  std::optional<double> MismatchOf(const HealthFigures& figures) const;
  void Record(HealthAlarm alarm, std::optional<double> value);
  std::optional<Reading> Read(HealthAlarm alarm) const;
  // The mean of the newest `steps` figures and the median of those before.
  std::optional<Reading> ReadRecent(HealthAlarm alarm, int64_t steps) const;
  Reading ReadEntropy(Reading reading) const;
  Reading ReadMismatch(Reading reading) const;

  const HealthOptions options_;
  HealthState* const state_;
};

}  // namespace halfstep
