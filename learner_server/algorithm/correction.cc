// SPDX-License-Identifier: Apache-2.0
#include "learner_server/algorithm/correction.h"

#include <algorithm>
#include <cmath>

#include "kernels/check.h"

namespace halfstep {
namespace {

// d of each token of one response.
class LogRatios {
 public:
  LogRatios(std::span<const float> learner, std::span<const float> behaviour)
      : learner_(learner), behaviour_(behaviour) {}

  size_t size() const { return learner_.size(); }
  double operator[](size_t t) const { return static_cast<double>(learner_[t]) - behaviour_[t]; }

  template <class Function>
  double Sum(const Function& function) const {
    double sum = 0;
    for (size_t t = 0; t < size(); ++t) sum += function((*this)[t]);
    return sum;
  }
  template <class Function>
  double Mean(const Function& function) const {
    return Sum(function) / static_cast<double>(size());
  }

 private:
  std::span<const float> learner_;
  std::span<const float> behaviour_;
};

double TokenWeight(const CorrectionOptions& options, double d) {
  const double ratio = std::exp(ClampLogRatio(d));
  switch (options.kind) {
    case CorrectionKind::kTokenTis:
      return std::min(ratio, options.cap);
    case CorrectionKind::kIcePop:
      return options.low <= ratio && ratio <= options.high ? ratio : 0;
    default:
      return ratio;
  }
}

double SequenceRatio(const CorrectionOptions& options, const LogRatios& d) {
  const double ratio = std::exp(ClampLogRatio(d.Sum([](double token) { return token; })));
  switch (options.kind) {
    case CorrectionKind::kSequenceTis:
      return std::min(ratio, options.cap);
    case CorrectionKind::kSequenceMis:
      return ratio <= options.cap ? ratio : 0;
    default:
      return ratio;
  }
}

bool KeepsByGeometricMean(const CorrectionOptions& options, const LogRatios& d) {
  const double mean = d.Mean(ClampLogRatio);
  return std::log(options.low) <= mean && mean <= std::log(options.high);
}

bool KeepsByK3(const CorrectionOptions& options, const LogRatios& d) {
  return d.Mean([](double token) {
    const double clamped = ClampLogRatio(token);
    return std::expm1(clamped) - clamped;
  }) <= options.k3_limit;
}

bool KeepsByWorstToken(const CorrectionOptions& options, const LogRatios& d) {
  const double limit = std::log(options.min_ratio);
  return d.Sum([&](double token) { return token < limit ? 1.0 : 0.0; }) == 0;
}

double SequenceWeight(const CorrectionOptions& options, const LogRatios& d) {
  switch (options.kind) {
    case CorrectionKind::kNone:
      return 1;
    case CorrectionKind::kGeometricMask:
      return KeepsByGeometricMean(options, d) ? 1 : 0;
    case CorrectionKind::kK3Mask:
      return KeepsByK3(options, d) ? 1 : 0;
    case CorrectionKind::kVeto:
      return KeepsByWorstToken(options, d) ? 1 : 0;
    default:
      return SequenceRatio(options, d);
  }
}

}  // namespace

const char* Name(CorrectionKind kind) {
  switch (kind) {
    case CorrectionKind::kNone:
      return "none";
    case CorrectionKind::kTokenIs:
      return "token_is";
    case CorrectionKind::kTokenTis:
      return "token_tis";
    case CorrectionKind::kSequenceIs:
      return "sequence_is";
    case CorrectionKind::kSequenceTis:
      return "sequence_tis";
    case CorrectionKind::kSequenceMis:
      return "sequence_mis";
    case CorrectionKind::kIcePop:
      return "icepop";
    case CorrectionKind::kGeometricMask:
      return "geometric_mask";
    case CorrectionKind::kK3Mask:
      return "k3_mask";
    case CorrectionKind::kVeto:
      return "veto";
  }
  return "?";
}

bool IsSequenceLevel(CorrectionKind kind) {
  return kind != CorrectionKind::kTokenIs && kind != CorrectionKind::kTokenTis &&
         kind != CorrectionKind::kIcePop;
}

CorrectionOptions DefaultCorrection(CorrectionKind kind) {
  CorrectionOptions options{.kind = kind};
  if (kind == CorrectionKind::kSequenceTis || kind == CorrectionKind::kSequenceMis) {
    options.cap = 3;
  } else if (kind == CorrectionKind::kGeometricMask) {
    options.low = 0.999;
    options.high = 1.001;
  }
  return options;
}

void CorrectionStatistics::Add(std::span<const double> weights) {
  if (weights.empty()) return;
  double sum = 0;
  for (const double weight : weights) {
    sum += weight;
    squares_ += weight * weight;
    masked_ += weight == 0;
    max_ = std::max(max_, weight);
  }
  sum_ += sum;
  sequence_sum_ += sum / static_cast<double>(weights.size());
  tokens_ += static_cast<int64_t>(weights.size());
  ++sequences_;
}

CorrectionMetrics CorrectionStatistics::Summarize() const {
  if (tokens_ == 0) return {};
  const double tokens = static_cast<double>(tokens_);
  return {.mean = sum_ / tokens,
          .max = max_,
          .effective_sample_size = squares_ == 0 ? 0 : sum_ * sum_ / (tokens * squares_),
          .masked_share = static_cast<double>(masked_) / tokens};
}

double CorrectionStatistics::Scale(const CorrectionOptions& options) const {
  if (!options.normalize || sum_ == 0) return 1;
  return IsSequenceLevel(options.kind) ? static_cast<double>(sequences_) / sequence_sum_
                                       : static_cast<double>(tokens_) / sum_;
}

void CorrectionWeights(const CorrectionOptions& options, std::span<const float> learner,
                       std::span<const float> behaviour, std::span<double> weights) {
  HALFSTEP_CHECK_EQ(learner.size(), behaviour.size());
  HALFSTEP_CHECK_EQ(learner.size(), weights.size());
  const LogRatios d(learner, behaviour);
  if (IsSequenceLevel(options.kind)) {
    std::fill(weights.begin(), weights.end(), SequenceWeight(options, d));
    return;
  }
  for (size_t t = 0; t < d.size(); ++t) weights[t] = TokenWeight(options, d[t]);
}

}  // namespace halfstep
