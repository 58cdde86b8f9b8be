// SPDX-License-Identifier: Apache-2.0
// Every metric: name, type, label values, buckets and help. docs/metrics.md is generated from this
// table (metrics_page.h). Units are base units; a metric exists from the start of its server, at
// zero, with every value of its label, so that a missing series always means a missing server.
#pragma once

#include <array>
#include <span>

namespace halfstep {

enum class MetricType { kCounter, kGauge, kHistogram };

enum class MetricHome { kRollout, kLearner, kBoth };

struct MetricInfo {
  const char* name;
  MetricType type;
  const char* help;
  const char* label = "";  // name of its label; "" when it has none
  std::span<const char* const> values =
      {};                                // of the label; empty when they are known only at run time
  std::span<const double> buckets = {};  // upper bounds, for histograms
};

namespace metric {

// ---- label values

inline constexpr const char* kFinishReasons[] = {"stop", "length", "cancelled"};
// The phases of a step of metrics.jsonl, and what comes between steps.
inline constexpr const char* kPhases[] = {
    "wait",      "score",   "reference",  "rescore", "forward_backward",
    "optimizer", "publish", "checkpoint", "evaluate"};
inline constexpr const char* kTokenKinds[] = {"generated", "trained"};
inline constexpr const char* kDropReasons[] = {"malformed",
                                               "stale_job",
                                               "stale_incarnation",
                                               "unknown_group",
                                               "index_out_of_range",
                                               "token_out_of_range",
                                               "bad_log_prob",
                                               "bad_length",
                                               "wrong_version",
                                               "duplicate",
                                               "late",
                                               "not_assigned",
                                               "cancelled",
                                               "unscored",
                                               "zero_variance",
                                               "stale",
                                               "group_lost",
                                               "abandoned",
                                               "other"};
inline constexpr const char* kStoreKinds[] = {"activations"};
inline constexpr const char* kRolloutStates[] = {"joining", "loading", "ready", "serving",
                                                 "suspect"};
inline constexpr const char* kDecodings[] = {"sampled", "greedy"};
inline constexpr const char* kRewardOutcomes[] = {"score", "unscorable", "timeout", "error"};
inline constexpr const char* kConstantReward = "constant_reward";
inline constexpr const char* kEntropyCollapse = "entropy_collapse";
inline constexpr const char* kMismatchJump = "mismatch_jump";
inline constexpr const char* kGradientNormJump = "gradient_norm_jump";
inline constexpr const char* kUnscorableShare = "unscorable_share";
inline constexpr const char* kHealthAlarms[] = {kConstantReward, kEntropyCollapse, kMismatchJump,
                                                kGradientNormJump, kUnscorableShare};
inline constexpr const char* kJobStates[] = {"queued",  "starting",   "running",
                                             "pausing", "paused",     "succeeded",
                                             "failed",  "cancelling", "cancelled"};

// ---- buckets

inline constexpr double kLatencyBuckets[] = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25,
                                             0.5,   1,      2,     5,    10,    30,   60,  120};
inline constexpr double kTokenLatencyBuckets[] = {0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05,
                                                  0.1,    0.25,  0.5,    1,     2,    5};
inline constexpr double kDurationBuckets[] = {0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1,   2,
                                              5,     10,   20,   30,  60,   120, 300, 600};
inline constexpr double kCountBuckets[] = {1,   2,    5,    10,   20,    50,    100,  200,
                                           500, 1000, 2000, 5000, 10000, 20000, 50000};

// ---- rollout server

inline constexpr MetricInfo kRequestsRunning = {
    "halfstep_rollout_num_requests_running", MetricType::kGauge, "Sequences in the running batch."};
inline constexpr MetricInfo kRequestsWaiting = {
    "halfstep_rollout_num_requests_waiting", MetricType::kGauge, "Sequences waiting for a place."};
inline constexpr MetricInfo kKvCacheUsage = {"halfstep_rollout_kv_cache_usage_ratio",
                                             MetricType::kGauge,
                                             "Share of KV blocks in use, 0 to 1."};
inline constexpr MetricInfo kPromptTokens = {"halfstep_rollout_prompt_tokens_total",
                                             MetricType::kCounter,
                                             "Prompt tokens run through the model."};
inline constexpr MetricInfo kGenerationTokens = {"halfstep_rollout_generation_tokens_total",
                                                 MetricType::kCounter, "Response tokens sampled."};
inline constexpr MetricInfo kRequests = {"halfstep_rollout_requests_total", MetricType::kCounter,
                                         "Finished sequences by what ended them.", "finish_reason",
                                         kFinishReasons};
inline constexpr MetricInfo kPreemptions = {
    "halfstep_rollout_num_preemptions_total", MetricType::kCounter,
    "Sequences thrown out of the KV cache for want of blocks, to be recomputed."};
inline constexpr MetricInfo kTimeToFirstToken = {"halfstep_rollout_time_to_first_token_seconds",
                                                 MetricType::kHistogram,
                                                 "From admission of a sequence to its first token.",
                                                 "",
                                                 {},
                                                 kLatencyBuckets};
inline constexpr MetricInfo kInterTokenLatency = {"halfstep_rollout_inter_token_latency_seconds",
                                                  MetricType::kHistogram,
                                                  "Between two tokens of one sequence.",
                                                  "",
                                                  {},
                                                  kTokenLatencyBuckets};
inline constexpr MetricInfo kRequestLatency = {"halfstep_rollout_e2e_request_latency_seconds",
                                               MetricType::kHistogram,
                                               "From admission of a sequence to its last token.",
                                               "",
                                               {},
                                               kLatencyBuckets};
inline constexpr MetricInfo kWeightVersion = {"halfstep_rollout_weight_version", MetricType::kGauge,
                                              "Policy version being served."};
inline constexpr MetricInfo kWeightUpdateTimestamp = {
    "halfstep_rollout_weight_update_timestamp_seconds", MetricType::kGauge,
    "When the served weights were swapped in, in Unix time."};
inline constexpr MetricInfo kWeightUpdateDuration = {
    "halfstep_rollout_weight_update_duration_seconds",
    MetricType::kHistogram,
    "From the order to prepare weights to the end of their verification.",
    "",
    {},
    kDurationBuckets};
inline constexpr MetricInfo kRolloutSaturatedStores = {
    "halfstep_rollout_saturated_stores_total", MetricType::kCounter,
    "FP16 stores of activations that met the largest finite value."};

// ---- learner

inline constexpr MetricInfo kStep = {"halfstep_learner_step", MetricType::kGauge,
                                     "Steps finished by the running job."};
inline constexpr MetricInfo kLastStepTimestamp = {
    "halfstep_learner_last_step_timestamp_seconds", MetricType::kGauge,
    "When the last step ended (or the job started), in Unix time."};
inline constexpr MetricInfo kStepDuration = {
    "halfstep_learner_step_duration_seconds",
    MetricType::kHistogram,
    "Time of a step by phase; checkpoint and evaluate lie between steps.",
    "phase",
    kPhases,
    kDurationBuckets};
inline constexpr MetricInfo kTokens = {
    "halfstep_learner_tokens_total", MetricType::kCounter,
    "Response tokens of training samples received (generated) and "
    "run forward and backward (trained).",
    "kind", kTokenKinds};
inline constexpr MetricInfo kSamples = {
    "halfstep_learner_samples_total", MetricType::kCounter,
    "Training samples that arrived, those of the running job's checkpoint included: trained, "
    "dropped and buffered ones add up to it."};
inline constexpr MetricInfo kSamplesTrained = {"halfstep_learner_samples_trained_total",
                                               MetricType::kCounter, "Samples trained on."};
inline constexpr MetricInfo kSamplesDropped = {
    "halfstep_learner_samples_dropped_total", MetricType::kCounter,
    "Samples not trained on, by reason.", "reason", kDropReasons};
inline constexpr MetricInfo kSamplesBuffered = {"halfstep_learner_samples_buffered",
                                                MetricType::kGauge,
                                                "Admitted samples that wait for their batch."};
inline constexpr MetricInfo kGroupsReassigned = {
    "halfstep_learner_groups_reassigned_total", MetricType::kCounter,
    "Groups given to another rollout because the first died, left or was late."};
inline constexpr MetricInfo kLoss = {"halfstep_learner_loss", MetricType::kGauge,
                                     "Loss of the last step."};
inline constexpr MetricInfo kGradNorm = {
    "halfstep_learner_grad_norm", MetricType::kGauge,
    "Global norm of the last unscaled gradient, before clipping."};
inline constexpr MetricInfo kLearningRate = {"halfstep_learner_learning_rate", MetricType::kGauge,
                                             "Learning rate of the last optimizer step."};
inline constexpr MetricInfo kEntropy = {"halfstep_learner_entropy_nats", MetricType::kGauge,
                                        "Mean entropy of the policy per response token."};
inline constexpr MetricInfo kMismatchKl = {"halfstep_learner_mismatch_kl_nats", MetricType::kGauge,
                                           "Rollout against learner at the generating version: "
                                           "mean of exp(d) - 1 - d per token, in the last step "
                                           "that compared any. NaN until the job has compared."};
inline constexpr MetricInfo kMismatchMax = {
    "halfstep_learner_mismatch_logprob_abs_max", MetricType::kGauge,
    "Largest absolute difference of rollout and learner log-probs in the last step that compared "
    "any. NaN until the job has compared."};
inline constexpr MetricInfo kMismatchBound = {
    "halfstep_learner_mismatch_logprob_abs_bound", MetricType::kGauge,
    "What that difference may be in the running job: 0 in the bitwise profile."};
inline constexpr MetricInfo kMismatchTokens = {
    "halfstep_learner_mismatch_tokens_compared_total", MetricType::kCounter,
    "Tokens whose two log-probs were compared at the generating version."};
inline constexpr MetricInfo kClipFraction = {"halfstep_learner_clip_fraction_ratio",
                                             MetricType::kGauge,
                                             "Share of tokens whose ratio was clipped, 0 to 1."};
inline constexpr MetricInfo kPolicyVersion = {"halfstep_learner_policy_version", MetricType::kGauge,
                                              "Policy version that the running job last published "
                                              "to rollouts; a supervised job publishes none."};
inline constexpr MetricInfo kScheduledLag = {"halfstep_learner_scheduled_lag_versions",
                                             MetricType::kGauge,
                                             "How far behind the published version the running "
                                             "job's batches are generated (batch.lag), or at "
                                             "most may be (batch.max_lag)."};
inline constexpr MetricInfo kTokenLagMean = {"halfstep_learner_token_lag_mean_versions",
                                             MetricType::kGauge,
                                             "How far behind the policy in force the trained "
                                             "tokens of the last batch were generated, on the "
                                             "mean. NaN unless the job sets batch.max_lag."};
inline constexpr MetricInfo kTokenLagMax = {"halfstep_learner_token_lag_max_versions",
                                            MetricType::kGauge,
                                            "The same of the oldest token: at most batch.max_lag."};
inline constexpr MetricInfo kSamplesSpanning = {
    "halfstep_learner_samples_spanning_versions_total", MetricType::kCounter,
    "Trained samples whose tokens are of more than one policy version (batch.max_lag)."};
inline constexpr MetricInfo kLossScale = {"halfstep_learner_loss_scale", MetricType::kGauge,
                                          "Loss scale in force."};
inline constexpr MetricInfo kSkippedSteps = {
    "halfstep_learner_skipped_steps_total", MetricType::kCounter,
    "Optimizer steps skipped because a scaled gradient was not finite."};
inline constexpr MetricInfo kSaturatedStores = {
    "halfstep_learner_saturated_stores_total", MetricType::kCounter,
    "FP16 stores that met the largest finite value, by what was stored.", "kind", kStoreKinds};
inline constexpr MetricInfo kHealthAlarm = {
    "halfstep_learner_health_alarm", MetricType::kGauge,
    "1 while the alarm of the running job is raised, else 0.", "alarm", kHealthAlarms};
inline constexpr MetricInfo kRolloutsConnected = {
    "halfstep_learner_rollouts_connected", MetricType::kGauge, "Attached rollout servers by state.",
    "state", kRolloutStates};
inline constexpr MetricInfo kCheckpointFailures = {
    "halfstep_learner_checkpoint_failures_total", MetricType::kCounter,
    "Checkpoints that could not be written; the one before stays in force."};
inline constexpr MetricInfo kLastCheckpointTimestamp = {
    "halfstep_learner_last_checkpoint_timestamp_seconds", MetricType::kGauge,
    "When the last checkpoint was complete, in Unix time."};
inline constexpr MetricInfo kEvalAccuracy = {
    "halfstep_learner_eval_accuracy_ratio", MetricType::kGauge,
    "Mean reward over held-out prompts in the last evaluation.", "decoding", kDecodings};
inline constexpr MetricInfo kRewardMean = {"halfstep_reward_mean", MetricType::kGauge,
                                           "Mean reward of the last batch."};
inline constexpr MetricInfo kRewardStd = {"halfstep_reward_std", MetricType::kGauge,
                                          "Standard deviation of the rewards of the last batch."};
inline constexpr MetricInfo kZeroStdGroups = {
    "halfstep_reward_zero_std_group_ratio", MetricType::kGauge,
    "Share of groups whose rewards are all equal, so that they teach nothing, 0 to 1."};
inline constexpr MetricInfo kOutcomes = {"halfstep_reward_outcomes_total", MetricType::kCounter,
                                         "Responses scored, by outcome.", "outcome",
                                         kRewardOutcomes};
inline constexpr MetricInfo kTruncated = {
    "halfstep_completion_truncated_ratio", MetricType::kGauge,
    "Share of responses of the last batch that met the length limit."};
inline constexpr MetricInfo kCompletionLength = {"halfstep_completion_length_tokens",
                                                 MetricType::kHistogram,
                                                 "Tokens per training response.",
                                                 "",
                                                 {},
                                                 kCountBuckets};
inline constexpr MetricInfo kJobState = {"halfstep_job_state", MetricType::kGauge,
                                         "1 for the state of the running job, or of the last that "
                                         "waits (paused or queued), or of the newest; else 0.",
                                         "state", kJobStates};

// ---- both servers

inline constexpr MetricInfo kCallsStarted = {"halfstep_grpc_server_call_started_total",
                                             MetricType::kCounter, "gRPC calls begun, by method.",
                                             "method"};
inline constexpr MetricInfo kCallDuration = {
    "halfstep_grpc_server_call_duration_seconds",
    MetricType::kHistogram,
    "gRPC calls ended, by method; a stream lasts as long as its peer stays.",
    "method",
    {},
    kLatencyBuckets};
inline constexpr MetricInfo kBuildInfo = {"halfstep_build_info", MetricType::kGauge,
                                          "Always 1; the label says which build is running.",
                                          "version"};

// ---- the table

struct Entry {
  MetricHome home;
  const MetricInfo* info;
};

inline constexpr auto kAll = std::to_array<Entry>({
    {MetricHome::kRollout, &kRequestsRunning},
    {MetricHome::kRollout, &kRequestsWaiting},
    {MetricHome::kRollout, &kKvCacheUsage},
    {MetricHome::kRollout, &kPromptTokens},
    {MetricHome::kRollout, &kGenerationTokens},
    {MetricHome::kRollout, &kRequests},
    {MetricHome::kRollout, &kPreemptions},
    {MetricHome::kRollout, &kTimeToFirstToken},
    {MetricHome::kRollout, &kInterTokenLatency},
    {MetricHome::kRollout, &kRequestLatency},
    {MetricHome::kRollout, &kWeightVersion},
    {MetricHome::kRollout, &kWeightUpdateTimestamp},
    {MetricHome::kRollout, &kWeightUpdateDuration},
    {MetricHome::kRollout, &kRolloutSaturatedStores},
    {MetricHome::kLearner, &kStep},
    {MetricHome::kLearner, &kLastStepTimestamp},
    {MetricHome::kLearner, &kStepDuration},
    {MetricHome::kLearner, &kTokens},
    {MetricHome::kLearner, &kSamples},
    {MetricHome::kLearner, &kSamplesTrained},
    {MetricHome::kLearner, &kSamplesDropped},
    {MetricHome::kLearner, &kSamplesBuffered},
    {MetricHome::kLearner, &kGroupsReassigned},
    {MetricHome::kLearner, &kLoss},
    {MetricHome::kLearner, &kGradNorm},
    {MetricHome::kLearner, &kLearningRate},
    {MetricHome::kLearner, &kEntropy},
    {MetricHome::kLearner, &kMismatchKl},
    {MetricHome::kLearner, &kMismatchMax},
    {MetricHome::kLearner, &kMismatchBound},
    {MetricHome::kLearner, &kMismatchTokens},
    {MetricHome::kLearner, &kClipFraction},
    {MetricHome::kLearner, &kPolicyVersion},
    {MetricHome::kLearner, &kScheduledLag},
    {MetricHome::kLearner, &kTokenLagMean},
    {MetricHome::kLearner, &kTokenLagMax},
    {MetricHome::kLearner, &kSamplesSpanning},
    {MetricHome::kLearner, &kLossScale},
    {MetricHome::kLearner, &kSkippedSteps},
    {MetricHome::kLearner, &kSaturatedStores},
    {MetricHome::kLearner, &kHealthAlarm},
    {MetricHome::kLearner, &kRolloutsConnected},
    {MetricHome::kLearner, &kCheckpointFailures},
    {MetricHome::kLearner, &kLastCheckpointTimestamp},
    {MetricHome::kLearner, &kEvalAccuracy},
    {MetricHome::kLearner, &kRewardMean},
    {MetricHome::kLearner, &kRewardStd},
    {MetricHome::kLearner, &kZeroStdGroups},
    {MetricHome::kLearner, &kOutcomes},
    {MetricHome::kLearner, &kTruncated},
    {MetricHome::kLearner, &kCompletionLength},
    {MetricHome::kLearner, &kJobState},
    {MetricHome::kBoth, &kCallsStarted},
    {MetricHome::kBoth, &kCallDuration},
    {MetricHome::kBoth, &kBuildInfo},
});

}  // namespace metric
}  // namespace halfstep
