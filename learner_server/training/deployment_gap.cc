// SPDX-License-Identifier: Apache-2.0
#include "learner_server/training/deployment_gap.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "common/base/error_reason.h"
#include "learner_server/algorithm/log_ratio.h"
#include "learner_server/training/score_responses.h"

namespace halfstep {
namespace {

TrainSequence SequenceOf(const Trajectory& trajectory) {
  TrainSequence sequence;
  sequence.tokens = trajectory.prompt;
  sequence.prompt_tokens = static_cast<int64_t>(trajectory.prompt.size());
  sequence.tokens.insert(sequence.tokens.end(), trajectory.sample.tokens.begin(),
                         trajectory.sample.tokens.end());
  return sequence;
}

}  // namespace

absl::StatusOr<DeploymentGap> MeasureDeploymentGap(const ExecContext& ctx,
                                                   const ModelWeights& weights,
                                                   std::span<const Trajectory> sampled,
                                                   const DeploymentGapOptions& options) {
  std::vector<TrainSequence> sequences;
  sequences.reserve(sampled.size());
  for (const Trajectory& trajectory : sampled) sequences.push_back(SequenceOf(trajectory));
  ScoreOptions score;
  score.temperature = options.temperature;
  score.fp32 = options.fp32;
  score.micro_batch_tokens = options.micro_batch_tokens;
  if (options.go_on) score.go_on = [&](int64_t) { return options.go_on(); };
  const absl::StatusOr<std::vector<std::vector<float>>> scored =
      ScoreResponses(ctx, weights, sequences, score);
  if (!scored.ok()) {
    return WithContext(scored.status(), "the evaluation's responses under the learner's engine");
  }
  const std::vector<std::vector<float>>& learner = *scored;
  DeploymentGap gap;
  double weighted = 0, weight_sum = 0, abs_sum = 0;
  for (size_t i = 0; i < sampled.size(); ++i) {
    double log_ratio = 0;
    for (size_t t = 0; t < learner[i].size(); ++t) {
      const double d = static_cast<double>(learner[i][t]) - sampled[i].sample.log_probs[t];
      log_ratio += d;
      abs_sum += std::abs(d);
    }
    gap.tokens += static_cast<int64_t>(learner[i].size());
    const double weight = std::exp(std::clamp(log_ratio, -kLogRatioLimit, kLogRatioLimit));
    weight_sum += weight;
    const Reward& reward = sampled[i].reward;
    if (reward.outcome == RewardOutcome::kScore) weighted += weight * reward.score;
  }
  if (weight_sum > 0) gap.learner_accuracy = weighted / weight_sum;
  if (gap.tokens > 0) gap.abs_log_prob_diff = abs_sum / static_cast<double>(gap.tokens);
  return gap;
}

}  // namespace halfstep
