// SPDX-License-Identifier: Apache-2.0
#include "learner_server/job/job_state.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <map>
#include <set>

#include "common/base/file.h"

namespace halfstep {
namespace {

using Job = v1::TrainingJob;

// Every allowed transition; a pair that is not here is not allowed.
const std::map<std::pair<JobState, JobEvent>, JobState>& Expected() {
  static const auto* const table = new std::map<std::pair<JobState, JobEvent>, JobState>{
      {{Job::STATE_QUEUED, JobEvent::kPauseRequested}, Job::STATE_PAUSED},
      {{Job::STATE_QUEUED, JobEvent::kResumeRequested}, Job::STATE_QUEUED},
      {{Job::STATE_QUEUED, JobEvent::kCancelRequested}, Job::STATE_CANCELLED},
      {{Job::STATE_QUEUED, JobEvent::kPicked}, Job::STATE_STARTING},
      {{Job::STATE_QUEUED, JobEvent::kFoundAtStart}, Job::STATE_QUEUED},
      {{Job::STATE_STARTING, JobEvent::kPauseRequested}, Job::STATE_PAUSING},
      {{Job::STATE_STARTING, JobEvent::kResumeRequested}, Job::STATE_STARTING},
      {{Job::STATE_STARTING, JobEvent::kCancelRequested}, Job::STATE_CANCELLING},
      {{Job::STATE_STARTING, JobEvent::kRunStarted}, Job::STATE_RUNNING},
      {{Job::STATE_STARTING, JobEvent::kRunSucceeded}, Job::STATE_SUCCEEDED},
      {{Job::STATE_STARTING, JobEvent::kRunFailed}, Job::STATE_FAILED},
      {{Job::STATE_STARTING, JobEvent::kRunPaused}, Job::STATE_PAUSED},
      {{Job::STATE_STARTING, JobEvent::kFoundAtStart}, Job::STATE_STARTING},
      {{Job::STATE_RUNNING, JobEvent::kPauseRequested}, Job::STATE_PAUSING},
      {{Job::STATE_RUNNING, JobEvent::kResumeRequested}, Job::STATE_RUNNING},
      {{Job::STATE_RUNNING, JobEvent::kCancelRequested}, Job::STATE_CANCELLING},
      {{Job::STATE_RUNNING, JobEvent::kRunStarted}, Job::STATE_RUNNING},
      {{Job::STATE_RUNNING, JobEvent::kRunSucceeded}, Job::STATE_SUCCEEDED},
      {{Job::STATE_RUNNING, JobEvent::kRunFailed}, Job::STATE_FAILED},
      {{Job::STATE_RUNNING, JobEvent::kRunPaused}, Job::STATE_PAUSED},
      {{Job::STATE_RUNNING, JobEvent::kFoundAtStart}, Job::STATE_STARTING},
      {{Job::STATE_PAUSING, JobEvent::kPauseRequested}, Job::STATE_PAUSING},
      {{Job::STATE_PAUSING, JobEvent::kRunStarted}, Job::STATE_PAUSING},
      {{Job::STATE_PAUSING, JobEvent::kCancelRequested}, Job::STATE_CANCELLING},
      {{Job::STATE_PAUSING, JobEvent::kRunSucceeded}, Job::STATE_SUCCEEDED},
      {{Job::STATE_PAUSING, JobEvent::kRunFailed}, Job::STATE_FAILED},
      {{Job::STATE_PAUSING, JobEvent::kRunPaused}, Job::STATE_PAUSED},
      {{Job::STATE_PAUSING, JobEvent::kFoundAtStart}, Job::STATE_PAUSED},
      {{Job::STATE_PAUSED, JobEvent::kPauseRequested}, Job::STATE_PAUSED},
      {{Job::STATE_PAUSED, JobEvent::kResumeRequested}, Job::STATE_QUEUED},
      {{Job::STATE_PAUSED, JobEvent::kCancelRequested}, Job::STATE_CANCELLED},
      {{Job::STATE_PAUSED, JobEvent::kFoundAtStart}, Job::STATE_PAUSED},
      {{Job::STATE_SUCCEEDED, JobEvent::kFoundAtStart}, Job::STATE_SUCCEEDED},
      {{Job::STATE_FAILED, JobEvent::kFoundAtStart}, Job::STATE_FAILED},
      {{Job::STATE_CANCELLING, JobEvent::kCancelRequested}, Job::STATE_CANCELLING},
      {{Job::STATE_CANCELLING, JobEvent::kRunStarted}, Job::STATE_CANCELLING},
      {{Job::STATE_CANCELLING, JobEvent::kRunSucceeded}, Job::STATE_SUCCEEDED},
      {{Job::STATE_CANCELLING, JobEvent::kRunFailed}, Job::STATE_FAILED},
      {{Job::STATE_CANCELLING, JobEvent::kRunPaused}, Job::STATE_CANCELLED},
      {{Job::STATE_CANCELLING, JobEvent::kRunCancelled}, Job::STATE_CANCELLED},
      {{Job::STATE_CANCELLING, JobEvent::kFoundAtStart}, Job::STATE_CANCELLED},
      {{Job::STATE_CANCELLED, JobEvent::kCancelRequested}, Job::STATE_CANCELLED},
      {{Job::STATE_CANCELLED, JobEvent::kFoundAtStart}, Job::STATE_CANCELLED},
  };
  return *table;
}

TEST(JobStateTest, EveryPairOfStateAndEvent) {
  for (const JobState state : AllJobStates()) {
    for (const JobEvent event : AllJobEvents()) {
      const auto expected = Expected().find({state, event});
      const std::optional<JobState> next = NextState(state, event);
      const std::string pair = JobStateName(state) + " on " + JobEventName(event);
      if (expected == Expected().end()) {
        EXPECT_FALSE(next.has_value()) << pair;
      } else {
        ASSERT_TRUE(next.has_value()) << pair;
        EXPECT_EQ(*next, expected->second) << pair;
      }
    }
  }
}

TEST(JobStateTest, TheListsHoldEveryState) {
  const std::set<JobState> listed(AllJobStates().begin(), AllJobStates().end());
  EXPECT_EQ(static_cast<int>(listed.size()) + 1, Job::State_descriptor()->value_count());
  EXPECT_EQ(NextState(Job::STATE_UNSPECIFIED, JobEvent::kFoundAtStart), std::nullopt);
}

TEST(JobStateTest, EveryStateAfterAFailedRunIsFinishedOrNeverHadOne) {
  for (const JobState state : AllJobStates()) {
    EXPECT_EQ(NextState(state, JobEvent::kRunFailed).has_value(), IsActive(state));
    EXPECT_FALSE(IsActive(state) && IsFinished(state));
  }
}

TEST(JobStateTest, TheDocumentHoldsTheTable) {
  const char* source = std::getenv("HALFSTEP_SOURCE_DIR");
  if (source == nullptr) GTEST_SKIP() << "HALFSTEP_SOURCE_DIR is not set";
  const auto page = ReadFile(std::string(source) + "/docs/job_api.md", 1 << 20);
  ASSERT_TRUE(page.ok()) << page.status();
  EXPECT_NE(page->find(JobStateTable()), std::string::npos)
      << "docs/job_api.md should hold this table:\n"
      << JobStateTable();
}

}  // namespace
}  // namespace halfstep
