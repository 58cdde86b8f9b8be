// SPDX-License-Identifier: Apache-2.0
#include "cli/watch_until_rest.h"

#include <atomic>

#include "absl/time/clock.h"

namespace halfstep {
namespace {

constexpr absl::Duration kLookInterval = absl::Milliseconds(500);

}  // namespace

absl::Status WatchUntilItRests(LearnerClient& client, const std::string& name,
                               const WatchOptions& options) {
  std::atomic<bool> said_paused{false};  // by the last change of state
  std::atomic<bool> is_paused{false};
  absl::Time next_look = absl::InfinitePast();
  WatchOptions watch = options;
  watch.on_event = [&](const v1::TrainingJobEvent& event) {
    if (event.has_state_changed()) {
      said_paused = event.state_changed().state() == v1::TrainingJob::STATE_PAUSED;
    }
    return options.on_event(event);
  };
  // A pause ends no stream, its event may be of long ago, and a look may fail: so it takes as many
  // looks as it takes.
  watch.go_on = [&] {
    if (!options.go_on()) return false;
    if (said_paused && !is_paused && absl::Now() >= next_look) {
      const auto job = client.Get(name);
      is_paused = job.ok() && job->state() == v1::TrainingJob::STATE_PAUSED;
      next_look = absl::Now() + kLookInterval;
    }
    return !is_paused;
  };
  const absl::Status watched = client.Watch(name, watch);
  return is_paused ? absl::OkStatus() : watched;
}

}  // namespace halfstep
