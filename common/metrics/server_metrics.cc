// SPDX-License-Identifier: Apache-2.0
// Which table entry each member is.
#include "common/metrics/server_metrics.h"
#include "common/base/build_info.h"
#include "common/metrics/learner_metrics.h"
#include "common/metrics/rollout_metrics.h"

namespace halfstep {
namespace {

std::vector<std::string> WithOther(std::vector<std::string> methods) {
  methods.emplace_back("other");
  return methods;
}

}  // namespace

RolloutMetrics::RolloutMetrics(Registry& registry)
    : requests_running(registry.Gauge(metric::kRequestsRunning)),
      requests_waiting(registry.Gauge(metric::kRequestsWaiting)),
      kv_cache_usage(registry.Gauge(metric::kKvCacheUsage)),
      prompt_tokens(registry.Counter(metric::kPromptTokens)),
      generation_tokens(registry.Counter(metric::kGenerationTokens)),
      requests(registry.Counters(metric::kRequests)),
      preemptions(registry.Counter(metric::kPreemptions)),
      time_to_first_token(registry.Histogram(metric::kTimeToFirstToken)),
      inter_token_latency(registry.Histogram(metric::kInterTokenLatency)),
      request_latency(registry.Histogram(metric::kRequestLatency)),
      weight_version(registry.Gauge(metric::kWeightVersion)),
      weight_update_timestamp(registry.Gauge(metric::kWeightUpdateTimestamp)),
      weight_update_duration(registry.Histogram(metric::kWeightUpdateDuration)),
      saturated_stores(registry.Counter(metric::kRolloutSaturatedStores)) {}

LearnerMetrics::LearnerMetrics(Registry& registry)
    : step(registry.Gauge(metric::kStep)),
      last_step_timestamp(registry.Gauge(metric::kLastStepTimestamp)),
      step_duration(registry.Histograms(metric::kStepDuration)),
      tokens(registry.Counters(metric::kTokens)),
      samples(registry.Counter(metric::kSamples)),
      samples_trained(registry.Counter(metric::kSamplesTrained)),
      samples_dropped(registry.Counters(metric::kSamplesDropped)),
      samples_buffered(registry.Gauge(metric::kSamplesBuffered)),
      groups_reassigned(registry.Counter(metric::kGroupsReassigned)),
      loss(registry.Gauge(metric::kLoss)),
      grad_norm(registry.Gauge(metric::kGradNorm)),
      learning_rate(registry.Gauge(metric::kLearningRate)),
      entropy(registry.Gauge(metric::kEntropy)),
      mismatch_kl(registry.Gauge(metric::kMismatchKl)),
      mismatch_max(registry.Gauge(metric::kMismatchMax)),
      mismatch_bound(registry.Gauge(metric::kMismatchBound)),
      mismatch_tokens(registry.Counter(metric::kMismatchTokens)),
      clip_fraction(registry.Gauge(metric::kClipFraction)),
      policy_version(registry.Gauge(metric::kPolicyVersion)),
      scheduled_lag(registry.Gauge(metric::kScheduledLag)),
      token_lag_mean(registry.Gauge(metric::kTokenLagMean)),
      token_lag_max(registry.Gauge(metric::kTokenLagMax)),
      samples_spanning(registry.Counter(metric::kSamplesSpanning)),
      loss_scale(registry.Gauge(metric::kLossScale)),
      skipped_steps(registry.Counter(metric::kSkippedSteps)),
      saturated_stores(registry.Counters(metric::kSaturatedStores)),
      health_alarm(registry.Gauges(metric::kHealthAlarm)),
      rollouts_connected(registry.Gauges(metric::kRolloutsConnected)),
      checkpoint_failures(registry.Counter(metric::kCheckpointFailures)),
      last_checkpoint_timestamp(registry.Gauge(metric::kLastCheckpointTimestamp)),
      eval_accuracy(registry.Gauges(metric::kEvalAccuracy)),
      reward_mean(registry.Gauge(metric::kRewardMean)),
      reward_std(registry.Gauge(metric::kRewardStd)),
      zero_std_groups(registry.Gauge(metric::kZeroStdGroups)),
      reward_outcomes(registry.Counters(metric::kOutcomes)),
      completion_truncated(registry.Gauge(metric::kTruncated)),
      completion_length(registry.Histogram(metric::kCompletionLength)),
      job_state(registry.Gauges(metric::kJobState)) {}

ServerMetrics::ServerMetrics(Registry& registry, std::vector<std::string> methods)
    : calls_started(registry.Counters(metric::kCallsStarted, WithOther(methods))),
      call_duration(registry.Histograms(metric::kCallDuration, WithOther(methods))) {
  registry.Gauges(metric::kBuildInfo, {BuildVersion()})[BuildVersion()].Set(1);
}

}  // namespace halfstep
