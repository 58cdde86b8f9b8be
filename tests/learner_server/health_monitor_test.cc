// SPDX-License-Identifier: Apache-2.0
#include "learner_server/training/health_monitor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <limits>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "common/metrics/names.h"
#include "learner_server/training/run_progress.h"
#include "learner_server/training/step_metrics.h"

namespace halfstep {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr int64_t kHealthySteps = 60;

// A run that goes well: small waves on every figure.
HealthFigures Healthy(int64_t step) {
  const double wave = 1 + 0.3 * std::sin(static_cast<double>(step));
  return {.step = step,
          .zero_std_group_share = 0.4 * wave,
          .entropy = 0.5 * wave,
          .mismatch = 1e-3 * wave,
          .gradient_norm = 0.1 * wave,
          .unscorable_share = 0.01 * wave};
}

using Plant = std::function<void(int64_t since, HealthFigures&)>;

// Fast profile: a mismatch is normal.
class HealthMonitorTest : public testing::Test {
 protected:
  // Runs healthy, then with the fault; the events of both.
  std::vector<HealthEvent> RunWithFault(const Plant& plant, int64_t healthy_steps = kHealthySteps) {
    std::vector<HealthEvent> events;
    for (int64_t i = 0; i < healthy_steps + 50; ++i) {
      HealthFigures figures = Healthy(++step_);
      if (i >= healthy_steps) plant(i - healthy_steps, figures);
      for (HealthEvent& event : monitor_.Observe(figures)) events.push_back(std::move(event));
    }
    return events;
  }

  // The fault raises `alarm` and nothing else, within its 50 steps and once.
  void ExpectOnly(HealthAlarm alarm, const Plant& plant, int64_t healthy_steps = kHealthySteps) {
    const std::vector<HealthEvent> events = RunWithFault(plant, healthy_steps);
    ASSERT_EQ(events.size(), 1u) << Name(alarm);
    EXPECT_EQ(events[0].alarm, alarm) << events[0].sentence;
    EXPECT_TRUE(events[0].raised);
    EXPECT_TRUE(monitor_.raised(alarm));
    EXPECT_THAT(events[0].sentence, AllOf(HasSubstr("step "), HasSubstr("bound ")));
  }

  HealthState state_;
  HealthMonitor monitor_{{.bitwise = false}, &state_};
  int64_t step_ = 0;
};

TEST_F(HealthMonitorTest, AHealthyRunRaisesNothing) {
  EXPECT_THAT(RunWithFault([](int64_t, HealthFigures&) {}, 200), IsEmpty());
}

TEST_F(HealthMonitorTest, EqualRewardsInAllGroupsAreRaised) {
  ExpectOnly(HealthAlarm::kConstantReward,
             [](int64_t, HealthFigures& figures) { figures.zero_std_group_share = 1; });
}

TEST_F(HealthMonitorTest, ARunThatBeginsWithAConstantRewardIsRaised) {
  ExpectOnly(
      HealthAlarm::kConstantReward,
      [](int64_t, HealthFigures& figures) { figures.zero_std_group_share = 1; }, 0);
}

TEST_F(HealthMonitorTest, AFallOfTheEntropyIsRaised) {
  ExpectOnly(HealthAlarm::kEntropyCollapse, [](int64_t since, HealthFigures& figures) {
    figures.entropy = 0.5 * std::exp(-0.2 * static_cast<double>(since));
  });
}

TEST_F(HealthMonitorTest, AnEntropyThatWearsAwaySlowlyIsRaisedInTheEnd) {
  std::vector<HealthEvent> events;
  double entropy = 0.5;
  for (int64_t step = 1; step <= 400 && events.empty(); ++step) {
    HealthFigures figures = Healthy(step);
    figures.entropy = entropy *= 0.985;  // a half in 46 steps: no fall by itself
    events = monitor_.Observe(figures);
  }
  ASSERT_EQ(events.size(), 1u);
  EXPECT_EQ(events[0].alarm, HealthAlarm::kEntropyCollapse);
  EXPECT_LT(entropy, 0.02 * 0.5);
}

TEST_F(HealthMonitorTest, AJumpOfTheMismatchIsRaised) {
  ExpectOnly(HealthAlarm::kMismatchJump,
             [](int64_t, HealthFigures& figures) { figures.mismatch = 5e-3; });
}

TEST_F(HealthMonitorTest, AMismatchThatWasThereFromTheBeginningIsRaised) {
  ExpectOnly(
      HealthAlarm::kMismatchJump, [](int64_t, HealthFigures& figures) { figures.mismatch = 2; }, 0);
}

TEST_F(HealthMonitorTest, InBitwiseOneDifferentBitIsRaisedAtOnce) {
  HealthMonitor bitwise({.bitwise = true}, &state_);
  HealthFigures figures = Healthy(1);
  figures.mismatch = 0;
  EXPECT_THAT(bitwise.Observe(figures), IsEmpty());
  figures.mismatch = 1e-12;
  const std::vector<HealthEvent> events = bitwise.Observe(figures);
  ASSERT_EQ(events.size(), 1u);
  EXPECT_EQ(events[0].alarm, HealthAlarm::kMismatchJump);
  EXPECT_EQ(events[0].bound, 0);
}

TEST_F(HealthMonitorTest, AJumpOfTheGradientNormIsRaised) {
  ExpectOnly(HealthAlarm::kGradientNormJump,
             [](int64_t, HealthFigures& figures) { figures.gradient_norm = 1; });
}

TEST_F(HealthMonitorTest, ResponsesWithoutAScoreAreRaised) {
  ExpectOnly(HealthAlarm::kUnscorableShare,
             [](int64_t, HealthFigures& figures) { figures.unscorable_share = 0.2; });
}

// The fault lasts longer than the history; it must not become what it is compared with.
TEST_F(HealthMonitorTest, AnAlarmStaysUntilTheFigureIsWellBack) {
  const auto run = [this](double norm, int64_t steps) {
    std::vector<HealthEvent> events;
    for (int64_t i = 0; i < steps; ++i) {
      HealthFigures figures = Healthy(++step_);
      figures.gradient_norm = norm;
      for (HealthEvent& event : monitor_.Observe(figures)) events.push_back(std::move(event));
    }
    return events;
  };
  EXPECT_THAT(run(0.1, 20), IsEmpty());
  EXPECT_EQ(run(1, 120).size(), 1u);
  EXPECT_TRUE(monitor_.raised(HealthAlarm::kGradientNormJump));
  const std::vector<HealthEvent> cleared = run(0.1, 10);
  ASSERT_EQ(cleared.size(), 1u);
  EXPECT_FALSE(cleared[0].raised);
  EXPECT_THAT(cleared[0].sentence, HasSubstr("gradient_norm_jump is over"));
  EXPECT_FALSE(monitor_.raised(HealthAlarm::kGradientNormJump));
}

TEST_F(HealthMonitorTest, FiguresThatAreMissingOrNotFiniteSayNothing) {
  RunWithFault([](int64_t, HealthFigures&) {});
  const HealthState before = state_;
  EXPECT_THAT(monitor_.Observe({.step = 1}), IsEmpty());
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  EXPECT_THAT(monitor_.Observe({.step = 2, .entropy = kNan, .gradient_norm = kNan}), IsEmpty());
  EXPECT_EQ(state_, before);
}

// What the checkpoint keeps is enough: a run that is resumed neither raises again nor forgets.
TEST_F(HealthMonitorTest, GoesOnFromACheckpoint) {
  const Plant fault = [](int64_t since, HealthFigures& figures) {
    if (since >= 25) figures.gradient_norm = 1;
    figures.unscorable_share = 0.2;
  };
  const std::vector<HealthEvent> whole = RunWithFault(fault);
  ASSERT_EQ(whole.size(), 2u);

  RunProgress progress;
  std::vector<HealthEvent> parts;
  for (int64_t i = 0; i < kHealthySteps + 50; ++i) {
    HealthFigures figures = Healthy(i + 1);
    if (i >= kHealthySteps) fault(i - kHealthySteps, figures);
    HealthMonitor monitor({.bitwise = false}, &progress.health);
    for (HealthEvent& event : monitor.Observe(figures)) parts.push_back(std::move(event));
    const absl::StatusOr<RunProgress> read = RunProgressFromJson(ToJson(progress));
    ASSERT_TRUE(read.ok()) << read.status();
    ASSERT_EQ(*read, progress);
    progress = *read;
  }
  ASSERT_EQ(parts.size(), whole.size());
  for (size_t i = 0; i < whole.size(); ++i) EXPECT_EQ(parts[i].sentence, whole[i].sentence);
}

TEST(HealthFiguresTest, ComeFromTheStepsRecord) {
  StepRecord record;
  record.step = 7;
  record.batch.groups = 4;
  record.batch.zero_std_groups = 3;
  record.batch.samples = 16;
  record.batch.samples_dropped["unscored"] = 4;
  record.updates.resize(2);
  for (OptimizerStepReport& update : record.updates) {
    update.tokens = 10;
    update.entropy_sum = 4;
  }
  record.updates[0].applied = true;
  record.updates[0].gradient_norm = 0.5;
  record.updates[1].skipped = true;
  record.mismatch.tokens_compared = 10;
  record.mismatch.abs_mean = 0.25;
  const HealthFigures figures = HealthFiguresOf(record, /*supervised=*/false);
  EXPECT_EQ(figures.step, 7);
  EXPECT_EQ(figures.zero_std_group_share, 0.75);
  EXPECT_EQ(figures.entropy, 0.4);
  EXPECT_EQ(figures.mismatch, 0.25);
  EXPECT_EQ(figures.gradient_norm, 0.5);
  EXPECT_EQ(figures.unscorable_share, 0.25);
  const HealthFigures supervised = HealthFiguresOf(record, /*supervised=*/true);
  EXPECT_EQ(supervised.gradient_norm, 0.5);
  EXPECT_FALSE(supervised.entropy || supervised.mismatch || supervised.unscorable_share ||
               supervised.zero_std_group_share);
}

// Three whole runs of the demo (tests/golden/make_health_golden.py).
TEST(HealthGoldenTest, TheDemoRaisesNothing) {
  const char* source = std::getenv("HALFSTEP_SOURCE_DIR");
  std::ifstream in(std::string(source == nullptr ? "." : source) + "/tests/golden/health/demo.csv");
  std::string line;
  ASSERT_TRUE(std::getline(in, line));
  std::map<int, HealthState> runs;
  int64_t steps = 0;
  while (std::getline(in, line)) {
    const std::vector<std::string> cells = absl::StrSplit(line, ',');
    ASSERT_EQ(cells.size(), 6u) << line;
    double values[6];
    for (int i = 0; i < 6; ++i) ASSERT_TRUE(absl::SimpleAtod(cells[i], &values[i])) << line;
    HealthMonitor monitor({.bitwise = true}, &runs[static_cast<int>(values[0])]);
    for (const HealthEvent& event : monitor.Observe({.step = static_cast<int64_t>(values[1]),
                                    .zero_std_group_share = values[2],
                                    .entropy = values[3],
                                    .mismatch = values[4],
                                    .gradient_norm = values[5],
                                    .unscorable_share = 0})) {
      ADD_FAILURE() << "run " << values[0] << ": " << event.sentence;
    }
    ++steps;
  }
  EXPECT_EQ(runs.size(), 3u);
  EXPECT_EQ(steps, 3 * 240);
}

}  // namespace
}  // namespace halfstep
