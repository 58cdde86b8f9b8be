// SPDX-License-Identifier: Apache-2.0
#include "learner_server/algorithm/advantage.h"

#include <cmath>
#include <cstdint>

namespace halfstep {
namespace {

constexpr double kStandardDeviationFloor = 1e-6;
constexpr double kVarianceFloor = 1e-8;

struct Moments {
  int64_t count = 0;
  double sum = 0;
  double mean = 0;
  double variance = 0;  // with n - 1
  // The mean of equal numbers need not be that number in floating point, and dividing what is left
  // by a tiny deviation would make a signal out of rounding.
  bool all_equal = true;
};

Moments MomentsOf(std::span<const std::optional<double>> scores) {
  Moments moments;
  std::optional<double> first;
  for (const std::optional<double>& score : scores) {
    if (!score) continue;
    if (!first) first = score;
    moments.all_equal = moments.all_equal && *score == *first;
    moments.sum += *score;
    ++moments.count;
  }
  if (moments.count == 0) return moments;
  moments.mean = moments.sum / static_cast<double>(moments.count);
  if (moments.count < 2) return moments;
  double squares = 0;
  for (const std::optional<double>& score : scores) {
    if (score) squares += (*score - moments.mean) * (*score - moments.mean);
  }
  moments.variance = squares / static_cast<double>(moments.count - 1);
  return moments;
}

void GroupMean(std::span<const std::optional<double>> scores, std::span<double> advantages) {
  const Moments moments = MomentsOf(scores);
  if (moments.all_equal) return;
  for (size_t i = 0; i < scores.size(); ++i) {
    if (scores[i]) advantages[i] = *scores[i] - moments.mean;
  }
}

void GroupMeanStd(std::span<const std::optional<double>> scores, std::span<double> advantages) {
  const Moments moments = MomentsOf(scores);
  if (moments.all_equal) return;
  const double scale = std::sqrt(moments.variance) + kStandardDeviationFloor;
  for (size_t i = 0; i < scores.size(); ++i) {
    if (scores[i]) advantages[i] = (*scores[i] - moments.mean) / scale;
  }
}

void LeaveOneOut(std::span<const std::optional<double>> scores, std::span<double> advantages) {
  const Moments moments = MomentsOf(scores);
  if (moments.all_equal) return;
  const double count = static_cast<double>(moments.count);
  for (size_t i = 0; i < scores.size(); ++i) {
    if (scores[i]) advantages[i] = (count * *scores[i] - moments.sum) / (count - 1);
  }
}

void GreedyBaseline(const ScoredGroup& group, std::span<double> advantages) {
  if (!group.greedy_score) return;
  for (size_t i = 0; i < group.scores.size(); ++i) {
    if (group.scores[i]) advantages[i] = *group.scores[i] - *group.greedy_score;
  }
}

void BatchWhiten(std::span<const ScoredGroup> groups, std::span<double> advantages) {
  std::vector<std::optional<double>> scores;
  for (const ScoredGroup& group : groups) {
    scores.insert(scores.end(), group.scores.begin(), group.scores.end());
  }
  const Moments moments = MomentsOf(scores);
  if (moments.all_equal) return;
  const double scale = std::sqrt(moments.variance + kVarianceFloor);
  for (size_t i = 0; i < scores.size(); ++i) {
    if (scores[i]) advantages[i] = (*scores[i] - moments.mean) / scale;
  }
}

// `advantages` hold the distances to the groups' means. Their mean over the batch is 0, and is not
// taken from them: its rounding would give groups without signal an advantage.
void DivideByDeviationOfBatch(std::span<const ScoredGroup> groups, std::span<double> advantages) {
  int64_t count = 0;
  double squares = 0;
  size_t first = 0;
  for (const ScoredGroup& group : groups) {
    const Moments moments = MomentsOf(group.scores);
    if (moments.count >= 2) count += moments.count;
    for (size_t i = 0; i < group.scores.size(); ++i) {
      squares += advantages[first + i] * advantages[first + i];
    }
    first += group.scores.size();
  }
  if (squares == 0) return;
  const double scale = std::sqrt(squares / static_cast<double>(count - 1) + kVarianceFloor);
  for (double& advantage : advantages) advantage /= scale;
}

void GroupAdvantages(AdvantageKind kind, const ScoredGroup& group, std::span<double> advantages) {
  switch (kind) {
    case AdvantageKind::kGroupMean:
    case AdvantageKind::kGroupMeanBatchWhiten:
      return GroupMean(group.scores, advantages);
    case AdvantageKind::kGroupMeanStd:
      return GroupMeanStd(group.scores, advantages);
    case AdvantageKind::kLeaveOneOut:
      return LeaveOneOut(group.scores, advantages);
    case AdvantageKind::kGreedyBaseline:
      return GreedyBaseline(group, advantages);
    case AdvantageKind::kBatchWhiten:
      return;
  }
}

}  // namespace

const char* Name(AdvantageKind kind) {
  switch (kind) {
    case AdvantageKind::kGroupMean:
      return "group_mean";
    case AdvantageKind::kGroupMeanStd:
      return "group_mean_std";
    case AdvantageKind::kLeaveOneOut:
      return "leave_one_out";
    case AdvantageKind::kBatchWhiten:
      return "batch_whiten";
    case AdvantageKind::kGroupMeanBatchWhiten:
      return "group_mean_batch_whiten";
    case AdvantageKind::kGreedyBaseline:
      return "greedy_baseline";
  }
  return "?";
}

bool NeedsGroup(AdvantageKind kind) {
  return kind != AdvantageKind::kBatchWhiten && kind != AdvantageKind::kGreedyBaseline;
}

std::vector<double> BatchAdvantages(AdvantageKind kind, std::span<const ScoredGroup> groups) {
  size_t responses = 0;
  for (const ScoredGroup& group : groups) responses += group.scores.size();
  std::vector<double> advantages(responses, 0.0);
  size_t first = 0;
  for (const ScoredGroup& group : groups) {
    GroupAdvantages(kind, group, std::span(advantages).subspan(first, group.scores.size()));
    first += group.scores.size();
  }
  if (kind == AdvantageKind::kBatchWhiten) BatchWhiten(groups, advantages);
  if (kind == AdvantageKind::kGroupMeanBatchWhiten) DivideByDeviationOfBatch(groups, advantages);
  return advantages;
}

bool HasZeroVariance(std::span<const std::optional<double>> scores) {
  return MomentsOf(scores).all_equal;
}

}  // namespace halfstep
