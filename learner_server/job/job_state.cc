// SPDX-License-Identifier: Apache-2.0
#include "learner_server/job/job_state.h"

#include "absl/strings/str_cat.h"

namespace halfstep {
namespace {

using Job = v1::TrainingJob;

std::optional<JobState> FromQueued(JobEvent event) {
  switch (event) {
    case JobEvent::kPauseRequested:
      return Job::STATE_PAUSED;
    case JobEvent::kResumeRequested:
    case JobEvent::kFoundAtStart:
      return Job::STATE_QUEUED;
    case JobEvent::kCancelRequested:
      return Job::STATE_CANCELLED;
    case JobEvent::kPicked:
      return Job::STATE_STARTING;
    default:
      return std::nullopt;
  }
}

// STARTING and RUNNING differ in nothing but the news that the run has started.
std::optional<JobState> FromBusy(JobState state, JobEvent event) {
  switch (event) {
    case JobEvent::kPauseRequested:
      return Job::STATE_PAUSING;
    case JobEvent::kResumeRequested:
      return state;
    case JobEvent::kCancelRequested:
      return Job::STATE_CANCELLING;
    case JobEvent::kRunStarted:
      return Job::STATE_RUNNING;
    case JobEvent::kRunSucceeded:
      return Job::STATE_SUCCEEDED;
    case JobEvent::kRunFailed:
      return Job::STATE_FAILED;
    case JobEvent::kRunPaused:
      return Job::STATE_PAUSED;
    case JobEvent::kFoundAtStart:
      return Job::STATE_STARTING;
    default:
      return std::nullopt;
  }
}

std::optional<JobState> FromPausing(JobEvent event) {
  switch (event) {
    case JobEvent::kPauseRequested:
    case JobEvent::kRunStarted:
      return Job::STATE_PAUSING;
    case JobEvent::kCancelRequested:
      return Job::STATE_CANCELLING;
    case JobEvent::kRunSucceeded:
      return Job::STATE_SUCCEEDED;
    case JobEvent::kRunFailed:
      return Job::STATE_FAILED;
    case JobEvent::kRunPaused:
    case JobEvent::kFoundAtStart:
      return Job::STATE_PAUSED;
    default:
      return std::nullopt;
  }
}

std::optional<JobState> FromPaused(JobEvent event) {
  switch (event) {
    case JobEvent::kPauseRequested:
    case JobEvent::kFoundAtStart:
      return Job::STATE_PAUSED;
    case JobEvent::kResumeRequested:
      return Job::STATE_QUEUED;
    case JobEvent::kCancelRequested:
      return Job::STATE_CANCELLED;
    default:
      return std::nullopt;
  }
}

std::optional<JobState> FromCancelling(JobEvent event) {
  switch (event) {
    case JobEvent::kCancelRequested:
    case JobEvent::kRunStarted:
      return Job::STATE_CANCELLING;
    case JobEvent::kRunSucceeded:
      return Job::STATE_SUCCEEDED;
    case JobEvent::kRunFailed:
      return Job::STATE_FAILED;
    case JobEvent::kRunPaused:
    case JobEvent::kRunCancelled:
    case JobEvent::kFoundAtStart:
      return Job::STATE_CANCELLED;
    default:
      return std::nullopt;
  }
}

}  // namespace

std::optional<JobState> NextState(JobState state, JobEvent event) {
  switch (state) {
    case Job::STATE_QUEUED:
      return FromQueued(event);
    case Job::STATE_STARTING:
    case Job::STATE_RUNNING:
      return FromBusy(state, event);
    case Job::STATE_PAUSING:
      return FromPausing(event);
    case Job::STATE_PAUSED:
      return FromPaused(event);
    case Job::STATE_CANCELLING:
      return FromCancelling(event);
    case Job::STATE_CANCELLED:
      if (event == JobEvent::kCancelRequested) return state;
      [[fallthrough]];
    case Job::STATE_SUCCEEDED:
    case Job::STATE_FAILED:
      if (event == JobEvent::kFoundAtStart) return state;
      return std::nullopt;
    default:
      return std::nullopt;
  }
}

bool IsFinished(JobState state) {
  return state == Job::STATE_SUCCEEDED || state == Job::STATE_FAILED ||
         state == Job::STATE_CANCELLED;
}

bool IsActive(JobState state) {
  return state == Job::STATE_STARTING || state == Job::STATE_RUNNING ||
         state == Job::STATE_PAUSING || state == Job::STATE_CANCELLING;
}

std::string JobStateName(JobState state) {
  return Job::State_Name(state).substr(sizeof("STATE_") - 1);
}

std::string JobEventName(JobEvent event) {
  switch (event) {
    case JobEvent::kPauseRequested:
      return "pause requested";
    case JobEvent::kResumeRequested:
      return "resume requested";
    case JobEvent::kCancelRequested:
      return "cancel requested";
    case JobEvent::kPicked:
      return "picked";
    case JobEvent::kRunStarted:
      return "run started";
    case JobEvent::kRunSucceeded:
      return "run succeeded";
    case JobEvent::kRunFailed:
      return "run failed";
    case JobEvent::kRunPaused:
      return "run paused";
    case JobEvent::kRunCancelled:
      return "run cancelled";
    case JobEvent::kFoundAtStart:
      return "found at start";
  }
  return "";
}

const std::vector<JobState>& AllJobStates() {
  static const auto* const states =
      new std::vector<JobState>{Job::STATE_QUEUED,  Job::STATE_STARTING,   Job::STATE_RUNNING,
                                Job::STATE_PAUSING, Job::STATE_PAUSED,     Job::STATE_SUCCEEDED,
                                Job::STATE_FAILED,  Job::STATE_CANCELLING, Job::STATE_CANCELLED};
  return *states;
}

const std::vector<JobEvent>& AllJobEvents() {
  static const auto* const events = new std::vector<JobEvent>{
      JobEvent::kPauseRequested, JobEvent::kResumeRequested, JobEvent::kCancelRequested,
      JobEvent::kPicked,         JobEvent::kRunStarted,      JobEvent::kRunSucceeded,
      JobEvent::kRunFailed,      JobEvent::kRunPaused,       JobEvent::kRunCancelled,
      JobEvent::kFoundAtStart};
  return *events;
}

std::string JobStateTable() {
  std::string table = "| state |";
  std::string rule = "|---|";
  for (const JobEvent event : AllJobEvents()) {
    absl::StrAppend(&table, " ", JobEventName(event), " |");
    rule += "---|";
  }
  absl::StrAppend(&table, "\n", rule, "\n");
  for (const JobState state : AllJobStates()) {
    absl::StrAppend(&table, "| ", JobStateName(state), " |");
    for (const JobEvent event : AllJobEvents()) {
      const std::optional<JobState> next = NextState(state, event);
      absl::StrAppend(&table, " ", next ? JobStateName(*next) : "-", " |");
    }
    table += "\n";
  }
  return table;
}

}  // namespace halfstep
