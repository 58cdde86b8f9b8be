// SPDX-License-Identifier: Apache-2.0
#include "learner_server/training/range_check.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/model/batch_indices.h"
#include "common/model/transformer.h"
#include "kernels/buffer.h"
#include "kernels/check.h"
#include "kernels/host_copy.h"
#include "kernels/host_mirror.h"
#include "kernels/ops/linear.h"
#include "kernels/ops/log_prob.h"
#include "kernels/workspace.h"
#include "learner_server/training/gradient_range.h"

namespace halfstep {
namespace {

constexpr double kMaxScale = 0x1p24;  // of the default loss scaler
constexpr int64_t kLogitRows = 64;    // at a time
// The scale that fits is found from gradients at the scale before; those at 1 may be too small to
// be exact, those at a scale that nearly fits are not.
constexpr int kRaises = 2;

double SmallestNormal(DType dtype) { return dtype == DType::kFloat16 ? 0x1p-14 : 0x1p-126; }

template <class T>
RangeStatistics Measure(ConstTensor values) {
  const T* data = values.as<T>();
  const int64_t width = values.dim(values.rank() - 1);
  const double smallest = SmallestNormal(values.dtype());
  RangeStatistics out;
  out.elements = values.elements();
  for (int64_t begin = 0; begin < values.elements(); begin += width) {
    int64_t zero = 0;
    for (int64_t i = begin; i < begin + width; ++i) {
      const double magnitude = std::abs(static_cast<double>(ToFloat(data[i])));
      if (!std::isfinite(magnitude)) {
        ++out.non_finite;
        continue;
      }
      out.largest = std::max(out.largest, magnitude);
      out.saturated += magnitude >= kFloat16Max;
      out.subnormal += magnitude > 0 && magnitude < smallest;
      zero += magnitude == 0;
    }
    if (zero < width) out.zero += zero;
  }
  return out;
}

// Files every tensor under its place.
class RangeObserver final : public TensorObserver {
 public:
  explicit RangeObserver(RangeReport* report) : report_(report) {}
  void Observe(StoredPass pass, StoredKind kind, int64_t layer, ConstTensor values) override {
    auto& places = pass == StoredPass::kForward ? report_->activations : report_->gradients;
    places[{layer, kind}].Add(values);
  }

 private:
  RangeReport* const report_;
};

// One pass over all sequences at one loss scale.
class RangePass {
 public:
  RangePass(const ExecContext& ctx, const ModelWeights& weights, RangeReport* report)
      : ctx_(ctx),
        weights_(weights),
        report_(report),
        observer_(report),
        transformer_(weights.config(), report->fp32, &observer_),
        gradients_(weights.parameters().shared_layout(), ctx.device) {}

  void Run(std::span<const MicroBatch> batches, double scale) {
    report_->activations.clear();
    report_->logits = {};
    report_->gradients.clear();
    report_->weight_gradients.clear();
    gradients_.SetZero(ctx_);
    bool finite = true;
    for (const MicroBatch& micro : batches) finite = RunBatch(micro.batch, scale) && finite;
    if (!finite) {
      report_->gradients.clear();
      return;
    }
    const ParameterBuffer& gradient = gradients_.Finish(ctx_);
    const std::vector<ParameterSpec>& specs = gradient.layout().specs();
    for (size_t i = 0; i < specs.size(); ++i) {
      report_->weight_gradients[specs[i].name].Add(gradient.view(static_cast<int>(i)));
    }
  }

 private:
  // False, without a backward, where the log-probs are not finite.
  bool RunBatch(const PackedBatch& batch, double scale) {
    const auto rows = static_cast<int64_t>(batch.logit_rows.size());
    const int64_t width = weights_.config().hidden_size;
    const DType dtype = report_->fp32.hidden_dtype(weights_.dtype());
    OwnedTensor hidden("hidden", dtype, {rows, width}, ctx_.device);
    OwnedTensor dhidden("dhidden", dtype, {rows, width}, ctx_.device);
    OwnedTensor lse("lse", DType::kFloat32, {rows}, ctx_.device);
    HostMirror<float> log_probs("log_probs", rows, ctx_.device);
    HostMirror<float> dlog_probs("dlog_probs", rows, ctx_.device);
    Workspace::Scope scratch(ctx_.workspace);
    const ConstTensor targets = IndicesOf(ctx_, batch.targets, &scratch);
    transformer_.ForwardTrain(ctx_, weights_, batch, Recompute::kNone, &activations_,
                              hidden.view());
    MeasureLogits(hidden.view());
    LmHeadLogProb(ctx_, hidden.view(), weights_.head(), targets, 1, log_probs.device(0, rows), {},
                  lse);
    log_probs.ToHost(ctx_, 0, rows);
    for (int64_t row = 0; row < rows; ++row) {
      if (!std::isfinite(log_probs.host()[row])) return false;
    }
    // L = -sum(log p) / tokens.
    std::fill_n(dlog_probs.host(), rows, static_cast<float>(-scale / report_->tokens));
    dlog_probs.ToDevice(ctx_, 0, rows);
    LmHeadLogProbBackward(ctx_, dlog_probs.device(0, rows), hidden.view(), weights_.head(), targets,
                          1, lse, dhidden.view(), gradients_.head());
    transformer_.Backward(ctx_, weights_, batch, activations_, dhidden.view(), &gradients_);
    return true;
  }

  void MeasureLogits(ConstTensor hidden) {
    const int64_t vocab = weights_.config().vocab_size;
    OwnedTensor logits("logits", DType::kFloat32, {kLogitRows, vocab}, ctx_.device);
    for (int64_t begin = 0; begin < hidden.dim(0); begin += kLogitRows) {
      const int64_t count = std::min(kLogitRows, hidden.dim(0) - begin);
      const Tensor part = logits.view().Rows(0, count);
      Linear(ctx_, hidden.Rows(begin, count), weights_.head(), part);
      report_->logits.Add(part);
    }
  }

  const ExecContext& ctx_;
  const ModelWeights& weights_;
  RangeReport* const report_;
  RangeObserver observer_;
  Transformer transformer_;
  ModelGradients gradients_;
  TrainActivations activations_;
};

using Places = std::map<RangeReport::Place, RangeStatistics>;
using Entry = Places::value_type;

// The first place, in the order of the forward, that `bad` is true of.
template <class Predicate>
const Entry* FirstWhere(const Places& places, Predicate&& bad) {
  for (const Entry& entry : places) {
    if (bad(entry)) return &entry;
  }
  return nullptr;
}

bool NotFinite(const Entry& entry) { return entry.second.non_finite > 0; }

// The first place beyond FP16 of those that do not stay FP32 with `fp32`.
const Entry* FirstBeyond(const RangeReport& report, const Fp32Parts& fp32) {
  return FirstWhere(report.activations, [&](const Entry& entry) {
    return entry.second.saturated > 0 && !StaysFp32(entry.first.second, fp32);
  });
}

// Of those places that are stored in the dtype.
const Entry* LargestOf(const RangeReport& report, const Places& places) {
  const Entry* largest = nullptr;
  for (const Entry& entry : places) {
    if (StaysFp32(entry.first.second, report.fp32)) continue;
    if (largest == nullptr || entry.second.largest > largest->second.largest) largest = &entry;
  }
  return largest;
}

// The scale to try after `scale`; 0 when the backward overflows whatever it is.
double NextScale(const RangeReport& report, double scale) {
  double next = scale / 2;
  if (FirstWhere(report.gradients, NotFinite) == nullptr) {
    const Entry* largest = LargestOf(report, report.gradients);
    const bool nothing = largest == nullptr || largest->second.largest == 0;
    next = nothing ? kMaxScale : scale * FittingFactor(largest->second.largest);
  }
  return next < 1 ? 0 : std::min(next, kMaxScale);
}

std::string Share(int64_t part, int64_t whole) {
  return absl::StrFormat("%.2g %%", 100.0 * static_cast<double>(part) / static_cast<double>(whole));
}

// Why a model whose forward is finite cannot be trained in FP16; empty if it can.
std::string Obstacle(const RangeReport& report, int64_t layers) {
  if (const Entry* over = FirstBeyond(report, report.fp32)) {
    const std::string largest = report.dtype == DType::kFloat16
                                    ? ""
                                    : absl::StrFormat(", the largest %.4g", over->second.largest);
    return absl::StrCat(PlaceName(over->first, layers), " goes beyond 65504 (",
                        Share(over->second.saturated, over->second.elements), " of its values",
                        largest, ")");
  }
  if (report.loss_scale > 0) return "";
  const Entry* steepest = FirstWhere(report.gradients, NotFinite);
  if (steepest == nullptr) steepest = LargestOf(report, report.gradients);
  return absl::StrCat("at loss scale 1 the gradient of ", PlaceName(steepest->first, layers),
                      " comes too close to 65504");
}

// What a pass that is safe leaves to spare.
std::string Spare(const RangeReport& report, int64_t layers) {
  const Entry* largest = LargestOf(report, report.activations);
  return absl::StrFormat(
      "the largest %sactivation is %.4g (%s), %.3g times below 65504, and a loss scale of 2^%d "
      "fits",
      report.fp32.residual ? "other " : "", largest->second.largest,
      PlaceName(largest->first, layers), kFloat16Max / largest->second.largest,
      std::lround(std::log2(report.loss_scale)));
}

void Judge(int64_t layers, RangeReport* report) {
  if (const Entry* bad = FirstWhere(report->activations, NotFinite)) {
    report->verdict =
        absl::StrCat("not safe: the forward is NaN or Inf from ", PlaceName(bad->first, layers),
                     " on (", bad->second.non_finite, " values)");
    return;
  }
  if (report->logits.non_finite > 0) {
    report->verdict =
        absl::StrCat("not safe: ", report->logits.non_finite, " logits are NaN or Inf");
    return;
  }
  const char* const how = report->fp32.residual ? "in FP16 with residual: fp32" : "in FP16";
  const std::string obstacle = Obstacle(*report, layers);
  report->safe_in_fp16 = obstacle.empty();
  report->verdict =
      report->safe_in_fp16
          ? absl::StrCat("safe ", how, " on these prompts: ", Spare(*report, layers))
          : absl::StrCat("not safe ", how, ": ", obstacle, "; train it in bf16 or fp32");
}

// Whether an FP32 stream could make a model safe that is not: nothing else is beyond FP16 or
// non-finite in the forward.
bool ResidualMayHelp(const RangeReport& report) {
  Fp32Parts with = report.fp32;
  with.residual = true;
  return !report.safe_in_fp16 && !report.fp32.residual &&
         FirstWhere(report.activations, NotFinite) == nullptr && report.logits.non_finite == 0 &&
         FirstBeyond(report, with) == nullptr;
}

// Finds the scale that fits; the last pass is the one with it.
void FindScale(std::span<const MicroBatch> batches, RangePass* pass, RangeReport* report) {
  double scale = 1;
  for (int round = 0;; ++round) {
    pass->Run(batches, scale);
    if (report->gradients.empty()) return;  // the forward is not finite, whatever the scale
    report->loss_scale = NextScale(*report, scale);
    if (report->loss_scale > scale && round >= kRaises) report->loss_scale = scale;
    if (report->loss_scale == 0 || report->loss_scale == scale) return;
    scale = report->loss_scale;
  }
}

RangeReport MeasureAndJudge(const ExecContext& ctx, const ModelWeights& weights,
                            std::span<const TrainSequence> sequences,
                            const RangeCheckOptions& options) {
  RangeReport report;
  report.dtype = weights.dtype();
  report.fp32 = options.fp32;
  report.sequences = static_cast<int64_t>(sequences.size());
  for (const TrainSequence& sequence : sequences) report.tokens += sequence.response_tokens();
  std::vector<int64_t> all(sequences.size());
  std::iota(all.begin(), all.end(), 0);
  RangePass pass(ctx, weights, &report);
  FindScale(PackMicroBatches(sequences, all, options.micro_batch_tokens), &pass, &report);
  Judge(weights.config().layers, &report);
  return report;
}

}  // namespace

void RangeStatistics::Add(ConstTensor values) {
  if (values.elements() == 0) return;
  const HostCopy host(values);
  switch (values.dtype()) {
    case DType::kFloat16:
      return Add(Measure<Float16>(host.view()));
    case DType::kBFloat16:
      return Add(Measure<BFloat16>(host.view()));
    default:
      return Add(Measure<float>(host.view()));
  }
}

void RangeStatistics::Add(const RangeStatistics& other) {
  largest = std::max(largest, other.largest);
  elements += other.elements;
  saturated += other.saturated;
  subnormal += other.subnormal;
  zero += other.zero;
  non_finite += other.non_finite;
}

RangeReport CheckRange(const ExecContext& ctx, const ModelWeights& weights,
                       std::span<const TrainSequence> sequences, const RangeCheckOptions& options) {
  RangeReport report = MeasureAndJudge(ctx, weights, sequences, options);
  if (!ResidualMayHelp(report)) return report;
  RangeCheckOptions with = options;
  with.fp32.residual = true;
  const RangeReport second = MeasureAndJudge(ctx, weights, sequences, with);
  if (!second.safe_in_fp16) return report;
  report.safe_with_fp32_residual = true;
  const int64_t layers = weights.config().layers;
  report.verdict = absl::StrCat("safe in FP16 with residual: fp32 on these prompts, not without: ",
                                Obstacle(report, layers), "; with it ", Spare(second, layers));
  return report;
}

bool StaysFp32(StoredKind kind, const Fp32Parts& fp32) {
  switch (kind) {
    case StoredKind::kEmbedding:
    case StoredKind::kAttentionOutput:
    case StoredKind::kAttentionResidual:
    case StoredKind::kMlpOutput:
    case StoredKind::kMlpResidual:
      return fp32.residual;
    case StoredKind::kFinalNorm:
      return fp32.head;
    default:
      return false;
  }
}

const char* Name(StoredKind kind) {
  static constexpr const char* kNames[] = {
      "embedding",        "attention_norm",     "query",    "key",     "value",      "attention",
      "attention_output", "attention_residual", "mlp_norm", "gate_up", "activation", "mlp_output",
      "mlp_residual",     "final_norm"};
  return kNames[static_cast<size_t>(kind)];
}

std::string PlaceName(const RangeReport::Place& place, int64_t layers) {
  if (place.first == layers) return Name(place.second);
  return absl::StrCat("layer ", place.first, ", ", Name(place.second));
}

}  // namespace halfstep
