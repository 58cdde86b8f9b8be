// SPDX-License-Identifier: Apache-2.0
// The states of an attached rollout server as the learner sees them, and the one function that says
// how they follow each other.
#pragma once

#include <optional>

namespace halfstep {

enum class RolloutState {
  kJoining,  // attached, no job loaded or loading
  kLoading,  // loading a job, or has yet to prove a set of weights
  kReady,    // holds a verified set it has not yet switched to
  kServing,  // generates with a verified set
  kSuspect,  // silent, or without progress, for too long: is given nothing, what it held goes
             // elsewhere
  kDead,     // gone; a server that comes back is another one that joins
};

enum class RolloutEvent {
  kLoadJob,            // LoadJob was sent
  kUnloadJob,          // UnloadJob was sent
  kWeightsVerified,    // WeightsReady named the set that was asked for
  kWeightsRefused,     // it failed, or named another set
  kCommitSent,         // CommitWeights was sent: what it serves is open until it says so
  kServing,            // Serving named the set that was committed
  kServesOther,        // Serving named a set that is not ours
  kSilent,             // nothing was heard for the suspicion time
  kStuck,              // it speaks, and its engine made no progress with what it holds
  kHeard,              // a suspect spoke, or went on, that has yet to prove its weights
  kHeardWhileServing,  // the same of one that had proved them before, on the same stream
  kLost,               // its stream ended, it was replaced, refused, or silent beyond the timeout
};

inline constexpr RolloutState kAllRolloutStates[] = {RolloutState::kJoining, RolloutState::kLoading,
                                                     RolloutState::kReady,   RolloutState::kServing,
                                                     RolloutState::kSuspect, RolloutState::kDead};
inline constexpr RolloutEvent kAllRolloutEvents[] = {RolloutEvent::kLoadJob,
                                                     RolloutEvent::kUnloadJob,
                                                     RolloutEvent::kWeightsVerified,
                                                     RolloutEvent::kWeightsRefused,
                                                     RolloutEvent::kCommitSent,
                                                     RolloutEvent::kServing,
                                                     RolloutEvent::kServesOther,
                                                     RolloutEvent::kSilent,
                                                     RolloutEvent::kStuck,
                                                     RolloutEvent::kHeard,
                                                     RolloutEvent::kHeardWhileServing,
                                                     RolloutEvent::kLost};

// "JOINING", "LOADING", ...
const char* Name(RolloutState state);

// The state that follows, or nothing where the event cannot happen. Serving is reached only from a
// verified set of weights.
std::optional<RolloutState> Next(RolloutState state, RolloutEvent event);

}  // namespace halfstep
