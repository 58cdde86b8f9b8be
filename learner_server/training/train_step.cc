// SPDX-License-Identifier: Apache-2.0
#include "learner_server/training/train_step.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/base/digest.h"
#include "common/base/error_reason.h"
#include "common/base/status_macros.h"
#include "common/model/batch_indices.h"
#include "kernels/check.h"
#include "kernels/host_copy.h"
#include "kernels/ops/log_prob.h"
#include "kernels/ops/optimizer.h"
#include "kernels/stream.h"
#include "kernels/workspace.h"

namespace halfstep {
namespace {

// Of the search for a first loss scale: how far it goes down after an overflow at once, and how
// often it goes up.
constexpr double kCalibrationBackoff = 256;
constexpr int kCalibrationRaises = 3;

// FP32 values that pass between model and loss for each scored row, and how many of them are the
// model's.
constexpr int64_t kValuesPerRow = 5;
constexpr int64_t kModelValuesPerRow = 3;

// The rows of one packed sequence.
template <class T>
std::span<T> RowsOf(const PackedSequence& packed, T* values) {
  return {values + packed.first_row, static_cast<size_t>(packed.rows)};
}

// No step was taken yet.
bool IsUnused(const LossScaler& scaler) {
  return scaler.state().applied_steps == 0 && scaler.state().skipped_steps == 0;
}

// Passes that are made to look at their gradients: what they saturate is not counted again.
class WatchedPass {
 public:
  WatchedPass(GradientRange* range, const ExecContext& ctx)
      : range_(range), ctx_(ctx), saturated_(ctx.saturated_stores) {
    AddSaturatedStores(ctx_);
    if (saturated_ != nullptr) counted_ = saturated_->load();
    range_->Watch();
  }
  ~WatchedPass() {
    range_->Ignore();
    AddSaturatedStores(ctx_);
    if (saturated_ != nullptr) saturated_->store(counted_);
  }
  WatchedPass(const WatchedPass&) = delete;
  WatchedPass& operator=(const WatchedPass&) = delete;

 private:
  GradientRange* const range_;
  const ExecContext& ctx_;
  std::atomic<int64_t>* const saturated_;
  int64_t counted_ = 0;
};

bool FiniteIn(DType dtype, float value) {
  switch (dtype) {
    case DType::kFloat16:
      return std::isfinite(ToFloat(ToFloat16(value)));
    case DType::kBFloat16:
      return std::isfinite(ToFloat(ToBFloat16(value)));
    default:
      return std::isfinite(value);
  }
}

}  // namespace

// Per scored row of a micro-batch: what passes between model and loss.
struct TrainStep::Scores {
  // FP32 [rows] where the model is, and the same on the host, where the loss is.
  struct Values {
    Tensor device;
    float* host = nullptr;
  };
  Tensor hidden;   // [rows, hidden]
  Tensor dhidden;  // [rows, hidden]
  Values log_probs;
  Values entropy;
  Values lse;
  Values dlog_probs;       // scaled
  Values entropy_weights;  // scaled; of the entropy bonus
};

TrainStep::TrainStep(const ExecContext& ctx, const TrainStepOptions& options, TrainState* state)
    : ctx_(ctx),
      options_(options),
      state_(state),
      gradient_range_(options.fp32.hidden_dtype(state->weights.dtype()),
                      state->weights.config().layers),
      transformer_(state->weights.config(), options.fp32, &gradient_range_),
      gradients_(state->master.shared_layout(), ctx.device) {}

absl::StatusOr<OptimizerStepReport> TrainStep::Run(std::span<const TrainSequence> sequences,
                                                   MismatchStatistics* mismatch,
                                                   const std::function<bool()>& stop) {
  OptimizerStepReport report;
  report.loss_scale = state_->scaler.scale();
  if (sequences.empty()) return report;
  denominators_ = {.constant_length = options_.constant_length};
  // Sequences without advantage have no gradient in most algorithms, so their backward would only
  // add exact zeros; they are packed apart and run forward only.
  const bool all_train = TrainsOnZeroAdvantage(options_.algorithm);
  std::vector<int64_t> with_gradient, without_gradient;
  for (size_t i = 0; i < sequences.size(); ++i) {
    ++denominators_.sequences;
    denominators_.tokens += sequences[i].response_tokens();
    (all_train || sequences[i].advantage != 0 ? with_gradient : without_gradient)
        .push_back(static_cast<int64_t>(i));
  }
  report.sequences = denominators_.sequences;
  report.tokens = denominators_.tokens;

  const absl::Time start = absl::Now();
  const std::vector<MicroBatch> backward =
      PackMicroBatches(sequences, with_gradient, options_.micro_batch_tokens);
  // A step that does not come about leaves the scale of before.
  absl::Cleanup restore = [this, before = state_->scaler] { state_->scaler = before; };
  if (options_.calibrate_scale && IsUnused(state_->scaler) && !backward.empty()) {
    HALFSTEP_RETURN_IF_ERROR(CalibrateScale(sequences, backward, stop));
    report.loss_scale = state_->scaler.scale();
  }
  MeasureCorrection(sequences);
  gradients_.SetZero(ctx_);
  Pass pass{.sequences = sequences, .mismatch = mismatch, .report = &report};
  HALFSTEP_RETURN_IF_ERROR(RunMicroBatches(pass, backward, stop));
  pass.direction = Direction::kForward;
  HALFSTEP_RETURN_IF_ERROR(RunMicroBatches(
      pass, PackMicroBatches(sequences, without_gradient, options_.micro_batch_tokens), stop));
  report.correction = correction_.Summarize();
  const absl::Time gradients_done = absl::Now();
  report.forward_backward_time = gradients_done - start;
  std::move(restore).Cancel();
  HALFSTEP_RETURN_IF_ERROR(UseGradients(sequences, backward, &report));
  report.optimizer_time = absl::Now() - gradients_done;
  return report;
}

absl::Status TrainStep::RunMicroBatches(const Pass& pass, std::span<const MicroBatch> micro_batches,
                                        const std::function<bool()>& stop) {
  for (const MicroBatch& micro : micro_batches) {
    if (stop != nullptr && stop()) {
      return absl::CancelledError("asked to stop between two micro-batches");
    }
    HALFSTEP_RETURN_IF_ERROR(RunMicroBatch(pass, micro));
  }
  return absl::OkStatus();
}

absl::Status TrainStep::RunMicroBatch(const Pass& pass, const MicroBatch& micro) {
  OptimizerStepReport* const report = pass.report;
  const int64_t rows = static_cast<int64_t>(micro.batch.logit_rows.size());
  const Scores scores = TakeScores(rows);
  const ModelWeights& weights = state_->weights;
  transformer_.ForwardTrain(ctx_, weights, micro.batch, options_.recompute, &activations_,
                            scores.hidden);
  Workspace::Scope scratch(ctx_.workspace);
  const ConstTensor targets = IndicesOf(ctx_, micro.batch.targets, &scratch);
  LmHeadLogProb(ctx_, scores.hidden, weights.head(), targets, options_.temperature,
                scores.log_probs.device, scores.entropy.device, scores.lse.device);
  FetchScores(rows);
  const float* log_probs = scores.log_probs.host;
  HALFSTEP_RETURN_IF_ERROR(CheckFinite(micro, {log_probs, static_cast<size_t>(rows)}));

  float* dlog_probs = scores.dlog_probs.host;
  for (const PackedSequence& packed : micro.sequences) {
    const TrainSequence& sequence = pass.sequences[packed.sequence];
    const std::span<const float> current = RowsOf(packed, log_probs);
    const auto from = static_cast<size_t>(sequence.current_from);
    if (pass.mismatch != nullptr && from < sequence.behaviour.size()) {
      pass.mismatch->Add(current.subspan(from), std::span(sequence.behaviour).subspan(from));
    }
    const double weight = TokenWeight(options_.algorithm.aggregation, denominators_, packed.rows);
    const bool over_old = RatioDenominator(options_.algorithm) == PolicySource::kOld;
    const PolicyLossTerm term{.log_probs = current,
                              .old_log_probs = over_old ? sequence.old : sequence.behaviour,
                              .advantage = sequence.advantage,
                              .token_weight = weight,
                              .correction = Correction(sequence, current)};
    PolicyLoss(options_.algorithm.loss, term, RowsOf(packed, dlog_probs), &report->loss);
    AddRegularizers(sequence, packed, scores, report);
  }
  const float* entropy = scores.entropy.host;
  for (int64_t row = 0; row < rows; ++row) {
    report->entropy_sum += entropy[row];
    dlog_probs[row] *= state_->scaler.scale();
  }
  if (pass.direction == Direction::kForward) return absl::OkStatus();
  EntropyTerm entropy_term;
  if (options_.algorithm.regularizers.entropy_coefficient > 0) {
    entropy_term = {.weights = scores.entropy_weights.device, .entropy = scores.entropy.device};
  }
  SendScoreGradients(rows);
  gradient_range_.AddLogits(ctx_, {.hidden = scores.hidden,
                                   .head = weights.head(),
                                   .targets = targets,
                                   .temperature = options_.temperature,
                                   .lse = scores.lse.device,
                                   .dlog_probs = scores.dlog_probs.device,
                                   .entropy = entropy_term});
  LmHeadLogProbBackward(ctx_, scores.dlog_probs.device, scores.hidden, weights.head(), targets,
                        options_.temperature, scores.lse.device, scores.dhidden, gradients_.head(),
                        entropy_term);
  transformer_.Backward(ctx_, weights, micro.batch, activations_, scores.dhidden, &gradients_);
  return absl::OkStatus();
}

void TrainStep::AddRegularizers(const TrainSequence& sequence, const PackedSequence& packed,
                                const Scores& scores, OptimizerStepReport* report) const {
  const RegularizerOptions& regularizers = options_.algorithm.regularizers;
  const double weight = TokenWeight(options_.algorithm.aggregation, denominators_, packed.rows);
  if (regularizers.kl.coefficient > 0) {
    KlOptions kl = regularizers.kl;
    if (kl.place == KlPlace::kReward) kl.coefficient = 0;  // the score has it; it is measured here
    AddKlLoss(kl,
              {.log_probs = std::span<const float>(RowsOf(packed, scores.log_probs.host)),
               .reference_log_probs = sequence.reference,
               .token_weight = weight},
              RowsOf(packed, scores.dlog_probs.host), &report->kl);
  }
  const double coefficient = regularizers.entropy_coefficient;
  if (coefficient == 0) return;
  const std::span<const float> entropies = RowsOf(packed, scores.entropy.host);
  report->entropy_loss += EntropyBonus(coefficient, entropies, weight);
  std::ranges::fill(RowsOf(packed, scores.entropy_weights.host),
                    static_cast<float>(coefficient * weight) * state_->scaler.scale());
}

void TrainStep::MeasureCorrection(std::span<const TrainSequence> sequences) {
  correction_ = CorrectionStatistics();
  correction_scale_ = 1;
  if (CorrectionNumerator(options_.algorithm) != PolicySource::kOld) return;
  const CorrectionOptions& correction = options_.algorithm.correction;
  for (const TrainSequence& sequence : sequences) {
    factors_.resize(sequence.behaviour.size());
    CorrectionWeights(correction, sequence.old, sequence.behaviour, factors_);
    correction_.Add(factors_);
  }
  correction_scale_ = correction_.Scale(correction);
}

std::span<const double> TrainStep::Correction(const TrainSequence& sequence,
                                              std::span<const float> current) {
  const PolicySource numerator = CorrectionNumerator(options_.algorithm);
  if (numerator == PolicySource::kNone) return {};
  const bool by_current = numerator == PolicySource::kCurrent;
  factors_.resize(current.size());
  CorrectionWeights(options_.algorithm.correction, by_current ? current : sequence.old,
                    sequence.behaviour, factors_);
  if (by_current) correction_.Add(factors_);
  for (double& factor : factors_) factor *= correction_scale_;
  return factors_;
}

absl::Status TrainStep::CheckFinite(const MicroBatch& micro,
                                    std::span<const float> log_probs) const {
  for (const PackedSequence& packed : micro.sequences) {
    for (int64_t row = 0; row < packed.rows; ++row) {
      const float value = log_probs[packed.first_row + row];
      if (std::isfinite(value)) continue;
      return Error(absl::StatusCode::kFailedPrecondition, "NON_FINITE_LOSS",
                   absl::StrCat("the log-prob of response token ", row, " of sequence ",
                                packed.sequence, " is ", value, " after ", state_->optimizer_steps,
                                " optimizer steps: the forward pass overflows; loss scaling "
                                "cannot help, train in bf16 or fp32"));
    }
  }
  return absl::OkStatus();
}

absl::Status TrainStep::CalibrateScale(std::span<const TrainSequence> sequences,
                                       std::span<const MicroBatch> micro_batches,
                                       const std::function<bool()>& stop) {
  const WatchedPass watched(&gradient_range_, ctx_);
  for (int raises = 0;;) {
    const double scale = state_->scaler.scale();
    OptimizerStepReport discarded;
    MeasureCorrection(sequences);
    gradient_range_.Watch();
    HALFSTEP_RETURN_IF_ERROR(
        RunMicroBatches({.sequences = sequences, .report = &discarded}, micro_batches, stop));
    double next = scale / kCalibrationBackoff;
    if (gradient_range_.first_non_finite().empty()) {
      if (gradient_range_.largest() == 0) return absl::OkStatus();
      next = scale * FittingFactor(gradient_range_.largest());
      // What was too small to be stored exactly at a low scale may be larger at a high one.
      if (next > scale && ++raises > kCalibrationRaises) return absl::OkStatus();
    }
    state_->scaler.Calibrate(next);
    if (state_->scaler.scale() == scale) return absl::OkStatus();
  }
}

absl::StatusOr<std::string> TrainStep::FindOverflow(std::span<const TrainSequence> sequences,
                                                    std::span<const MicroBatch> micro_batches) {
  const WatchedPass watched(&gradient_range_, ctx_);
  OptimizerStepReport discarded;
  for (const MicroBatch& micro : micro_batches) {
    HALFSTEP_RETURN_IF_ERROR(RunMicroBatch({.sequences = sequences, .report = &discarded}, micro));
    if (!gradient_range_.first_non_finite().empty()) break;
  }
  return gradient_range_.first_non_finite();
}

absl::Status TrainStep::UseGradients(std::span<const TrainSequence> sequences,
                                     std::span<const MicroBatch> micro_batches,
                                     OptimizerStepReport* report) {
  const ParameterBuffer& gradient = gradients_.Finish(ctx_);
  const ConstTensor flat = gradient.flat();
  const GradientStatistics statistics = ComputeGradientStatistics(ctx_, flat);  // waits for it
  report->gradient_digest = DigestOf(HostCopy(flat).view().data(), flat.bytes()).Hex();
  report->largest_scaled_gradient = statistics.largest;
  if (statistics.non_finite == 0) return ApplyGradients(gradient, statistics.squared_norm, report);
  report->skipped = true;
  report->non_finite_parameter = FirstNonFinite(gradient);
  HALFSTEP_ASSIGN_OR_RETURN(report->overflow, FindOverflow(sequences, micro_batches));
  return state_->scaler.Update(/*found_inf=*/true);
}

absl::Status TrainStep::ApplyGradients(const ParameterBuffer& gradient, double squared_norm,
                                       OptimizerStepReport* report) {
  const double norm = std::sqrt(squared_norm) * state_->scaler.inverse_scale();
  const double clip = options_.clip_norm;
  report->gradient_norm = norm;
  report->learning_rate = options_.schedule.At(state_->optimizer_steps);
  RunAdamW(gradient, clip > 0 && norm > clip ? static_cast<float>(clip / norm) : 1.0f,
           report->learning_rate);
  state_->weights.Pack(ctx_);
  ++state_->optimizer_steps;
  report->applied = true;
  return state_->scaler.Update(/*found_inf=*/false);
}

void TrainStep::RunAdamW(const ParameterBuffer& gradient, float clip_factor, double learning_rate) {
  const ParameterLayout& layout = state_->layout();
  const std::vector<ParameterSpec>& specs = layout.specs();
  AdamWOptions adamw{.learning_rate = static_cast<float>(learning_rate),
                     .beta1 = options_.beta1,
                     .beta2 = options_.beta2,
                     .epsilon = options_.epsilon,
                     .step = state_->optimizer_steps + 1,
                     .inverse_scale = state_->scaler.inverse_scale(),
                     .clip_factor = clip_factor};
  const auto decay = [&](const ParameterSpec& spec) {
    return spec.weight_decay ? options_.weight_decay : 0.0f;
  };
  // Neighbours with equal decay go in one call; the padding between them is zero and stays so.
  for (size_t first = 0; first < specs.size();) {
    size_t next = first + 1;
    while (next < specs.size() && decay(specs[next]) == decay(specs[first])) ++next;
    const int64_t begin = specs[first].offset;
    const int64_t end = next < specs.size() ? specs[next].offset : layout.buffer_elements();
    adamw.weight_decay = decay(specs[first]);
    AdamW(ctx_,
          {.gradient = gradient.flat().Rows(begin, end - begin),
           .master = state_->master.flat().Rows(begin, end - begin),
           .first_moment = state_->first_moment.flat().Rows(begin, end - begin),
           .second_moment = state_->second_moment.flat().Rows(begin, end - begin),
           .weights = state_->weights.parameters().flat().Rows(begin, end - begin)},
          adamw);
    first = next;
  }
}

std::string TrainStep::FirstNonFinite(const ParameterBuffer& gradient) const {
  const std::vector<ParameterSpec>& specs = state_->layout().specs();
  for (size_t i = 0; i < specs.size(); ++i) {
    const ConstTensor view = gradient.view(static_cast<int>(i));
    if (ComputeGradientStatistics(ctx_, view.Reshape({view.elements()})).non_finite > 0) {
      return specs[i].name;
    }
  }
  return "";
}

// Of the values per row: those that the model writes come first, those that the loss writes last.
TrainStep::Scores TrainStep::TakeScores(int64_t rows) {
  const int64_t width = transformer_.config().hidden_size;
  const DType dtype = options_.fp32.hidden_dtype(state_->weights.dtype());
  const size_t hidden_bytes = static_cast<size_t>(rows * width) * SizeOf(dtype);
  if (hidden_.bytes() < 2 * hidden_bytes) {
    hidden_ = Buffer("train_scores.hidden", 2 * hidden_bytes, ctx_.device);
  }
  if (row_values_.capacity() < kValuesPerRow * rows) {
    row_values_ = HostMirror<float>("train_scores.rows", kValuesPerRow * rows, ctx_.device);
  }
  const auto values = [&](int64_t index) {
    return Scores::Values{row_values_.device(index * rows, rows),
                          row_values_.host() + index * rows};
  };
  return {.hidden = hidden_.View(dtype, {rows, width}),
          .dhidden = hidden_.View(dtype, {rows, width}, hidden_bytes),
          .log_probs = values(0),
          .entropy = values(1),
          .lse = values(2),
          .dlog_probs = values(kModelValuesPerRow),
          .entropy_weights = values(kModelValuesPerRow + 1)};
}

void TrainStep::FetchScores(int64_t rows) {
  row_values_.ToHost(ctx_, 0, kModelValuesPerRow * rows);
}

void TrainStep::SendScoreGradients(int64_t rows) {
  row_values_.ToDevice(ctx_, kModelValuesPerRow * rows,
                       (kValuesPerRow - kModelValuesPerRow) * rows);
}

absl::Status CheckPublishable(const ExecContext& ctx, const ParameterBuffer& master, DType dtype) {
  const std::vector<ParameterSpec>& specs = master.layout().specs();
  const GradientStatistics all = ComputeGradientStatistics(ctx, master.flat());
  if (all.non_finite == 0 && FiniteIn(dtype, all.largest)) return absl::OkStatus();
  for (size_t i = 0; i < specs.size(); ++i) {
    const ConstTensor view = master.view(static_cast<int>(i));
    const GradientStatistics one = ComputeGradientStatistics(ctx, view.Reshape({view.elements()}));
    if (one.non_finite == 0 && FiniteIn(dtype, one.largest)) continue;
    return Error(absl::StatusCode::kFailedPrecondition, "NON_FINITE_WEIGHTS",
                 absl::StrCat("weights are not published: ", specs[i].name, " has ", one.non_finite,
                              " non-finite values, largest finite magnitude ", one.largest,
                              ", which ", Name(dtype), " cannot hold"));
  }
  return absl::OkStatus();
}

}  // namespace halfstep
