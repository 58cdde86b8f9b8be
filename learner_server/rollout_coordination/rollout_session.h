// SPDX-License-Identifier: Apache-2.0
// What the coordinator knows of one attached stream, and how it speaks to it.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/weight_sync/weight_set.h"
#include "learner_server/rollout_coordination/group_table.h"
#include "learner_server/rollout_coordination/rollout_state.h"

namespace halfstep::v1 {
class LearnerMessage;
}  // namespace halfstep::v1

namespace halfstep {

// The learner's end of one stream. Thread-safe; never blocks and never calls back into the
// coordinator.
class RolloutOutbox {
 public:
  virtual ~RolloutOutbox() = default;
  // Queues a message; false when the bound would be exceeded or the stream is over.
  virtual bool Send(v1::LearnerMessage message) = 0;
  // Ends the stream with `why` after what is queued. Later calls do nothing.
  virtual void Close(const absl::Status& why) = 0;
};

struct RolloutSession {
  SessionId id = 0;
  std::shared_ptr<RolloutOutbox> outbox;
  RolloutState state = RolloutState::kJoining;
  // Set once the stream is to end: the session is given nothing more and removed soon.
  absl::Status doomed;

  // From Hello.
  bool greeted = false;
  std::string rollout_id;
  std::string incarnation;
  std::string fingerprint;

  absl::Time attached;
  absl::Time last_heard;
  absl::Time last_heartbeat_sent;
  bool leaving = false;

  // From heartbeats: when the engine last made progress by its own clock, and since when by ours
  // that has been so while it held groups.
  absl::Time progress = absl::InfinitePast();
  absl::Time progress_since;
  bool stuck = false;  // too long: it stays a suspect, whatever it says, until it goes on

  // The job and weights. At most one of preparing, staged and committing is set.
  uint64_t job_epoch = 0;  // of the last LoadJob; 0 for none
  bool job_loaded = false;
  std::optional<WeightIdentity> preparing;   // PrepareWeights was sent
  std::optional<WeightIdentity> staged;      // WeightsReady came
  std::optional<WeightIdentity> committing;  // CommitWeights was sent
  std::optional<WeightIdentity> serving;     // Serving came
  bool moving = false;  // idle and on its way to another set: it gets no work of the one it serves
  int failures = 0;     // in a row, of loading and preparing
  std::string last_failure;
  std::string last_report;  // the last failure of a group that it reported
  absl::Time phase_since;   // when the rollout was last told to load, prepare or commit

  // Groups over the life of the stream.
  uint64_t credit = 0;
  uint64_t assigned = 0;
  uint64_t last_sequence = 0;  // of Samples messages

  uint64_t free_credit() const { return credit > assigned ? credit - assigned : 0; }
  // Has something to do before it can serve what it was told to.
  bool in_phase() const {
    return job_epoch != 0 && (!job_loaded || preparing.has_value() || committing.has_value());
  }
};

}  // namespace halfstep
