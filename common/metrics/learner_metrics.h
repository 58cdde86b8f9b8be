// SPDX-License-Identifier: Apache-2.0
// The learner's metrics as members; names.h says what each means.
#pragma once

#include "common/metrics/registry.h"

namespace halfstep {

// Refers to `registry`, which must outlive it. Thread-safe.
struct LearnerMetrics {
  explicit LearnerMetrics(Registry& registry);

  prometheus::Gauge& step;
  prometheus::Gauge& last_step_timestamp;
  Labelled<prometheus::Histogram> step_duration;  // by metric::kPhases
  Labelled<prometheus::Counter> tokens;           // by metric::kTokenKinds
  prometheus::Counter& samples;
  prometheus::Counter& samples_trained;
  Labelled<prometheus::Counter> samples_dropped;  // by metric::kDropReasons
  prometheus::Gauge& samples_buffered;
  prometheus::Counter& groups_reassigned;
  prometheus::Gauge& loss;
  prometheus::Gauge& grad_norm;
  prometheus::Gauge& learning_rate;
  prometheus::Gauge& entropy;
  prometheus::Gauge& mismatch_kl;
  prometheus::Gauge& mismatch_max;
  prometheus::Gauge& mismatch_bound;
  prometheus::Counter& mismatch_tokens;
  prometheus::Gauge& clip_fraction;
  prometheus::Gauge& policy_version;
  prometheus::Gauge& scheduled_lag;
  prometheus::Gauge& token_lag_mean;
  prometheus::Gauge& token_lag_max;
  prometheus::Counter& samples_spanning;
  prometheus::Gauge& loss_scale;
  prometheus::Counter& skipped_steps;
  Labelled<prometheus::Counter> saturated_stores;  // by metric::kStoreKinds
  Labelled<prometheus::Gauge> health_alarm;        // by metric::kHealthAlarms
  Labelled<prometheus::Gauge> rollouts_connected;  // by metric::kRolloutStates
  prometheus::Counter& checkpoint_failures;
  prometheus::Gauge& last_checkpoint_timestamp;
  Labelled<prometheus::Gauge> eval_accuracy;  // by metric::kDecodings
  prometheus::Gauge& reward_mean;
  prometheus::Gauge& reward_std;
  prometheus::Gauge& zero_std_groups;
  Labelled<prometheus::Counter> reward_outcomes;  // by metric::kRewardOutcomes
  prometheus::Gauge& completion_truncated;
  prometheus::Histogram& completion_length;
  Labelled<prometheus::Gauge> job_state;  // by metric::kJobStates
};

}  // namespace halfstep
