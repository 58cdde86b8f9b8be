// SPDX-License-Identifier: Apache-2.0
// TrajectoryBuffer: collects samples as they arrive, has them scored, and gives out complete
// batches in canonical (group, index) order, whatever the order of arrival was.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "learner_server/data/rollout_pool.h"

namespace halfstep {

// Scores a response against its row's answer and calls `done` once, from any thread. Must not
// block.
using ScoreResponse =
    std::function<void(const std::vector<int32_t>& response, const std::string& answer,
                       std::function<void(Reward)> done)>;

// Training samples and their tokens since the buffer was made.
struct BufferCounters {
  int64_t samples_admitted = 0;
  int64_t samples_buffered = 0;  // admitted and not yet taken
  int64_t tokens_admitted = 0;
};

// Thread-safe.
class TrajectoryBuffer final : public SampleSink {
 public:
  explicit TrajectoryBuffer(ScoreResponse score) : score_(std::move(score)) {}
  // Waits for scores that are under way. No sample may arrive any more.
  ~TrajectoryBuffer() override;

  // Announces a group before it is assigned; `answer` is what its responses are scored against.
  void Expect(const GroupAssignment& assignment, std::string answer);

  void OnSample(const GroupAssignment& assignment, const std::string& rollout_id,
                Sample sample) override;
  void OnGroupLost(const GroupAssignment& assignment, const absl::Status& why) override;

  // How far a set of expected groups is.
  struct Completeness {
    int64_t expected = 0;  // samples
    int64_t received = 0;
    int64_t scored = 0;
    absl::Status lost;  // not OK when one of the groups was given up
    bool complete() const { return lost.ok() && scored == expected; }
  };
  // Waits until all samples of `groups` are scored, one of the groups is lost, or `deadline` has
  // come. One caller at a time.
  Completeness Await(std::span<const GroupKey> groups, absl::Time deadline);

  // Training groups that are complete and not taken, in the order in which they became so. Waits
  // until there is one, a group is lost, or `deadline` has come. One caller at a time.
  struct Arrivals {
    std::vector<GroupKey> groups;
    absl::Status lost;  // not OK when a training group was given up
  };
  Arrivals AwaitArrivals(absl::Time deadline);
  // How far all training groups are that were expected and not taken.
  Completeness MeasureTraining() const;

  // Removes complete groups: their trajectories in the order of `groups`, then of the index.
  std::vector<Trajectory> Take(std::span<const GroupKey> groups);

  BufferCounters counters() const;

 private:
  struct Group {
    std::string answer;
    std::vector<int32_t> prompt;
    std::map<uint32_t, Trajectory> samples;  // by index
    int64_t expected = 0;
    int64_t scored = 0;
    absl::Status lost;
    bool awaited = false;  // counted in awaited_missing_
  };

  void SetReward(const GroupKey& key, uint32_t index, Reward reward);
  Completeness Measure(std::span<const GroupKey> groups) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const ScoreResponse score_;
  mutable absl::Mutex mutex_;
  std::map<GroupKey, Group> groups_ ABSL_GUARDED_BY(mutex_);
  BufferCounters counters_ ABSL_GUARDED_BY(mutex_);
  int64_t being_scored_ ABSL_GUARDED_BY(mutex_) = 0;
  // Kept up to date during Await, whose condition is evaluated at every change and must be cheap.
  int64_t awaited_missing_ ABSL_GUARDED_BY(mutex_) = 0;
  bool awaited_lost_ ABSL_GUARDED_BY(mutex_) = false;
  // Complete training groups in the order of their last score; the first one that was lost.
  std::vector<GroupKey> arrived_ ABSL_GUARDED_BY(mutex_);
  absl::Status training_lost_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace halfstep
