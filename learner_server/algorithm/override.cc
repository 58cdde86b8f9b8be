// SPDX-License-Identifier: Apache-2.0
#include "learner_server/algorithm/override.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/nearest.h"

namespace halfstep {
namespace {

constexpr double kLargestLength = 1 << 24;
constexpr size_t kShownBytes = 80;

constexpr AdvantageKind kAdvantages[] = {AdvantageKind::kGroupMean,
                                         AdvantageKind::kGroupMeanStd,
                                         AdvantageKind::kLeaveOneOut,
                                         AdvantageKind::kBatchWhiten,
                                         AdvantageKind::kGroupMeanBatchWhiten,
                                         AdvantageKind::kGreedyBaseline};
constexpr Objective kObjectives[] = {
    Objective::kPolicyGradient, Objective::kPpoClip, Objective::kGspo,   Objective::kCispo,
    Objective::kGmpo,           Objective::kSapo,    Objective::kDppoTv, Objective::kDro};
constexpr CorrectionKind kCorrections[] = {
    CorrectionKind::kNone,       CorrectionKind::kTokenIs,       CorrectionKind::kTokenTis,
    CorrectionKind::kSequenceIs, CorrectionKind::kSequenceTis,   CorrectionKind::kSequenceMis,
    CorrectionKind::kIcePop,     CorrectionKind::kGeometricMask, CorrectionKind::kK3Mask,
    CorrectionKind::kVeto};
constexpr Aggregation kAggregations[] = {
    Aggregation::kTokenMean, Aggregation::kSequenceMeanTokenMean,
    Aggregation::kSequenceMeanTokenSum, Aggregation::kSequenceMeanTokenSumNorm};
constexpr OldLogProbs kOldLogProbs[] = {OldLogProbs::kBehaviour, OldLogProbs::kRecompute,
                                        OldLogProbs::kDecoupled};
constexpr ZeroVarianceGroups kZeroVariance[] = {
    ZeroVarianceGroups::kKeep, ZeroVarianceGroups::kDrop, ZeroVarianceGroups::kResample};
constexpr KlEstimator kKlEstimators[] = {KlEstimator::kK1, KlEstimator::kK2, KlEstimator::kK3};
constexpr KlPlace kKlPlaces[] = {KlPlace::kLoss, KlPlace::kReward};

bool HasClip(const Algorithm& algorithm) {
  switch (algorithm.loss.objective) {
    case Objective::kPpoClip:
    case Objective::kGspo:
    case Objective::kCispo:
    case Objective::kGmpo:
      return true;
    default:
      return false;
  }
}

bool HasCap(const Algorithm& algorithm) {
  const CorrectionKind kind = algorithm.correction.kind;
  return kind == CorrectionKind::kTokenTis || kind == CorrectionKind::kSequenceTis ||
         kind == CorrectionKind::kSequenceMis;
}

bool HasBounds(const Algorithm& algorithm) {
  return algorithm.correction.kind == CorrectionKind::kIcePop ||
         algorithm.correction.kind == CorrectionKind::kGeometricMask;
}

template <Objective objective>
bool Is(const Algorithm& algorithm) {
  return algorithm.loss.objective == objective;
}

template <CorrectionKind kind>
bool Corrects(const Algorithm& algorithm) {
  return algorithm.correction.kind == kind;
}

bool HasKl(const Algorithm& algorithm) { return algorithm.regularizers.kl.coefficient != 0; }

int64_t Whole(double value) { return static_cast<int64_t>(value); }

struct Parameter {
  const char* name;
  const char* reader;  // what must be chosen for it to be read
  bool (*is_read)(const Algorithm&);
  void (*set)(double, Algorithm*);
  double largest_whole = 0;  // above 0: a whole number from 0 on
};

constexpr bool (*kAlways)(const Algorithm&) = [](const Algorithm&) { return true; };

constexpr Parameter kParameters[] = {
    {"dual_clip", "objective ppo_clip", Is<Objective::kPpoClip>,
     [](double value, Algorithm* a) { a->loss.dual_clip = value; }},
    {"tau_positive", "objective sapo", Is<Objective::kSapo>,
     [](double value, Algorithm* a) { a->loss.tau_positive = value; }},
    {"tau_negative", "objective sapo", Is<Objective::kSapo>,
     [](double value, Algorithm* a) { a->loss.tau_negative = value; }},
    {"delta", "objective dppo_tv", Is<Objective::kDppoTv>,
     [](double value, Algorithm* a) { a->loss.delta = value; }},
    {"beta", "objective dro", Is<Objective::kDro>,
     [](double value, Algorithm* a) { a->loss.beta = value; }},
    {"correction_cap", "correction token_tis, sequence_tis or sequence_mis", HasCap,
     [](double value, Algorithm* a) { a->correction.cap = value; }},
    {"correction_low", "correction icepop or geometric_mask", HasBounds,
     [](double value, Algorithm* a) { a->correction.low = value; }},
    {"correction_high", "correction icepop or geometric_mask", HasBounds,
     [](double value, Algorithm* a) { a->correction.high = value; }},
    {"correction_k3_limit", "correction k3_mask", Corrects<CorrectionKind::kK3Mask>,
     [](double value, Algorithm* a) { a->correction.k3_limit = value; }},
    {"correction_min_ratio", "correction veto", Corrects<CorrectionKind::kVeto>,
     [](double value, Algorithm* a) { a->correction.min_ratio = value; }},
    {"correction_normalize", "a correction",
     [](const Algorithm& a) { return a.correction.kind != CorrectionKind::kNone; },
     [](double value, Algorithm* a) { a->correction.normalize = value != 0; }, 1},
    {"kl", "", kAlways, [](double value, Algorithm* a) { a->regularizers.kl.coefficient = value; }},
    {"entropy", "", kAlways,
     [](double value, Algorithm* a) { a->regularizers.entropy_coefficient = value; }},
    {"overlong_length", "", kAlways,
     [](double value, Algorithm* a) {
       a->regularizers.overlong.enabled = value > 0;
       a->regularizers.overlong.max_length = Whole(value);
     },
     kLargestLength},
    {"overlong_cache", "overlong shaping, by overlong_length or preset dapo",
     [](const Algorithm& a) { return a.regularizers.overlong.enabled; },
     [](double value, Algorithm* a) { a->regularizers.overlong.cache = Whole(value); },
     kLargestLength},
    {"constant_length", "aggregation sequence_mean_token_sum_norm",
     [](const Algorithm& a) { return a.aggregation == Aggregation::kSequenceMeanTokenSumNorm; },
     [](double value, Algorithm* a) { a->constant_length = Whole(value); }, kLargestLength},
};

class Overrider {
 public:
  Overrider(const AlgorithmOverrides& overrides, Algorithm* algorithm)
      : overrides_(overrides), algorithm_(*algorithm) {}

  std::vector<FieldViolation> Run() {
    ChooseAll();
    SetClip();
    SetParameters();
    CheckKl();
    return std::move(violations_);
  }

 private:
  void Refuse(const std::string& key, const std::string& description) {
    const std::string field = absl::StrCat("algorithm.", key.substr(0, kShownBytes));
    violations_.push_back({field, absl::StrCat("'", field, "' ", description)});
  }

  // Puts what the job says of `name`, if anything, into `*chosen`.
  template <class Kind>
  void Choose(const std::string& name, std::span<const Kind> accepted, Kind* chosen) {
    known_.push_back(name);
    const auto found = overrides_.choices.find(name);
    if (found == overrides_.choices.end()) return;
    std::vector<std::string> names;
    for (const Kind kind : accepted) {
      names.push_back(Name(kind));
      if (names.back() != found->second) continue;
      *chosen = kind;
      return;
    }
    Refuse("choices." + name,
           absl::StrCat("is '", found->second.substr(0, kShownBytes), "'; accepted are ",
                        absl::StrJoin(names, ", "), DidYouMean(found->second, names)));
  }

  void ChooseAll() {
    Objective objective = algorithm_.loss.objective;
    CorrectionKind correction = algorithm_.correction.kind;
    RegularizerOptions& regularizers = algorithm_.regularizers;
    Choose<AdvantageKind>("advantage", kAdvantages, &algorithm_.advantage);
    Choose<Objective>("objective", kObjectives, &objective);
    Choose<CorrectionKind>("correction", kCorrections, &correction);
    Choose<Aggregation>("aggregation", kAggregations, &algorithm_.aggregation);
    Choose<OldLogProbs>("old_log_probs", kOldLogProbs, &algorithm_.old_log_probs);
    Choose<ZeroVarianceGroups>("zero_variance", kZeroVariance, &regularizers.zero_variance);
    Choose<KlEstimator>("kl_estimator", kKlEstimators, &regularizers.kl.estimator);
    Choose<KlPlace>("kl_place", kKlPlaces, &regularizers.kl.place);
    if (objective != algorithm_.loss.objective) algorithm_.loss = DefaultOptions(objective);
    if (correction != algorithm_.correction.kind) {
      algorithm_.correction = DefaultCorrection(correction);
    }
    for (const auto& [name, value] : overrides_.choices) {
      if (std::find(known_.begin(), known_.end(), name) != known_.end()) continue;
      Refuse("choices." + name,
             absl::StrCat("is no choice; there are ", absl::StrJoin(known_, ", "),
                          DidYouMean(name, known_)));
    }
  }

  void SetClip() {
    if (overrides_.clip.size() != 2) return;
    algorithm_.loss.clip_low = overrides_.clip[0];
    algorithm_.loss.clip_high = overrides_.clip[1];
    if (HasClip(algorithm_)) return;
    Refuse("clip", absl::StrCat("is given, but objective ", Name(algorithm_.loss.objective),
                                " has no clip; remove it, or take objective ppo_clip, gspo, cispo "
                                "or gmpo"));
  }

  void SetParameters() {
    std::vector<std::string> names;
    std::vector<const Parameter*> set;
    for (const Parameter& parameter : kParameters) {
      names.push_back(parameter.name);
      const auto found = overrides_.parameters.find(parameter.name);
      if (found == overrides_.parameters.end()) continue;
      const double value = found->second;
      const double largest = parameter.largest_whole;
      if (largest > 0 && !(value >= 0 && value <= largest && std::trunc(value) == value)) {
        Refuse(absl::StrCat("parameters.", parameter.name),
               absl::StrCat("is ", value, "; accepted are whole numbers from 0 to ", largest));
        continue;
      }
      parameter.set(value, &algorithm_);
      set.push_back(&parameter);
    }
    // Only once all are set is it known what the row reads.
    for (const Parameter* parameter : set) {
      if (parameter->is_read(algorithm_)) continue;
      Refuse(absl::StrCat("parameters.", parameter->name),
             absl::StrCat("is not read by this row; remove it, or take ", parameter->reader));
    }
    for (const auto& [name, value] : overrides_.parameters) {
      if (std::find(names.begin(), names.end(), name) != names.end()) continue;
      Refuse("parameters." + name,
             absl::StrCat("is no parameter; there are ", absl::StrJoin(names, ", "),
                          DidYouMean(name, names)));
    }
  }

  void CheckKl() {
    if (HasKl(algorithm_)) return;
    const auto refuse = [this](const std::string& key) {
      Refuse(key, "is not read without KL; remove it, or give parameters.kl above 0");
    };
    for (const char* name : {"kl_estimator", "kl_place"}) {
      if (overrides_.choices.contains(name)) refuse(absl::StrCat("choices.", name));
    }
    if (overrides_.reference) refuse("reference");
  }

  const AlgorithmOverrides& overrides_;
  Algorithm& algorithm_;
  std::vector<std::string> known_;
  std::vector<FieldViolation> violations_;
};

}  // namespace

std::span<const CorrectionKind> AllCorrections() { return kCorrections; }

std::vector<FieldViolation> ApplyOverrides(const AlgorithmOverrides& overrides,
                                           Algorithm* algorithm) {
  return Overrider(overrides, algorithm).Run();
}

}  // namespace halfstep
