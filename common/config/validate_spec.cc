// SPDX-License-Identifier: Apache-2.0
// One function per group of keys.
#include "common/config/validate_spec.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/nearest.h"
#include "common/config/enum_names.h"
#include "common/config/resolve_spec.h"
#include "halfstep/v1/training_job.pb.h"

namespace halfstep {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

constexpr int64_t kMaxSteps = 1'000'000'000;
constexpr int64_t kMaxPrompts = 1'000'000;
constexpr int64_t kMaxSamples = 65'536;
constexpr int64_t kMaxTokens = 1 << 24;
constexpr int64_t kMaxLag = 64;
constexpr size_t kMaxTextBytes = 4096;

bool IsPowerOfTwo(double value) {
  int exponent = 0;
  return std::isnormal(value) && value > 0 && std::frexp(value, &exponent) == 0.5;
}

// A power of two that an FP32 scale can be.
bool IsScale(double value) { return IsPowerOfTwo(value) && value >= 0x1p-126 && value <= 0x1p127; }

// Training computes with the nearest float, which may be 0, 1 or infinite where the number of the
// specification is not.
bool IsPositive(double value) {
  const auto used = static_cast<float>(value);
  return used > 0 && std::isfinite(used);
}

bool IsZeroOrPositive(double value) { return value == 0 || IsPositive(value); }

bool IsAdamBeta(double value) { return value >= 0 && static_cast<float>(value) < 1; }

class Validator {
 public:
  explicit Validator(const v1::TrainingJobSpec& spec)
      : spec_(spec), is_rl_(spec.objective() != v1::OBJECTIVE_SFT) {}

  std::vector<FieldViolation> Run() {
    CheckEncoding(spec_, "");
    CheckTop();
    CheckData();
    if (is_rl_) {
      CheckReward();
      CheckAlgorithm();
      CheckSampling();
    } else {
      CheckSupervised();
    }
    CheckBatch();
    CheckOptimizer();
    CheckLossScale();
    if (is_rl_) CheckEvaluation();
    CheckHealth();
    Range("checkpoint.every_steps", spec_.checkpoint().every_steps(), 0, kMaxSteps);
    return std::move(violations_);
  }

 private:
  void Add(const std::string& field, const std::string& description) {
    violations_.push_back({field, absl::StrCat("'", field, "' ", description)});
  }

  void Require(const std::string& field, bool present) {
    if (!present) Add(field, "is required");
  }

  // True when `value` lies within [low, high].
  bool Range(const std::string& field, int64_t value, int64_t low, int64_t high) {
    if (value >= low && value <= high) return true;
    Add(field, absl::StrCat("is ", value, "; accepted are ", low, " to ", high));
    return false;
  }

  bool RequiredRange(const std::string& field, bool present, int64_t value, int64_t high) {
    Require(field, present);
    return present && Range(field, value, 1, high);
  }

  void CheckEncoding(const Message& message, const std::string& path);
  void CheckTop();
  void CheckFp32Part(const std::string& field, v1::Precision part);
  void CheckData();
  void CheckReward();
  void CheckAlgorithm();
  void CheckSampling();
  void CheckSupervised();
  void CheckBatch();
  void CheckOptimizer();
  void CheckAdam();
  void CheckLossScale();
  void CheckScaleRange();
  void CheckEvaluation();
  void CheckHealth();

  const v1::TrainingJobSpec& spec_;
  const bool is_rl_;
  std::vector<FieldViolation> violations_;
};

// What YAML cannot express but the wire can: enum numbers of another build, and texts that no file
// name or string of ours may be.
void Validator::CheckEncoding(const Message& message, const std::string& path) {
  const google::protobuf::Reflection& reflection = *message.GetReflection();
  const google::protobuf::Descriptor& type = *message.GetDescriptor();
  const auto check_text = [this](const std::string& field, const std::string& text) {
    if (text.find('\0') != std::string::npos) Add(field, "holds a zero byte");
    if (text.size() > kMaxTextBytes) {
      Add(field, absl::StrCat("is longer than ", kMaxTextBytes, " bytes"));
    }
  };
  for (int i = 0; i < type.field_count(); ++i) {
    const FieldDescriptor* field = type.field(i);
    const std::string name = path.empty() ? field->name() : absl::StrCat(path, ".", field->name());
    if (field->is_repeated()) {
      if (field->cpp_type() != FieldDescriptor::CPPTYPE_STRING) continue;
      for (int k = 0; k < reflection.FieldSize(message, field); ++k) {
        check_text(name, reflection.GetRepeatedString(message, field, k));
      }
    } else if (field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
      CheckEncoding(reflection.GetMessage(message, field), name);
    } else if (field->cpp_type() == FieldDescriptor::CPPTYPE_STRING) {
      check_text(name, reflection.GetString(message, field));
    } else if (field->cpp_type() == FieldDescriptor::CPPTYPE_ENUM) {
      const int number = reflection.GetEnumValue(message, field);
      if (field->enum_type()->FindValueByNumber(number) != nullptr) continue;
      Add(name, absl::StrCat("is ", number, ", which this build does not know; accepted are ",
                             absl::StrJoin(YamlNames(*field->enum_type()), ", ")));
    }
  }
}

void Validator::CheckTop() {
  Require("model", !spec_.model().empty());
  RequiredRange("steps", spec_.has_steps(), spec_.steps(), kMaxSteps);
  const v1::PrecisionSpec& precision = spec_.precision();
  if (is_rl_ && spec_.profile() == v1::PROFILE_BITWISE &&
      precision.rollout() != precision.learner()) {
    Add("precision.learner",
        absl::StrCat("is ", YamlName(precision.learner()), " and precision.rollout is ",
                     YamlName(precision.rollout()),
                     "; profile bitwise needs them equal, unequal ones need profile fast"));
  }
  CheckFp32Part("precision.head", precision.head());
  CheckFp32Part("precision.residual", precision.residual());
}

void Validator::CheckFp32Part(const std::string& field, v1::Precision part) {
  if (part != v1::PRECISION_FP16 && part != v1::PRECISION_BF16) return;
  Add(field, absl::StrCat("is ", YamlName(part),
                          "; accepted is fp32, and without the key the part has the precision of "
                          "its side"));
}

void Validator::CheckData() {
  Require("data.train", !spec_.data().train().empty());
  const std::vector<std::string> accepted = is_rl_ ? std::vector<std::string>{"prompt", "answer"}
                                                   : std::vector<std::string>{"prompt", "response"};
  std::map<std::string, std::string> columns(spec_.data().columns().begin(),
                                             spec_.data().columns().end());
  for (const auto& [key, column] : columns) {
    const std::string field = absl::StrCat("data.columns.", key.substr(0, 80));
    if (key != accepted[0] && key != accepted[1]) {
      Add(field,
          absl::StrCat("is no column of an ", YamlName(spec_.objective()), " job; there are ",
                       absl::StrJoin(accepted, " and "), DidYouMean(key, accepted)));
    }
    if (column.empty()) Add(field, "is empty; give the name of a column");
  }
}

void Validator::CheckReward() {
  const v1::RewardSpec& reward = spec_.reward();
  if (reward.type() == v1::REWARD_TYPE_REGEX && reward.pattern().empty()) {
    Add("reward.pattern", "is required by reward.type regex");
  }
  if (reward.type() == v1::REWARD_TYPE_NUMERIC && !reward.pattern().empty()) {
    Add("reward.pattern",
        "is not used by reward.type numeric; remove it, or take type regex or exact_match");
  }
}

// Whether the choices fit each other is known only where the algorithms are.
void Validator::CheckAlgorithm() {
  const int numbers = spec_.algorithm().clip_size();
  if (numbers != 0 && numbers != 2) {
    Add("algorithm.clip",
        absl::StrCat("has ", numbers, " numbers; it is [low, high], such as [0.2, 0.28]"));
  }
}

void Validator::CheckSampling() {
  const v1::SamplingSpec& sampling = spec_.sampling();
  if (!IsPositive(sampling.temperature())) {
    Add("sampling.temperature",
        absl::StrCat("is ", sampling.temperature(),
                     "; it must be above 0: greedy responses cannot teach a policy"));
  }
  RequiredRange("sampling.max_new_tokens", sampling.has_max_new_tokens(), sampling.max_new_tokens(),
                kMaxTokens);
  for (const std::string& stop : sampling.stop()) {
    if (stop.empty()) Add("sampling.stop", "holds an empty text, which would end every response");
  }
}

void Validator::CheckSupervised() {
  const auto refuse = [this](const char* field, bool given) {
    if (given) Add(field, "has no meaning for objective sft; remove it");
  };
  refuse("save_samples", spec_.save_samples());
  refuse("data.eval", !spec_.data().eval().empty());
  refuse("reward", spec_.has_reward());
  refuse("algorithm", spec_.has_algorithm());
  refuse("sampling", spec_.has_sampling());
  refuse("batch.samples", spec_.batch().samples() != 1);
  refuse("batch.updates", spec_.batch().updates() != 1);
  refuse("batch.lag", spec_.batch().lag() != 0);
  refuse("batch.max_lag", spec_.batch().has_max_lag());
  refuse("evaluation", spec_.has_evaluation());
}

void Validator::CheckBatch() {
  const v1::BatchSpec& batch = spec_.batch();
  const bool prompts_valid =
      RequiredRange("batch.prompts", batch.has_prompts(), batch.prompts(), kMaxPrompts);
  if (is_rl_) RequiredRange("batch.samples", batch.has_samples(), batch.samples(), kMaxSamples);
  if (is_rl_ && Range("batch.updates", batch.updates(), 1, kMaxPrompts) && prompts_valid &&
      batch.prompts() % batch.updates() != 0) {
    Add("batch.updates", absl::StrCat("is ", batch.updates(),
                                      ", which does not divide batch.prompts ", batch.prompts()));
  }
  Range("batch.micro_batch_tokens", batch.micro_batch_tokens(), 1, kMaxTokens);
  if (is_rl_) Range("batch.lag", batch.lag(), 0, kMaxLag);
  if (is_rl_ && batch.has_max_lag() && Range("batch.max_lag", batch.max_lag(), 1, kMaxLag) &&
      batch.lag() > 0) {
    Add("batch.max_lag", absl::StrCat("is given with batch.lag ", batch.lag(),
                                      ": generation is either scheduled or free; remove one"));
  }
}

void Validator::CheckOptimizer() {
  const v1::OptimizerSpec& optimizer = spec_.optimizer();
  Require("optimizer.learning_rate", optimizer.has_learning_rate());
  if (optimizer.has_learning_rate() && !IsPositive(optimizer.learning_rate())) {
    Add("optimizer.learning_rate",
        absl::StrCat("is ", optimizer.learning_rate(), "; it must be above 0"));
  }
  const int64_t updates = spec_.batch().updates();
  if (spec_.steps() >= 1 && spec_.steps() <= kMaxSteps && updates >= 1 && updates <= kMaxPrompts) {
    Range("optimizer.warmup_steps", optimizer.warmup_steps(), 0, spec_.steps() * updates);
  }
  if (!IsZeroOrPositive(optimizer.weight_decay())) {
    Add("optimizer.weight_decay",
        absl::StrCat("is ", optimizer.weight_decay(), "; it must be 0 or more"));
  }
  if (!IsZeroOrPositive(optimizer.clip_norm())) {
    Add("optimizer.clip_norm",
        absl::StrCat("is ", optimizer.clip_norm(), "; it must be above 0, or 0 for no clipping"));
  }
  CheckAdam();
}

void Validator::CheckAdam() {
  const auto& adam = spec_.optimizer().adam();
  if (adam.size() == 3 && IsAdamBeta(adam[0]) && IsAdamBeta(adam[1]) && IsPositive(adam[2])) return;
  Add("optimizer.adam",
      absl::StrCat("is [", absl::StrJoin(adam, ", "),
                   "]; it is [beta1, beta2, epsilon], betas within [0, 1) and epsilon above 0, "
                   "all rounded to FP32"));
}

void Validator::CheckLossScale() {
  const v1::LossScaleSpec& scale = spec_.loss_scale();
  if (scale.preset() == v1::LOSS_SCALE_PRESET_STATIC) {
    Require("loss_scale.initial", scale.has_initial());
    const auto refuse = [this](const char* field, bool given) {
      if (given) Add(field, "has no meaning for preset static, whose scale stays; remove it");
    };
    refuse("loss_scale.factors", !scale.factors().empty());
    refuse("loss_scale.patience", !scale.patience().empty());
    refuse("loss_scale.range", !scale.range().empty());
    refuse("loss_scale.calibrate", scale.calibrate());
  }
  if (scale.has_initial() && !IsScale(scale.initial())) {
    Add("loss_scale.initial",
        absl::StrCat("is ", scale.initial(),
                     "; it must be a power of two, so that scaling is exact"));
  }
  if (!scale.factors().empty() &&
      !(scale.factors_size() == 2 && IsScale(scale.factors(0)) && scale.factors(0) >= 1 &&
        IsScale(scale.factors(1)) && scale.factors(1) <= 0.5)) {
    Add("loss_scale.factors",
        absl::StrCat(
            "is [", absl::StrJoin(scale.factors(), ", "),
            "]; it is [growth, backoff], powers of two, growth at least 1 and backoff at most "
            "0.5, such as [2, 0.5]"));
  }
  const auto steps = [](int64_t value) { return value >= 1 && value <= kMaxSteps; };
  if (!scale.patience().empty() &&
      !(scale.patience_size() == 2 && steps(scale.patience(0)) && steps(scale.patience(1)))) {
    Add("loss_scale.patience",
        absl::StrCat("is [", absl::StrJoin(scale.patience(), ", "),
                     "]; it is [good steps before growth, overflows before a cut], each 1 to ",
                     kMaxSteps, ", such as [400, 1]"));
  }
  CheckScaleRange();
}

void Validator::CheckScaleRange() {
  const v1::LossScaleSpec& scale = spec_.loss_scale();
  if (scale.range().empty()) return;
  const auto valid = [](double value) { return value == 0 || IsScale(value); };
  if (scale.range_size() != 2 || !valid(scale.range(0)) || !valid(scale.range(1)) ||
      (scale.range(1) != 0 && scale.range(0) > scale.range(1))) {
    Add("loss_scale.range",
        absl::StrCat("is [", absl::StrJoin(scale.range(), ", "),
                     "]; it is [min, max], powers of two or 0 for no limit, min at most max"));
    return;
  }
  if (scale.has_initial() && (scale.initial() < scale.range(0) ||
                              (scale.range(1) != 0 && scale.initial() > scale.range(1)))) {
    Add("loss_scale.initial", absl::StrCat("is ", scale.initial(), ", outside loss_scale.range [",
                                           absl::StrJoin(scale.range(), ", "), "]"));
  }
}

void Validator::CheckEvaluation() {
  const v1::EvaluationSpec& evaluation = spec_.evaluation();
  Range("evaluation.samples", evaluation.samples(), 1, kMaxSamples);
  if (Range("evaluation.every_steps", evaluation.every_steps(), 0, kMaxSteps) &&
      evaluation.every_steps() > 0 && spec_.data().eval().empty()) {
    Add("evaluation.every_steps", "is given without data.eval, the prompts to evaluate on");
  }
}

void Validator::CheckHealth() {
  const std::vector<const char*> alarms = HealthAlarmsOf(spec_.objective());
  const std::vector<std::string> accepted(alarms.begin(), alarms.end());
  const std::map<std::string, v1::HealthAction> health(spec_.health().begin(),
                                                       spec_.health().end());
  for (const auto& [alarm, action] : health) {
    const std::string field = absl::StrCat("health.", alarm.substr(0, 80));
    if (std::find(accepted.begin(), accepted.end(), alarm) == accepted.end()) {
      Add(field, absl::StrCat("is no alarm of an ", YamlName(spec_.objective()), " job; accepted ",
                              accepted.size() == 1 ? "is " : "are ", absl::StrJoin(accepted, ", "),
                              DidYouMean(alarm, accepted)));
    }
    if (!v1::HealthAction_IsValid(action) || action == v1::HEALTH_ACTION_UNSPECIFIED) {
      Add(field, absl::StrCat("is ", static_cast<int>(action),
                              ", which this build does not know; accepted are ",
                              absl::StrJoin(YamlNames(*v1::HealthAction_descriptor()), ", ")));
    }
  }
}

}  // namespace

std::vector<FieldViolation> ValidateSpec(const v1::TrainingJobSpec& spec) {
  return Validator(spec).Run();
}

}  // namespace halfstep
