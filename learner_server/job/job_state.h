// SPDX-License-Identifier: Apache-2.0
// The life of a training job as a pure function. docs/job_api.md holds the table that JobStateTable
// makes.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "halfstep/v1/training_job.pb.h"

namespace halfstep {

using JobState = v1::TrainingJob::State;

// What can happen to a job: people ask for the first three, the manager and the run report the
// others.
enum class JobEvent {
  kPauseRequested,
  kResumeRequested,
  kCancelRequested,
  kPicked,      // it is its turn
  kRunStarted,  // model and data are loaded
  kRunSucceeded,
  kRunFailed,
  kRunPaused,  // checkpoint written, learner free
  kRunCancelled,
  kFoundAtStart,  // the learner has started and finds the job in its store
};

// The state after `event`, or nothing when the event is not allowed in `state`. A request that asks
// for what is already so, or on its way, leads to the same state.
std::optional<JobState> NextState(JobState state, JobEvent event);

// No event leads out of it but a repeated request.
bool IsFinished(JobState state);
// The job occupies the learner.
bool IsActive(JobState state);

// "RUNNING" and the like; "kRunStarted" reads "run started".
std::string JobStateName(JobState state);
std::string JobEventName(JobEvent event);

const std::vector<JobState>& AllJobStates();
const std::vector<JobEvent>& AllJobEvents();

// NextState as a Markdown table, one row per state, one column per event; "-" where it is not
// allowed.
std::string JobStateTable();

}  // namespace halfstep
