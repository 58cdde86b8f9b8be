// SPDX-License-Identifier: Apache-2.0
#include "learner_server/training/mismatch_diagnosis.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/status_macros.h"
#include "common/weight_sync/staging_area.h"
#include "kernels/ops/elementwise.h"
#include "kernels/stream.h"

namespace halfstep {
namespace {

// How much nearer log-probs must be under a cause than under the policy itself.
constexpr double kNearer = 4;
// Within how many times the best rollout's mean another is one of the same kind.
constexpr double kAlike = 2;

struct Distance {
  int64_t tokens = 0;
  double sum = 0;
  double max = 0;

  void Add(float learner, float behaviour) {
    const double d = std::abs(static_cast<double>(learner) - behaviour);
    ++tokens;
    sum += d;
    max = std::max(max, d);
  }
  double mean() const { return tokens == 0 ? 0 : sum / static_cast<double>(tokens); }
};

Distance DistanceOf(const std::vector<std::vector<float>>& learner,
                    std::span<const TrainSequence> sequences) {
  Distance distance;
  for (size_t i = 0; i < sequences.size(); ++i) {
    for (auto t = static_cast<size_t>(sequences[i].current_from); t < learner[i].size(); ++t) {
      distance.Add(learner[i][t], sequences[i].behaviour[t]);
    }
  }
  return distance;
}

// As if each response's log-probs had come in an order that the learner's also have.
Distance SortedDistanceOf(std::vector<std::vector<float>> learner,
                          std::span<const TrainSequence> sequences) {
  Distance distance;
  for (size_t i = 0; i < sequences.size(); ++i) {
    std::vector<float> behaviour = sequences[i].behaviour;
    const auto from = static_cast<std::ptrdiff_t>(sequences[i].current_from);
    std::sort(behaviour.begin() + from, behaviour.end());
    std::sort(learner[i].begin() + from, learner[i].end());
    for (auto t = static_cast<size_t>(from); t < behaviour.size(); ++t) {
      distance.Add(learner[i][t], behaviour[t]);
    }
  }
  return distance;
}

class Diagnosis {
 public:
  Diagnosis(const ExecContext& ctx, const MismatchSuspicion& suspicion)
      : ctx_(ctx), suspicion_(suspicion) {
    // These passes are no part of training: what they saturate is not counted.
    ctx_.saturated_stores = nullptr;
  }

  absl::StatusOr<ModelWeights> Unpack(const WeightSet& set) {
    ModelWeights weights = Empty(DTypeOf(set));
    StagingArea staging(weights);
    HALFSTEP_RETURN_IF_ERROR(staging.Begin(set.manifest()));
    HALFSTEP_RETURN_IF_ERROR(staging.Append(0, set.bytes()));
    HALFSTEP_RETURN_IF_ERROR(staging.CopyTo(&weights));
    weights.Pack(ctx_);
    return weights;
  }

  absl::StatusOr<std::vector<std::vector<float>>> Score(const ModelWeights& weights,
                                                        std::span<const TrainSequence> sequences) {
    return ScoreResponses(ctx_, weights, sequences, suspicion_.score);
  }

  // Finds the cause that brings the responses of one rollout nearest. `learner`: as the policy has
  // them.
  absl::Status Explain(std::span<const TrainSequence> sequences,
                       const std::vector<std::vector<float>>& learner, RolloutMismatch* mismatch) {
    Consider(SortedDistanceOf(learner, sequences), {.cause = MismatchCause::kPermutedLogProbs},
             mismatch);
    for (const std::shared_ptr<const WeightSet>& set : suspicion_.older) {
      HALFSTEP_ASSIGN_OR_RETURN(const ModelWeights weights, Unpack(*set));
      HALFSTEP_RETURN_IF_ERROR(
          Try(weights, sequences,
              {.cause = MismatchCause::kStaleWeights, .stale_version = set->manifest().version},
              mismatch));
    }
    for (const DType dtype : {DType::kFloat16, DType::kBFloat16, DType::kFloat32}) {
      if (dtype == DTypeOf(*suspicion_.current)) continue;
      HALFSTEP_ASSIGN_OR_RETURN(const ModelWeights weights, Unpack(*suspicion_.current));
      HALFSTEP_RETURN_IF_ERROR(Try(Recast(weights, dtype), sequences,
                                   {.cause = MismatchCause::kOtherPrecision, .dtype = dtype},
                                   mismatch));
    }
    return absl::OkStatus();
  }

 private:
  absl::Status Try(const ModelWeights& weights, std::span<const TrainSequence> sequences,
                   const RolloutMismatch& cause, RolloutMismatch* mismatch) {
    absl::StatusOr<std::vector<std::vector<float>>> scored = Score(weights, sequences);
    // A precision in which the model overflows is not what a rollout sent finite log-probs from.
    if (absl::IsFailedPrecondition(scored.status())) return absl::OkStatus();
    HALFSTEP_RETURN_IF_ERROR(scored.status());
    Consider(DistanceOf(*scored, sequences), cause, mismatch);
    return absl::OkStatus();
  }

  static void Consider(const Distance& distance, const RolloutMismatch& cause,
                       RolloutMismatch* mismatch) {
    const double mean = distance.mean();
    if (mean > mismatch->abs_mean / kNearer) return;
    if (mismatch->cause != MismatchCause::kUnknown && mean >= mismatch->explained_abs_mean) return;
    mismatch->cause = cause.cause;
    mismatch->stale_version = cause.stale_version;
    mismatch->dtype = cause.dtype;
    mismatch->explained_abs_mean = mean;
  }

  ModelWeights Recast(const ModelWeights& weights, DType dtype) {
    ModelWeights cast = Empty(dtype);
    Cast(ctx_, weights.parameters().flat(), Overflow::kInfinity, cast.parameters().flat());
    const ConstTensor table = weights.rope_table();
    CopyAndWait(table, cast.rope_table());
    cast.Pack(ctx_);
    return cast;
  }

  static DType DTypeOf(const WeightSet& set) { return set.manifest().tensors.front().dtype; }

  ModelWeights Empty(DType dtype) const {
    const ModelWeights& like = *suspicion_.like;
    return {like.config(), like.parameters().shared_layout(), dtype, like.rope_table().dim(0),
            ctx_.device};
  }

  ExecContext ctx_;
  const MismatchSuspicion& suspicion_;
};

std::string Describe(const RolloutMismatch& mismatch) {
  std::string text =
      absl::StrFormat("rollout %s: log-probs are off by %.2g on average over %d tokens",
                      mismatch.rollout_id, mismatch.abs_mean, mismatch.tokens);
  switch (mismatch.cause) {
    case MismatchCause::kPermutedLogProbs:
      absl::StrAppend(&text, ", they are those of its tokens in another order");
      break;
    case MismatchCause::kStaleWeights:
      absl::StrAppend(&text, ", they are those of weights version ", mismatch.stale_version);
      break;
    case MismatchCause::kOtherPrecision:
      absl::StrAppend(&text, ", they are those of ", Name(mismatch.dtype));
      break;
    case MismatchCause::kUnknown:
      absl::StrAppend(&text,
                      ", and neither older weights, nor another precision, nor another order "
                      "explains it");
      break;
  }
  return absl::StrCat(text, " (", Name(mismatch.cause), ")");
}

// Whether a rollout disagrees otherwise than the best one does.
bool StandsOut(const RolloutMismatch& mismatch, double best) {
  return mismatch.abs_mean > 0 && mismatch.abs_mean > kAlike * best;
}

double BestOf(std::span<const RolloutMismatch> rollouts) {
  double best = HUGE_VAL;
  for (const RolloutMismatch& mismatch : rollouts) best = std::min(best, mismatch.abs_mean);
  // Alone, a rollout is measured against agreement itself.
  return rollouts.size() == 1 ? 0 : best;
}

}  // namespace

const char* Name(MismatchCause cause) {
  switch (cause) {
    case MismatchCause::kUnknown:
      return "unknown";
    case MismatchCause::kPermutedLogProbs:
      return "permuted_log_probs";
    case MismatchCause::kStaleWeights:
      return "stale_weights";
    case MismatchCause::kOtherPrecision:
      return "other_precision";
  }
  return "?";
}

absl::StatusOr<std::vector<RolloutMismatch>> DiagnoseMismatch(
    const ExecContext& ctx, const MismatchSuspicion& suspicion,
    std::span<const TrainSequence> sequences) {
  std::map<std::string, std::vector<TrainSequence>> by_rollout;
  for (const TrainSequence& sequence : sequences) {
    const bool compared = sequence.current_from < std::ssize(sequence.behaviour);
    if (compared) by_rollout[sequence.rollout_id].push_back(sequence);
  }
  Diagnosis diagnosis(ctx, suspicion);
  HALFSTEP_ASSIGN_OR_RETURN(const ModelWeights current, diagnosis.Unpack(*suspicion.current));
  std::vector<RolloutMismatch> rollouts;
  std::vector<std::vector<std::vector<float>>> learner;
  for (const auto& [rollout_id, responses] : by_rollout) {
    HALFSTEP_ASSIGN_OR_RETURN(std::vector<std::vector<float>> scored,
                              diagnosis.Score(current, responses));
    const Distance distance = DistanceOf(scored, responses);
    rollouts.push_back({.rollout_id = rollout_id,
                        .tokens = distance.tokens,
                        .abs_mean = distance.mean(),
                        .abs_max = distance.max,
                        .explained_abs_mean = distance.mean()});
    learner.push_back(std::move(scored));
  }
  const double best = BestOf(rollouts);
  for (size_t i = 0; i < rollouts.size(); ++i) {
    if (!StandsOut(rollouts[i], best)) continue;
    HALFSTEP_RETURN_IF_ERROR(
        diagnosis.Explain(by_rollout.at(rollouts[i].rollout_id), learner[i], &rollouts[i]));
  }
  return rollouts;
}

std::string DescribeMismatch(std::span<const RolloutMismatch> rollouts) {
  const double best = BestOf(rollouts);
  std::string text;
  for (const RolloutMismatch& mismatch : rollouts) {
    if (!StandsOut(mismatch, best)) continue;
    absl::StrAppend(&text, text.empty() ? "" : "; ", Describe(mismatch));
  }
  return text;
}

}  // namespace halfstep
