// SPDX-License-Identifier: Apache-2.0
#include "learner_server/data/external_samples.h"

#include <cmath>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "learner_server/data/jsonl.h"

namespace halfstep {
namespace {

absl::StatusOr<const nlohmann::json*> List(const nlohmann::json& object, const char* key) {
  const auto found = object.find(key);
  if (found == object.end()) {
    return absl::InvalidArgumentError(
        absl::StrCat("no \"", key,
                     "\"; a row is {\"prompt_ids\": [...], \"response_ids\": [...], "
                     "\"log_probs\": [...]}"));
  }
  if (!found->is_array()) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", key, "\" holds ", found->type_name(), ", not a list of numbers"));
  }
  if (found->empty()) return absl::InvalidArgumentError(absl::StrCat("\"", key, "\" is empty"));
  return &*found;
}

absl::Status AppendIds(const nlohmann::json& object, const char* key, int64_t vocab_size,
                       std::vector<int32_t>* tokens) {
  HALFSTEP_ASSIGN_OR_RETURN(const nlohmann::json* const list, List(object, key));
  for (size_t i = 0; i < list->size(); ++i) {
    const nlohmann::json& id = (*list)[i];
    if (!id.is_number_unsigned() || id.get<uint64_t>() >= static_cast<uint64_t>(vocab_size)) {
      return absl::InvalidArgumentError(absl::StrCat(
          key, "[", i, "] is ", id.dump(), ", not an id below the model's vocabulary size of ",
          vocab_size, "; were these tokens made with another model's tokenizer?"));
    }
    tokens->push_back(id.get<int32_t>());
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<float>> LogProbs(const nlohmann::json& object) {
  HALFSTEP_ASSIGN_OR_RETURN(const nlohmann::json* const list, List(object, "log_probs"));
  std::vector<float> log_probs;
  for (size_t i = 0; i < list->size(); ++i) {
    const nlohmann::json& value = (*list)[i];
    const float log_prob = value.is_number() ? value.get<float>() : 1;
    if (!std::isfinite(log_prob) || log_prob > 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("log_probs[", i, "] is ", value.dump(),
                       ", not a finite number of at most 0; natural logarithms are expected"));
    }
    log_probs.push_back(log_prob);
  }
  return log_probs;
}

absl::StatusOr<TrainSequence> ReadSample(const nlohmann::json& object,
                                         const ExternalSampleLimits& limits) {
  TrainSequence sample;
  HALFSTEP_RETURN_IF_ERROR(AppendIds(object, "prompt_ids", limits.vocab_size, &sample.tokens));
  sample.prompt_tokens = static_cast<int64_t>(sample.tokens.size());
  HALFSTEP_RETURN_IF_ERROR(AppendIds(object, "response_ids", limits.vocab_size, &sample.tokens));
  HALFSTEP_ASSIGN_OR_RETURN(sample.behaviour, LogProbs(object));
  if (static_cast<int64_t>(sample.behaviour.size()) != sample.response_tokens()) {
    return absl::InvalidArgumentError(
        absl::StrCat("log_probs has ", sample.behaviour.size(), " numbers and response_ids ",
                     sample.response_tokens(), "; one for each response token is needed"));
  }
  if (static_cast<int64_t>(sample.tokens.size()) > limits.max_sequence_tokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("prompt and response have ", sample.tokens.size(),
                     " tokens, and the model positions for ", limits.max_sequence_tokens));
  }
  return sample;
}

}  // namespace

absl::StatusOr<std::vector<TrainSequence>> ReadExternalSamples(const std::string& path,
                                                               const ExternalSampleLimits& limits) {
  std::vector<TrainSequence> samples;
  HALFSTEP_RETURN_IF_ERROR(
      ForEachJsonlRow(path, [&](int64_t, const nlohmann::json& object) -> absl::Status {
        HALFSTEP_ASSIGN_OR_RETURN(TrainSequence sample, ReadSample(object, limits));
        samples.push_back(std::move(sample));
        return absl::OkStatus();
      }));
  return samples;
}

}  // namespace halfstep
