// SPDX-License-Identifier: Apache-2.0
// Nearest names, log lines, identities, clocks and signals.
#include <signal.h>

#include <thread>

#include "common/base/clock.h"
#include "common/base/logging.h"
#include "common/base/nearest.h"
#include "common/base/random_id.h"
#include "common/base/shutdown_signal.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/fake_clock.h"

namespace halfstep {
namespace {

using ::testing::HasSubstr;
using ::testing::MatchesRegex;

TEST(NearestTest, CountsEdits) {
  EXPECT_EQ(EditDistance("", "abc"), 3u);
  EXPECT_EQ(EditDistance("kitten", "sitting"), 3u);
  EXPECT_EQ(EditDistance("sedd", "seed"), 1u);
  EXPECT_EQ(EditDistance("sede", "seed"), 1u);
}

TEST(NearestTest, FindsWhatWasMeantWhateverItsCase) {
  const std::vector<std::string> names = {"seed", "steps", "precision"};
  EXPECT_EQ(Nearest("Sedd", names), "seed");
  EXPECT_EQ(Nearest("percision", names), "precision");
  EXPECT_EQ(DidYouMean("stepz", names), "; did you mean 'steps'?");
}

TEST(NearestTest, GuessesNothingFarFetched) {
  EXPECT_EQ(Nearest("zzzz", {"seed", "steps"}), "");
  EXPECT_EQ(DidYouMean(std::string(100000, 's'), {"seed"}), "");
}

TEST(LoggingTest, FormatsPairs) {
  EXPECT_EQ(FormatLogLine("step finished", {{"step", 3}, {"reward", 0.5}, {"id", "r1"}}),
            "msg=\"step finished\" step=3 reward=0.5 id=r1");
}

TEST(LoggingTest, AValueCannotStartALineOrAPair) {
  EXPECT_EQ(FormatLogLine("x", {{"k", "a\nlevel=error"}, {"q", "say \"hi\""}, {"e", ""}}),
            R"(msg=x k="a\nlevel=error" q="say \"hi\"" e="")");
}

TEST(LoggingTest, WritesLevelAndProgramToStandardError) {
  ASSERT_TRUE(InitLogging("halfstep-test", "info").ok());
  testing::internal::CaptureStderr();
  LogInfo("hello", {{"n", 1}});
  LogDebug("not shown");
  EXPECT_THAT(testing::internal::GetCapturedStderr(),
              MatchesRegex("time=.*Z level=info program=halfstep-test msg=hello n=1\n"));
}

TEST(LoggingTest, RefusesAnUnknownLevel) {
  const absl::Status status = InitLogging("p", "inof");
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("did you mean 'info'?"));
}

TEST(RandomIdTest, IsAVersion4UuidAndDiffersEachTime) {
  const std::string id = RandomUuid();
  EXPECT_THAT(id,
              MatchesRegex("[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"));
  EXPECT_NE(id, RandomUuid());
}

TEST(ClockTest, RealClockGivesUpAtTheDeadline) {
  const Clock& clock = Clock::Real();
  absl::Mutex mutex;
  bool never = false;
  absl::MutexLock lock(&mutex);
  EXPECT_FALSE(clock.Await(mutex, absl::Condition(&never), clock.Now()));
}

TEST(ClockTest, FakeClockWakesAWaiterWhenItsDeadlineComes) {
  FakeClock clock;
  absl::Mutex mutex;
  bool never = false, held = true;
  std::thread waiter([&] {
    absl::MutexLock lock(&mutex);
    held = clock.Await(mutex, absl::Condition(&never), clock.Now() + absl::Hours(1));
  });
  clock.WaitForWaiters(1);
  clock.Advance(absl::Hours(1));
  waiter.join();
  EXPECT_FALSE(held);
}

TEST(ClockTest, FakeClockWakesAWaiterWhenItsConditionHolds) {
  FakeClock clock;
  absl::Mutex mutex;
  bool ready = false, held = false;
  std::thread waiter([&] {
    absl::MutexLock lock(&mutex);
    held = clock.Await(mutex, absl::Condition(&ready), absl::InfiniteFuture());
  });
  clock.WaitForWaiters(1);
  {
    absl::MutexLock lock(&mutex);
    ready = true;
  }
  waiter.join();
  EXPECT_TRUE(held);
}

TEST(ShutdownSignalTest, TermRequestsAnOrderlyStop) {
  ShutdownSignal signal;
  EXPECT_FALSE(signal.requested());
  kill(getpid(), SIGTERM);
  EXPECT_TRUE(signal.WaitUntil(absl::InfiniteFuture()));
  kill(getpid(), SIGTERM);  // a second one is harmless
  EXPECT_TRUE(signal.requested());
}

TEST(ShutdownSignalTest, CanBeRequestedFromWithinAndMadeAgain) {
  for (int i = 0; i < 2; ++i) {
    ShutdownSignal signal;
    EXPECT_FALSE(signal.WaitUntil(absl::InfinitePast()));
    signal.Request();
    EXPECT_TRUE(signal.WaitUntil(absl::InfiniteFuture()));
  }
}

TEST(ShutdownSignalDeathTest, SecondInterruptEndsTheProcess) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_EXIT(
      {
        ShutdownSignal signal;
        kill(getpid(), SIGINT);
        signal.WaitUntil(absl::InfiniteFuture());
        kill(getpid(), SIGINT);
        pause();
      },
      testing::ExitedWithCode(128 + SIGINT), "");
}

}  // namespace
}  // namespace halfstep
