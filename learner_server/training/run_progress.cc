// SPDX-License-Identifier: Apache-2.0
#include "learner_server/training/run_progress.h"

#include <bit>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "common/base/json.h"
#include "common/base/status_macros.h"
#include "halfstep/v1/training_job.pb.h"

namespace halfstep {
namespace {

using Json = nlohmann::json;

void PutOptional(Json& json, const char* key, const std::optional<double>& value) {
  if (value) json[key] = *value;
}

std::optional<double> GetOptional(const Json& json, const char* key) {
  const auto found = json.find(key);
  if (found == json.end()) return std::nullopt;
  return found->get<double>();
}

Json ToJson(const HealthState& health) {
  Json json{{"history", health.history}, {"raised", health.raised}};
  PutOptional(json, "first_entropy", health.first_entropy);
  return json;
}

HealthState HealthFromJson(const Json& json) {
  HealthState health;
  json.at("history").get_to(health.history);
  json.at("raised").get_to(health.raised);
  health.first_entropy = GetOptional(json, "first_entropy");
  return health;
}

}  // namespace

std::string ToJson(const RunProgress& progress) {
  Json json{{"step", progress.step},
            {"policy_version", progress.policy_version},
            {"cursor", progress.cursor},
            {"version_after", progress.version_after},
            {"samples_admitted", progress.samples_admitted},
            {"samples_trained", progress.samples_trained},
            {"samples_dropped", progress.samples_dropped},
            {"tokens_generated", progress.tokens_generated},
            {"tokens_trained", progress.tokens_trained},
            {"tokens_compared", progress.tokens_compared},
            {"max_abs_logprob_diff", progress.max_abs_logprob_diff},
            {"health", ToJson(progress.health)},
            {"samples_by_rollout", progress.samples_by_rollout},
            {"groups_reassigned", progress.groups_reassigned},
            {"train_seconds", progress.train_seconds},
            {"evaluated_step", progress.evaluated_step}};
  if (!progress.open_groups.empty()) json["open_groups"] = progress.open_groups;
  PutOptional(json, "base_accuracy", progress.base_accuracy);
  PutOptional(json, "base_greedy", progress.base_greedy);
  PutOptional(json, "final_accuracy", progress.final_accuracy);
  PutOptional(json, "final_greedy", progress.final_greedy);
  PutOptional(json, "final_accuracy_learner", progress.final_accuracy_learner);
  PutOptional(json, "deployment_gap", progress.deployment_gap);
  return json.dump(2);
}

absl::StatusOr<RunProgress> RunProgressFromJson(const std::string& text) {
  HALFSTEP_ASSIGN_OR_RETURN(const Json json, ParseJson(text));
  try {
    RunProgress progress;
    json.at("step").get_to(progress.step);
    json.at("policy_version").get_to(progress.policy_version);
    json.at("cursor").get_to(progress.cursor);
    json.at("version_after").get_to(progress.version_after);
    json.at("samples_admitted").get_to(progress.samples_admitted);
    json.at("samples_trained").get_to(progress.samples_trained);
    json.at("samples_dropped").get_to(progress.samples_dropped);
    json.at("tokens_generated").get_to(progress.tokens_generated);
    json.at("tokens_trained").get_to(progress.tokens_trained);
    json.at("tokens_compared").get_to(progress.tokens_compared);
    json.at("max_abs_logprob_diff").get_to(progress.max_abs_logprob_diff);
    // A run that has just begun, and so has seen nothing, may lack it.
    if (json.contains("health")) progress.health = HealthFromJson(json["health"]);
    if (json.contains("open_groups")) json["open_groups"].get_to(progress.open_groups);
    json.at("samples_by_rollout").get_to(progress.samples_by_rollout);
    json.at("groups_reassigned").get_to(progress.groups_reassigned);
    json.at("train_seconds").get_to(progress.train_seconds);
    json.at("evaluated_step").get_to(progress.evaluated_step);
    progress.base_accuracy = GetOptional(json, "base_accuracy");
    progress.base_greedy = GetOptional(json, "base_greedy");
    progress.final_accuracy = GetOptional(json, "final_accuracy");
    progress.final_greedy = GetOptional(json, "final_greedy");
    progress.final_accuracy_learner = GetOptional(json, "final_accuracy_learner");
    progress.deployment_gap = GetOptional(json, "deployment_gap");
    if (progress.step < 0 ||
        static_cast<int64_t>(progress.version_after.size()) != progress.step + 1) {
      return absl::InvalidArgumentError("the version ledger does not match the step");
    }
    return progress;
  } catch (const Json::exception& error) {
    return absl::InvalidArgumentError(absl::StrCat("not a progress record: ", error.what()));
  }
}

void AddToDigest(const RunProgress& progress, Digester* digester) {
  digester->UpdateInteger(static_cast<uint64_t>(progress.step));
  digester->UpdateInteger(progress.policy_version);
  digester->UpdateInteger(progress.cursor);
  for (const uint64_t version : progress.version_after) digester->UpdateInteger(version);
  for (const uint64_t group : progress.open_groups) digester->UpdateInteger(group);
  digester->UpdateInteger(static_cast<uint64_t>(progress.samples_admitted));
  digester->UpdateInteger(static_cast<uint64_t>(progress.samples_trained));
  for (const auto& [reason, count] : progress.samples_dropped) {
    digester->Update(reason);
    digester->UpdateInteger(static_cast<uint64_t>(count));
  }
  digester->UpdateInteger(static_cast<uint64_t>(progress.tokens_generated));
  digester->UpdateInteger(static_cast<uint64_t>(progress.tokens_trained));
  digester->UpdateInteger(static_cast<uint64_t>(progress.tokens_compared));
  digester->UpdateInteger(std::bit_cast<uint64_t>(progress.max_abs_logprob_diff));
}

void FillSummary(const RunProgress& progress, v1::RunSummary* summary) {
  if (progress.base_accuracy) summary->set_base_accuracy(*progress.base_accuracy);
  if (progress.base_greedy) summary->set_base_greedy(*progress.base_greedy);
  if (progress.final_accuracy) summary->set_final_accuracy(*progress.final_accuracy);
  if (progress.final_greedy) summary->set_final_greedy(*progress.final_greedy);
  if (progress.final_accuracy_learner) {
    summary->set_final_accuracy_learner(*progress.final_accuracy_learner);
  }
  if (progress.deployment_gap) summary->set_deployment_gap(*progress.deployment_gap);
  summary->set_train_seconds(progress.train_seconds);
  summary->set_tokens_generated(progress.tokens_generated);
  summary->set_tokens_trained(progress.tokens_trained);
  summary->set_tokens_compared(progress.tokens_compared);
  summary->set_max_abs_logprob_diff(progress.max_abs_logprob_diff);
  for (const auto& [rollout, samples] : progress.samples_by_rollout) {
    (*summary->mutable_samples_by_rollout())[rollout] = samples;
  }
  summary->set_groups_reassigned(progress.groups_reassigned);
}

}  // namespace halfstep
