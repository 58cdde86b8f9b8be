// SPDX-License-Identifier: Apache-2.0
// TrainStep: one optimizer step, from sequences with advantages to changed weights.
//
// Micro-batches run forward, loss and scaled backward; then one pass looks for non-finite
// gradients. If there are any, the loss scaler skips the step and no byte of weights, moments or
// step count changes, and one more backward finds where they began; otherwise gradients are
// unscaled by the exact reciprocal, clipped by their global norm and given to AdamW.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/model/transformer.h"
#include "kernels/host_mirror.h"
#include "learner_server/algorithm/mismatch.h"
#include "learner_server/algorithm/presets.h"
#include "learner_server/data/batcher.h"
#include "learner_server/training/gradient_range.h"
#include "learner_server/training/lr_schedule.h"
#include "learner_server/training/train_state.h"

namespace halfstep {

struct TrainStepOptions {
  Algorithm algorithm;
  int64_t constant_length = 1;  // of sequence_mean_token_sum_norm
  float temperature = 1;        // of the policy
  int64_t micro_batch_tokens = 16384;
  Recompute recompute = Recompute::kNone;
  Fp32Parts fp32;
  LrSchedule schedule;
  float beta1 = 0.9f;
  float beta2 = 0.95f;
  float epsilon = 1e-15f;
  float weight_decay = 0;
  float clip_norm = 1;  // 0: off
  // The first step of a run finds its loss scale: the largest power of two that keeps every stored
  // gradient below the limit with headroom (gradient_range.h), by further passes from the scaler's
  // initial one. A first step without any gradient leaves it as it is.
  bool calibrate_scale = false;
};

// What one optimizer step did.
struct OptimizerStepReport {
  bool applied = false;       // false: skipped, or there was nothing to train on
  bool skipped = false;       // for a non-finite gradient
  int64_t sequences = 0;      // that entered the loss
  int64_t tokens = 0;         // their response tokens
  PolicyLossStatistics loss;  // of the objective alone
  KlStatistics kl;            // to the reference policy, where the algorithm has one
  double entropy_loss = 0;    // what the entropy bonus adds to the loss
  CorrectionMetrics correction;
  double entropy_sum = 0;    // nats, over `tokens`
  double gradient_norm = 0;  // unscaled, before clipping; 0 when skipped
  double learning_rate = 0;
  float loss_scale = 1;  // that this step was scaled by
  float largest_scaled_gradient = 0;
  std::string non_finite_parameter;  // the first one, when skipped
  // Where that began: the first gradient of an activation, in the order of the backward, that its
  // dtype could not hold (GradientRange::first_non_finite); empty where only sums overflowed.
  std::string overflow;
  std::string gradient_digest;  // XXH3-128 of the scaled FP32 gradient, in hexadecimal
  absl::Duration forward_backward_time;
  absl::Duration optimizer_time;
};

// Owns gradients and activations, reused from step to step. Not thread-safe.
class TrainStep {
 public:
  // `ctx` and `state` outlive it.
  TrainStep(const ExecContext& ctx, const TrainStepOptions& options, TrainState* state);

  // Trains on `sequences`, all of which enter the loss and its denominators; they have the
  // log-probs that RatioDenominator and CorrectionNumerator of the algorithm name, and those of the
  // reference policy where it has one. `mismatch`, if not null, gets the log-probs of sequences
  // that have behaviour log-probs, from current_from on. Fails with reason NON_FINITE_LOSS when the
  // forward itself is not finite, and with the scaler's reasons; the weights are then as before.
  // CANCELLED, with nothing of the state changed, once `stop`, which is asked before every
  // micro-batch, says so; empty: never.
  absl::StatusOr<OptimizerStepReport> Run(std::span<const TrainSequence> sequences,
                                          MismatchStatistics* mismatch,
                                          const std::function<bool()>& stop = nullptr);

 private:
  struct Scores;
  enum class Pass { kForward, kForwardBackward };

  absl::Status RunMicroBatches(std::span<const TrainSequence> sequences,
                               std::span<const MicroBatch> micro_batches, Pass pass,
                               MismatchStatistics* mismatch, const std::function<bool()>& stop,
                               OptimizerStepReport* report);
  absl::Status RunMicroBatch(std::span<const TrainSequence> sequences, const MicroBatch& micro,
                             Pass pass, MismatchStatistics* mismatch, OptimizerStepReport* report);
  // Adds the KL to `dlog_probs`, and the entropy bonus to the weights of its rows.
  void AddRegularizers(const TrainSequence& sequence, const PackedSequence& packed,
                       const Scores& scores, OptimizerStepReport* report) const;
  // The correction's factor of each token of a sequence; empty where all are 1. Those by the
  // current policy are counted here, the others before the step began.
  std::span<const double> Correction(const TrainSequence& sequence, std::span<const float> current);
  void MeasureCorrection(std::span<const TrainSequence> sequences);
  absl::Status CalibrateScale(std::span<const TrainSequence> sequences,
                              std::span<const MicroBatch> micro_batches,
                              const std::function<bool()>& stop);
  // Runs the backward again at the scale that overflowed, up to the first micro-batch that does.
  absl::StatusOr<std::string> FindOverflow(std::span<const TrainSequence> sequences,
                                           std::span<const MicroBatch> micro_batches);
  absl::Status CheckFinite(const MicroBatch& micro, std::span<const float> log_probs) const;
  absl::Status UseGradients(std::span<const TrainSequence> sequences,
                            std::span<const MicroBatch> micro_batches, OptimizerStepReport* report);
  absl::Status ApplyGradients(const ParameterBuffer& gradient, double squared_norm,
                              OptimizerStepReport* report);
  void RunAdamW(const ParameterBuffer& gradient, float clip_factor, double learning_rate);
  std::string FirstNonFinite(const ParameterBuffer& gradient) const;
  // Views of `rows` rows; the memory grows to the largest seen.
  Scores TakeScores(int64_t rows);
  // Between the device and the host: what the model wrote, and what the loss did.
  void FetchScores(int64_t rows);
  void SendScoreGradients(int64_t rows);

  const ExecContext ctx_;
  const TrainStepOptions options_;
  TrainState* const state_;
  GradientRange gradient_range_;
  Transformer transformer_;
  ModelGradients gradients_;
  TrainActivations activations_;
  Buffer hidden_;                 // of a micro-batch and its gradient
  HostMirror<float> row_values_;  // of TakeScores
  LossDenominators denominators_;
  // Of the running step.
  CorrectionStatistics correction_;
  double correction_scale_ = 1;
  std::vector<double> factors_;  // of one sequence
};

// Fails with reason NON_FINITE_WEIGHTS, naming the parameter, unless every master weight is finite
// and stays finite in `dtype`: what may be published.
absl::Status CheckPublishable(const ExecContext& ctx, const ParameterBuffer& master, DType dtype);

}  // namespace halfstep
