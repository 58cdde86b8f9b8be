// SPDX-License-Identifier: Apache-2.0
#include "learner_server/rollout_coordination/rollout_state.h"

namespace halfstep {

const char* Name(RolloutState state) {
  switch (state) {
    case RolloutState::kJoining:
      return "JOINING";
    case RolloutState::kLoading:
      return "LOADING";
    case RolloutState::kReady:
      return "READY";
    case RolloutState::kServing:
      return "SERVING";
    case RolloutState::kSuspect:
      return "SUSPECT";
    case RolloutState::kDead:
      return "DEAD";
  }
  return "?";
}

std::optional<RolloutState> Next(RolloutState state, RolloutEvent event) {
  using enum RolloutState;
  if (state == kDead) return std::nullopt;
  switch (event) {
    case RolloutEvent::kLost:
      return kDead;
    case RolloutEvent::kSilent:
    case RolloutEvent::kStuck:
      return state == kSuspect ? std::nullopt : std::optional(kSuspect);
    case RolloutEvent::kLoadJob:
      // A suspect stays one until it speaks.
      return state == kSuspect ? kSuspect : kLoading;
    case RolloutEvent::kUnloadJob:
      return state == kSuspect ? kSuspect : kJoining;
    case RolloutEvent::kHeard:
      return state == kSuspect ? std::optional(kLoading) : std::nullopt;
    case RolloutEvent::kHeardWhileServing:
      return state == kSuspect ? std::optional(kServing) : std::nullopt;
    case RolloutEvent::kWeightsVerified:
      if (state == kLoading) return kReady;
      if (state == kReady || state == kServing) return state;
      return std::nullopt;
    case RolloutEvent::kWeightsRefused:
      if (state == kLoading || state == kReady) return kLoading;
      // What it serves is untouched by a set that failed beside it.
      if (state == kServing) return kServing;
      return std::nullopt;
    case RolloutEvent::kCommitSent:
      return state == kReady || state == kServing ? std::optional(kReady) : std::nullopt;
    case RolloutEvent::kServing:
      return state == kReady ? std::optional(kServing) : std::nullopt;
    case RolloutEvent::kServesOther:
      if (state == kLoading || state == kReady || state == kServing) return kLoading;
      return std::nullopt;
  }
  return std::nullopt;
}

}  // namespace halfstep
