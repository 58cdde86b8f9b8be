// SPDX-License-Identifier: Apache-2.0
// ReplayLog: everything the weights of a run with batch.max_lag depend on, in the order in which
// the learner used it. Such a run cannot be had again by running its job; its updates can, from
// this (replay.h).
//
// A file of lines "DIGEST JSON", each with its newline. DIGEST is the XXH3-128, in hexadecimal, of
// the digest before it (32 zeros at first) and the JSON, so that no line can be changed, lost or
// moved unseen. The first line is a header; then for each step a line of the batch, followed by one
// for each of its groups; at the end of an attempt that was not cut off, the digests of what came
// out.
#pragma once

#include <cstdint>
#include <fstream>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/trajectory/trajectory.h"

namespace halfstep {

// What the updates presuppose. The build is told, not compared: two builds that compute the same
// bits replay each other's runs.
struct ReplayHeader {
  std::string job_digest;    // of the resolved job (job.json)
  std::string model_digest;  // of the FP32 master before the first step
  std::string numerics;      // NumericsFingerprint of the learner
  std::string build;
  int64_t max_sequence_tokens = 0;  // rows of the RoPE table
};

// The batch of a step, before it was trained.
struct ReplayBatch {
  int64_t step = 0;
  uint64_t version = 0;       // of the policy in force
  std::string master_digest;  // of master and moments
  // Dropped as older than batch.max_lag allows since the batch before.
  int64_t stale_samples = 0;
  int64_t stale_tokens = 0;
  std::vector<Trajectory> trajectories;  // canonical order
};

// What a run came to.
struct ReplayEnd {
  int64_t step = 0;
  std::string master_digest;
  std::string weights_digest;  // empty where the weights cannot be published
  std::string state_digest;
};

// Movable; not thread-safe.
class ReplayLogReader {
 public:
  // Reads the header. NOT_FOUND, reason NO_REPLAY_LOG; DATA_LOSS, reason REPLAY_LOG_DAMAGED.
  static absl::StatusOr<ReplayLogReader> Open(const std::string& path);

  const ReplayHeader& header() const { return header_; }

  // The next batch or end, or nothing where the log ends. What a crash cut off in the middle of a
  // line or of a batch is left out, and torn() then says so. DATA_LOSS, reason REPLAY_LOG_DAMAGED,
  // naming the line, for anything else that the learner did not write.
  using Record = std::variant<std::monostate, ReplayBatch, ReplayEnd>;
  absl::StatusOr<Record> Next();
  bool torn() const { return torn_; }

  // Behind what was read last: where it ends, and its digest.
  int64_t offset() const { return offset_; }
  const std::string& chain() const { return chain_; }

 private:
  ReplayLogReader(std::string path, std::ifstream file);
  // The JSON of the next line; nothing at the end.
  absl::StatusOr<std::optional<std::string>> NextLine();
  absl::Status Damaged(const std::string& what) const;
  absl::StatusOr<Record> ReadBatch(ReplayBatch batch, int64_t groups);

  std::string path_;
  std::ifstream file_;
  ReplayHeader header_;
  bool torn_ = false;
  int64_t line_ = 0;
  int64_t offset_ = 0;
  std::string chain_;
};

// One writer per file. Not thread-safe.
class ReplayLog {
 public:
  // Begins the log, or goes on with it behind `step`: what it holds of later steps is cut off,
  // because they will be trained again. With a `step` above 0 the header's model_digest may be
  // empty, and is then not compared. A log that does not reach `step`, or is not that of
  // `header`, is refused: DATA_LOSS, reason REPLAY_LOG_DAMAGED; FAILED_PRECONDITION, reason
  // REPLAY_LOG_OF_OTHER_RUN.
  static absl::StatusOr<ReplayLog> Open(const std::string& path, const ReplayHeader& header,
                                        int64_t step);

  // Durable on return. When it fails, the file is as before.
  absl::Status Append(const ReplayBatch& batch);
  // Of a run that rests after `end.step`: a batch beyond it, which was not trained, goes.
  absl::Status Append(const ReplayEnd& end);

 private:
  explicit ReplayLog(std::string path) : path_(std::move(path)) {}

  absl::Status AppendAll(const std::vector<std::string>& jsons);

  std::string path_;
  std::string chain_;
  // Of the last batch: its step, and what was before it.
  int64_t last_step_ = 0;
  int64_t offset_ = 0;
  int64_t before_last_ = 0;
  std::string chain_before_last_;
};

// Whether a run that `expected` describes can be replayed as `actual`. FAILED_PRECONDITION, reason
// REPLAY_LOG_OF_OTHER_RUN, naming `path` and what differs.
absl::Status CheckHeader(const std::string& path, const ReplayHeader& recorded,
                         const ReplayHeader& actual);

}  // namespace halfstep
