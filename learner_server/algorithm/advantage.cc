// SPDX-License-Identifier: Apache-2.0
#include "learner_server/algorithm/advantage.h"

#include <cmath>

namespace halfstep {
namespace {

constexpr double kStandardDeviationFloor = 1e-6;

struct GroupMoments {
  int64_t count = 0;
  double sum = 0;
  double mean = 0;
  double standard_deviation = 0;
  bool all_equal = true;
};

GroupMoments MomentsOf(std::span<const std::optional<double>> scores) {
  GroupMoments moments;
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
  moments.standard_deviation = std::sqrt(squares / static_cast<double>(moments.count - 1));
  return moments;
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
  }
  return "?";
}

std::vector<double> GroupAdvantages(AdvantageKind kind,
                                    std::span<const std::optional<double>> scores) {
  std::vector<double> advantages(scores.size(), 0.0);
  const GroupMoments moments = MomentsOf(scores);
  // The mean of equal numbers need not be that number in floating point, and dividing what is left
  // by a tiny deviation would make a signal out of rounding.
  if (moments.all_equal) return advantages;
  const double count = static_cast<double>(moments.count);
  for (size_t i = 0; i < scores.size(); ++i) {
    if (!scores[i]) continue;
    const double score = *scores[i];
    switch (kind) {
      case AdvantageKind::kGroupMean:
        advantages[i] = score - moments.mean;
        break;
      case AdvantageKind::kGroupMeanStd:
        advantages[i] =
            (score - moments.mean) / (moments.standard_deviation + kStandardDeviationFloor);
        break;
      case AdvantageKind::kLeaveOneOut:
        advantages[i] = (count * score - moments.sum) / (count - 1);
        break;
    }
  }
  return advantages;
}

}  // namespace halfstep
