// SPDX-License-Identifier: Apache-2.0
#include "learner_server/training/step_metrics.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "absl/time/clock.h"
#include "common/base/digest.h"
#include "common/metrics/learner_metrics.h"

namespace halfstep {
namespace {

double Share(int64_t part, int64_t whole) {
  return whole == 0 ? 0 : static_cast<double>(part) / static_cast<double>(whole);
}

double MeanLength(const BatchStatistics& batch) {
  int64_t sum = 0;
  for (const int64_t length : batch.lengths) sum += length;
  return Share(sum, static_cast<int64_t>(batch.lengths.size()));
}

// Sums over the optimizer steps of a batch.
struct UpdateTotals {
  int64_t tokens = 0;
  int64_t clipped = 0;
  int64_t clipped_dual = 0;
  KlStatistics kl;
  double loss = 0;  // mean over the updates
  double entropy = 0;
  double gradient_norm = 0;  // of the last applied one, as is the learning rate
  double learning_rate = 0;
  double largest_scaled_gradient = 0;
  absl::Duration forward_backward_time;
  absl::Duration optimizer_time;
};

UpdateTotals TotalsOf(const std::vector<OptimizerStepReport>& updates) {
  UpdateTotals totals;
  for (const OptimizerStepReport& update : updates) {
    totals.tokens += update.tokens;
    totals.clipped += update.loss.clipped_low + update.loss.clipped_high;
    totals.clipped_dual += update.loss.clipped_dual;
    totals.kl.tokens += update.kl.tokens;
    totals.kl.estimate_sum += update.kl.estimate_sum;
    totals.loss += (update.loss.loss + update.kl.loss + update.entropy_loss) /
                   static_cast<double>(updates.size());
    totals.entropy += update.entropy_sum;
    totals.largest_scaled_gradient =
        std::max<double>(totals.largest_scaled_gradient, update.largest_scaled_gradient);
    totals.forward_backward_time += update.forward_backward_time;
    totals.optimizer_time += update.optimizer_time;
    if (!update.applied) continue;
    totals.gradient_norm = update.gradient_norm;
    totals.learning_rate = update.learning_rate;
  }
  return totals;
}

void AddMismatch(const MismatchMetrics& mismatch, std::map<std::string, double>* metrics) {
  (*metrics)["tokens_compared"] = static_cast<double>(mismatch.tokens_compared);
  if (mismatch.tokens_compared == 0) return;
  (*metrics)["mismatch_k1"] = mismatch.k1;
  (*metrics)["mismatch_k2"] = mismatch.k2;
  (*metrics)["mismatch_k3"] = mismatch.k3;
  (*metrics)["mismatch_abs_mean"] = mismatch.abs_mean;
  (*metrics)["mismatch_abs_p99"] = mismatch.abs_p99;
  (*metrics)["mismatch_abs_max"] = mismatch.abs_max;
  (*metrics)["mismatch_prob_diff_mean"] = mismatch.prob_diff_mean;
  (*metrics)["mismatch_prob_diff_max"] = mismatch.prob_diff_max;
  (*metrics)["mismatch_sequence_sum_mean"] = mismatch.sequence_sum_mean;
  (*metrics)["mismatch_sequence_abs_sum_mean"] = mismatch.sequence_abs_sum_mean;
  (*metrics)["mismatch_sequence_kl"] = mismatch.sequence_kl;
  (*metrics)["mismatch_slope_per_1000_tokens"] = mismatch.slope_per_1000_tokens;
  (*metrics)["mismatch_prob_correlation"] = mismatch.prob_correlation;
  (*metrics)["mismatch_perplexity_ratio"] = mismatch.perplexity_ratio;
  (*metrics)["mismatch_chi2_token"] = mismatch.chi2_token;
  (*metrics)["mismatch_chi2_sequence"] = mismatch.chi2_sequence;
  (*metrics)["mismatch_effective_sample_size"] = mismatch.effective_sample_size;
  (*metrics)["mismatch_weights_above_cap"] = mismatch.weights_above_cap;
  (*metrics)["mismatch_weights_below_cap"] = mismatch.weights_below_cap;
  (*metrics)["mismatch_bit_equal_share"] = mismatch.bit_equal_share;
}

// What the first update clips before the policy has moved: nothing, when pi equals mu.
void AddPhantomClips(const StepRecord& record, std::map<std::string, double>* metrics) {
  if (record.mismatch.tokens_compared == 0 || record.updates.empty()) return;
  // For other tokens it has.
  if (record.lag && record.lag->max > 0) return;
  const PolicyLossStatistics& first = record.updates.front().loss;
  (*metrics)["phantom_clip_fraction"] = Share(first.clipped_low + first.clipped_high, first.tokens);
}

// Of the first update, which is where the policy that was corrected to begins.
void AddCorrection(const StepRecord& record, std::map<std::string, double>* metrics) {
  if (record.updates.empty()) return;
  const CorrectionMetrics& correction = record.updates.front().correction;
  (*metrics)["correction_mean"] = correction.mean;
  (*metrics)["correction_max"] = correction.max;
  (*metrics)["correction_ess"] = correction.effective_sample_size;
  (*metrics)["correction_masked_share"] = correction.masked_share;
}

void AddLag(const StepRecord& record, std::map<std::string, double>* metrics) {
  if (!record.lag) return;
  (*metrics)["lag_mean"] = record.lag->mean;
  (*metrics)["lag_p99"] = static_cast<double>(record.lag->p99);
  (*metrics)["lag_max"] = static_cast<double>(record.lag->max);
  (*metrics)["samples_spanning_versions"] = static_cast<double>(record.lag->sequences_spanning);
  (*metrics)["samples_stale"] = static_cast<double>(record.batch.samples_stale);
}

void AddRewards(const BatchStatistics& batch, std::map<std::string, double>* metrics) {
  if (batch.groups == 0) return;
  (*metrics)["reward_mean"] = batch.reward_mean;
  (*metrics)["reward_std"] = batch.reward_std;
  (*metrics)["zero_std_group_share"] = Share(batch.zero_std_groups, batch.groups);
  (*metrics)["groups_dropped"] = static_cast<double>(batch.groups_dropped);
  (*metrics)["truncated_share"] = Share(batch.truncated, batch.samples);
}

nlohmann::ordered_json ToJson(const std::map<std::string, double>& metrics) {
  nlohmann::ordered_json line;
  for (const auto& [name, value] : metrics) {
    // Counts are easier to read, and exact, without a fraction. Beyond 2^53, and for what is not
    // finite, there is no such count.
    if (std::abs(value) < 0x1p53 && std::trunc(value) == value) {
      line[name] = static_cast<int64_t>(value);
    } else {
      line[name] = value;
    }
  }
  return line;
}

// Of all updates of a batch; of one update, its own.
std::string GradientDigest(const std::vector<OptimizerStepReport>& updates) {
  if (updates.size() == 1) return updates.front().gradient_digest;
  Digester digester;
  for (const OptimizerStepReport& update : updates) digester.Update(update.gradient_digest);
  return digester.Finish().Hex();
}

double Seconds(absl::Time time) { return absl::ToDoubleSeconds(time - absl::UnixEpoch()); }

}  // namespace

int64_t StepRecord::tokens_trained() const {
  int64_t tokens = 0;
  for (const OptimizerStepReport& update : updates) tokens += update.tokens;
  return tokens;
}

int64_t StepRecord::updates_applied() const {
  return std::count_if(updates.begin(), updates.end(),
                       [](const OptimizerStepReport& update) { return update.applied; });
}

std::map<std::string, double> MetricsOf(const StepRecord& record) {
  const UpdateTotals totals = TotalsOf(record.updates);
  const double tokens = static_cast<double>(totals.tokens);
  const double seconds = absl::ToDoubleSeconds(record.total_time);
  std::map<std::string, double> metrics{
      {"step", static_cast<double>(record.step)},
      {"policy_version", static_cast<double>(record.policy_version)},
      {"samples", static_cast<double>(record.batch.samples)},
      {"length_mean", MeanLength(record.batch)},
      {"loss", totals.loss},
      {"entropy", totals.tokens == 0 ? 0 : totals.entropy / tokens},
      {"clip_fraction", Share(totals.clipped, totals.tokens)},
      {"dual_clip_fraction", Share(totals.clipped_dual, totals.tokens)},
      {"grad_norm", totals.gradient_norm},
      {"largest_scaled_gradient", totals.largest_scaled_gradient},
      {"learning_rate", totals.learning_rate},
      {"loss_scale", record.loss_scale},
      {"updates_applied", static_cast<double>(record.updates_applied())},
      {"skipped_steps", static_cast<double>(record.skipped_steps)},
      {"saturated_stores", static_cast<double>(record.saturated_stores)},
      {"tokens", tokens},
      {"tokens_per_second", seconds > 0 ? tokens / seconds : 0},
      {"time_total", seconds},
      {"time_wait", absl::ToDoubleSeconds(record.wait_time)},
      {"time_score", absl::ToDoubleSeconds(record.score_time)},
      {"time_rescore", absl::ToDoubleSeconds(record.rescore_time)},
      {"tokens_rescored", static_cast<double>(record.tokens_rescored)},
      {"time_forward_backward", absl::ToDoubleSeconds(totals.forward_backward_time)},
      {"time_optimizer", absl::ToDoubleSeconds(totals.optimizer_time)},
      {"time_publish", absl::ToDoubleSeconds(record.publish_time)},
  };
  if (totals.kl.tokens > 0) {
    metrics["reference_kl"] = totals.kl.estimate_sum / static_cast<double>(totals.kl.tokens);
    metrics["time_reference"] = absl::ToDoubleSeconds(record.reference_time);
  }
  AddRewards(record.batch, &metrics);
  AddMismatch(record.mismatch, &metrics);
  AddPhantomClips(record, &metrics);
  AddCorrection(record, &metrics);
  AddLag(record, &metrics);
  return metrics;
}

std::string MetricsLine(const StepRecord& record) {
  nlohmann::ordered_json line = ToJson(MetricsOf(record));
  line["gradient_digest"] = GradientDigest(record.updates);
  line["master_digest"] = record.master_digest;
  for (const OptimizerStepReport& update : record.updates) {
    if (!update.skipped) continue;
    line["non_finite_parameter"] = update.non_finite_parameter;
    line["overflow"] = update.overflow;
  }
  return line.dump();
}

std::string EvaluationLine(int64_t step, const EvaluationResult& evaluation) {
  std::map<std::string, double> line{{"step", static_cast<double>(step)},
                                     {"eval_accuracy", evaluation.accuracy},
                                     {"eval_greedy", evaluation.greedy},
                                     {"time_evaluate", absl::ToDoubleSeconds(evaluation.time)}};
  if (evaluation.gap) {
    line["eval_accuracy_learner"] = evaluation.gap->learner_accuracy;
    line["eval_deployment_gap"] = evaluation.gap->abs_log_prob_diff;
  }
  return ToJson(line).dump();
}

void Export(const RunStart& start, LearnerMetrics* metrics) {
  constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();
  metrics->step.Set(static_cast<double>(start.step));
  metrics->last_step_timestamp.Set(Seconds(absl::Now()));
  metrics->policy_version.Set(static_cast<double>(start.published_version));
  metrics->scheduled_lag.Set(static_cast<double>(start.lag));
  metrics->token_lag_mean.Set(kUnknown);
  metrics->token_lag_max.Set(kUnknown);
  metrics->mismatch_bound.Set(MismatchBound(start.profile));
  metrics->mismatch_kl.Set(kUnknown);
  metrics->mismatch_max.Set(kUnknown);
}

void Export(const StepRecord& record, LearnerMetrics* metrics) {
  const UpdateTotals totals = TotalsOf(record.updates);
  const auto duration = [metrics](const char* phase, absl::Duration time) {
    metrics->step_duration[phase].Observe(absl::ToDoubleSeconds(time));
  };
  duration("wait", record.wait_time);
  duration("score", record.score_time);
  duration("reference", record.reference_time);
  duration("rescore", record.rescore_time);
  duration("forward_backward", totals.forward_backward_time);
  duration("optimizer", totals.optimizer_time);
  duration("publish", record.publish_time);
  metrics->step.Set(static_cast<double>(record.step));
  metrics->last_step_timestamp.Set(Seconds(absl::Now()));
  metrics->tokens["trained"].Increment(static_cast<double>(totals.tokens));
  metrics->loss.Set(totals.loss);
  metrics->grad_norm.Set(totals.gradient_norm);
  metrics->learning_rate.Set(totals.learning_rate);
  metrics->entropy.Set(totals.tokens == 0 ? 0
                                          : totals.entropy / static_cast<double>(totals.tokens));
  metrics->clip_fraction.Set(Share(totals.clipped, totals.tokens));
  metrics->loss_scale.Set(record.loss_scale);
  metrics->skipped_steps.Increment(static_cast<double>(
      std::count_if(record.updates.begin(), record.updates.end(),
                    [](const OptimizerStepReport& update) { return update.skipped; })));
  metrics->saturated_stores["activations"].Increment(static_cast<double>(record.saturated_stores));
  // Nothing compared is not the same as no mismatch.
  if (record.mismatch.tokens_compared > 0) {
    metrics->mismatch_kl.Set(record.mismatch.k3);
    metrics->mismatch_max.Set(record.mismatch.abs_max);
  }
  if (record.lag) {
    metrics->token_lag_mean.Set(record.lag->mean);
    metrics->token_lag_max.Set(static_cast<double>(record.lag->max));
    metrics->samples_spanning.Increment(static_cast<double>(record.lag->sequences_spanning));
  }
  metrics->mismatch_tokens.Increment(static_cast<double>(record.mismatch.tokens_compared));
  for (const int64_t length : record.batch.lengths) {
    metrics->completion_length.Observe(static_cast<double>(length));
  }
  for (const auto& [outcome, count] : record.batch.reward_outcomes) {
    metrics->reward_outcomes[outcome].Increment(static_cast<double>(count));
  }
  if (record.batch.groups == 0) return;
  metrics->reward_mean.Set(record.batch.reward_mean);
  metrics->reward_std.Set(record.batch.reward_std);
  metrics->zero_std_groups.Set(Share(record.batch.zero_std_groups, record.batch.groups));
  metrics->completion_truncated.Set(Share(record.batch.truncated, record.batch.samples));
}

void Export(const EvaluationResult& evaluation, LearnerMetrics* metrics) {
  metrics->eval_accuracy["sampled"].Set(evaluation.accuracy);
  metrics->eval_accuracy["greedy"].Set(evaluation.greedy);
  metrics->step_duration["evaluate"].Observe(absl::ToDoubleSeconds(evaluation.time));
}

}  // namespace halfstep
