// SPDX-License-Identifier: Apache-2.0
// Every state times every event.
#include "learner_server/rollout_coordination/rollout_state.h"

#include <gtest/gtest.h>

#include <map>
#include <utility>

namespace halfstep {
namespace {

using enum RolloutState;
using Event = RolloutEvent;

// What is not listed cannot happen.
const std::map<std::pair<RolloutState, RolloutEvent>, RolloutState>& Table() {
  static const auto* const table =
      new std::map<std::pair<RolloutState, RolloutEvent>, RolloutState>{
          {{kJoining, Event::kLoadJob}, kLoading},
          {{kJoining, Event::kUnloadJob}, kJoining},
          {{kJoining, Event::kSilent}, kSuspect},
          {{kJoining, Event::kStuck}, kSuspect},
          {{kJoining, Event::kLost}, kDead},
          {{kLoading, Event::kLoadJob}, kLoading},
          {{kLoading, Event::kUnloadJob}, kJoining},
          {{kLoading, Event::kWeightsVerified}, kReady},
          {{kLoading, Event::kWeightsRefused}, kLoading},
          {{kLoading, Event::kServesOther}, kLoading},
          {{kLoading, Event::kSilent}, kSuspect},
          {{kLoading, Event::kStuck}, kSuspect},
          {{kLoading, Event::kLost}, kDead},
          {{kReady, Event::kLoadJob}, kLoading},
          {{kReady, Event::kUnloadJob}, kJoining},
          {{kReady, Event::kWeightsVerified}, kReady},
          {{kReady, Event::kWeightsRefused}, kLoading},
          {{kReady, Event::kCommitSent}, kReady},
          {{kReady, Event::kServing}, kServing},
          {{kReady, Event::kServesOther}, kLoading},
          {{kReady, Event::kSilent}, kSuspect},
          {{kReady, Event::kStuck}, kSuspect},
          {{kReady, Event::kLost}, kDead},
          {{kServing, Event::kLoadJob}, kLoading},
          {{kServing, Event::kUnloadJob}, kJoining},
          {{kServing, Event::kWeightsVerified}, kServing},
          {{kServing, Event::kWeightsRefused}, kServing},
          {{kServing, Event::kCommitSent}, kReady},
          {{kServing, Event::kServesOther}, kLoading},
          {{kServing, Event::kSilent}, kSuspect},
          {{kServing, Event::kStuck}, kSuspect},
          {{kServing, Event::kLost}, kDead},
          {{kSuspect, Event::kLoadJob}, kSuspect},
          {{kSuspect, Event::kUnloadJob}, kSuspect},
          {{kSuspect, Event::kHeard}, kLoading},
          {{kSuspect, Event::kHeardWhileServing}, kServing},
          {{kSuspect, Event::kLost}, kDead},
      };
  return *table;
}

TEST(RolloutStateTest, FollowsTheTable) {
  for (const RolloutState state : kAllRolloutStates) {
    for (const RolloutEvent event : kAllRolloutEvents) {
      const auto want = Table().find({state, event});
      const std::optional<RolloutState> got = Next(state, event);
      EXPECT_EQ(got.has_value(), want != Table().end())
          << Name(state) << " on event " << static_cast<int>(event);
      if (got && want != Table().end()) {
        EXPECT_EQ(*got, want->second) << Name(state) << " on event " << static_cast<int>(event);
      }
    }
  }
}

TEST(RolloutStateTest, OnlyVerifiedWeightsLeadToServing) {
  for (const RolloutState state : kAllRolloutStates) {
    for (const RolloutEvent event : kAllRolloutEvents) {
      if (Next(state, event) != kServing || state == kServing) continue;
      EXPECT_TRUE((state == kReady && event == Event::kServing) ||
                  (state == kSuspect && event == Event::kHeardWhileServing))
          << Name(state) << " on event " << static_cast<int>(event);
    }
  }
}

}  // namespace
}  // namespace halfstep
