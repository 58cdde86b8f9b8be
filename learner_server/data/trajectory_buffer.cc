// SPDX-License-Identifier: Apache-2.0
#include "learner_server/data/trajectory_buffer.h"

#include <utility>

#include "kernels/check.h"

namespace halfstep {

TrajectoryBuffer::~TrajectoryBuffer() {
  auto idle = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return being_scored_ == 0; };
  absl::MutexLock lock(&mutex_, absl::Condition(&idle));
}

void TrajectoryBuffer::Expect(const GroupAssignment& assignment, std::string answer) {
  absl::MutexLock lock(&mutex_);
  Group group;
  group.answer = std::move(answer);
  group.prompt = assignment.prompt;
  group.expected = assignment.samples;
  HALFSTEP_CHECK(groups_.emplace(assignment.key, std::move(group)).second);
}

void TrajectoryBuffer::OnSample(const GroupAssignment& assignment, const std::string& rollout_id,
                                Sample sample) {
  const GroupKey key = assignment.key;
  const uint32_t index = sample.index;
  std::vector<int32_t> response = sample.tokens;
  std::string answer;
  {
    absl::MutexLock lock(&mutex_);
    const auto found = groups_.find(key);
    if (found == groups_.end()) return;  // abandoned while the sample was on its way
    Group& group = found->second;
    answer = group.answer;
    Trajectory trajectory{key, group.prompt, std::move(sample), Reward{}, rollout_id};
    HALFSTEP_CHECK(group.samples.emplace(index, std::move(trajectory)).second);
    if (key.purpose == Purpose::kTrain) {
      ++counters_.samples_admitted;
      ++counters_.samples_buffered;
      counters_.tokens_admitted += static_cast<int64_t>(response.size());
    }
    ++being_scored_;
  }
  score_(response, answer,
         [this, key, index](Reward reward) { SetReward(key, index, std::move(reward)); });
}

void TrajectoryBuffer::OnGroupLost(const GroupAssignment& assignment, const absl::Status& why) {
  absl::MutexLock lock(&mutex_);
  const auto found = groups_.find(assignment.key);
  if (found == groups_.end()) return;
  found->second.lost = why;
  awaited_lost_ = awaited_lost_ || found->second.awaited;
  if (assignment.key.purpose == Purpose::kTrain) training_lost_.Update(why);
}

void TrajectoryBuffer::SetReward(const GroupKey& key, uint32_t index, Reward reward) {
  absl::MutexLock lock(&mutex_);
  --being_scored_;
  const auto found = groups_.find(key);
  if (found == groups_.end()) return;
  found->second.samples.at(index).reward = std::move(reward);
  ++found->second.scored;
  awaited_missing_ -= found->second.awaited;
  const bool complete = found->second.scored == found->second.expected;
  if (complete && key.purpose == Purpose::kTrain) arrived_.push_back(key);
}

TrajectoryBuffer::Completeness TrajectoryBuffer::Measure(std::span<const GroupKey> groups) const {
  Completeness completeness;
  for (const GroupKey& key : groups) {
    const Group& group = groups_.at(key);
    completeness.expected += group.expected;
    completeness.received += static_cast<int64_t>(group.samples.size());
    completeness.scored += group.scored;
    if (completeness.lost.ok()) completeness.lost = group.lost;
  }
  return completeness;
}

TrajectoryBuffer::Completeness TrajectoryBuffer::Await(std::span<const GroupKey> groups,
                                                       absl::Time deadline) {
  absl::MutexLock lock(&mutex_);
  const Completeness before = Measure(groups);
  awaited_missing_ = before.expected - before.scored;
  awaited_lost_ = !before.lost.ok();
  for (const GroupKey& key : groups) groups_.at(key).awaited = true;
  auto ready = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return awaited_missing_ == 0 || awaited_lost_;
  };
  mutex_.AwaitWithDeadline(absl::Condition(&ready), deadline);
  for (const GroupKey& key : groups) groups_.at(key).awaited = false;
  return Measure(groups);
}

TrajectoryBuffer::Arrivals TrajectoryBuffer::AwaitArrivals(absl::Time deadline) {
  absl::MutexLock lock(&mutex_);
  auto ready = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return !arrived_.empty() || !training_lost_.ok();
  };
  mutex_.AwaitWithDeadline(absl::Condition(&ready), deadline);
  return {arrived_, training_lost_};
}

TrajectoryBuffer::Completeness TrajectoryBuffer::MeasureTraining() const {
  absl::MutexLock lock(&mutex_);
  std::vector<GroupKey> groups;
  for (const auto& [key, group] : groups_) {
    if (key.purpose == Purpose::kTrain) groups.push_back(key);
  }
  return Measure(groups);
}

std::vector<Trajectory> TrajectoryBuffer::Take(std::span<const GroupKey> groups) {
  absl::MutexLock lock(&mutex_);
  std::vector<Trajectory> taken;
  for (const GroupKey& key : groups) {
    const auto found = groups_.find(key);
    HALFSTEP_CHECK(found != groups_.end());
    Group& group = found->second;
    HALFSTEP_CHECK_EQ(group.scored, group.expected);
    for (auto& [index, trajectory] : group.samples) taken.push_back(std::move(trajectory));
    if (key.purpose == Purpose::kTrain) {
      counters_.samples_buffered -= group.expected;
      std::erase(arrived_, key);
    }
    groups_.erase(found);
  }
  return taken;
}

BufferCounters TrajectoryBuffer::counters() const {
  absl::MutexLock lock(&mutex_);
  return counters_;
}

}  // namespace halfstep
