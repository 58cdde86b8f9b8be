// SPDX-License-Identifier: Apache-2.0
#include "learner_server/data/prompt_dataset.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/error_reason.h"
#include "common/base/status_macros.h"
#include "learner_server/data/jsonl.h"
#include "learner_server/data/permutation.h"

namespace halfstep {
namespace {

std::string Where(const PromptDatasetOptions& options, const JsonlRow& row) {
  return absl::StrCat(options.path, ":", row.line);
}

absl::StatusOr<DatasetRow> EncodeRow(const PromptDatasetOptions& options, const EncodeText& encode,
                                     const JsonlRow& row) {
  DatasetRow encoded;
  encoded.line = row.line;
  encoded.target = row.columns[1];
  HALFSTEP_ASSIGN_OR_RETURN(encoded.prompt, encode(row.columns[0], TextRole::kPrompt));
  if (encoded.prompt.empty()) {
    return Error(absl::StatusCode::kInvalidArgument, "BAD_DATASET_ROW", "the prompt is empty");
  }
  if (options.encode_response) {
    HALFSTEP_ASSIGN_OR_RETURN(encoded.response, encode(encoded.target, TextRole::kResponse));
    encoded.response.push_back(options.end_token);
  }
  return encoded;
}

}  // namespace

absl::StatusOr<PromptDataset> PromptDataset::Load(const PromptDatasetOptions& options,
                                                  const EncodeText& encode) {
  HALFSTEP_ASSIGN_OR_RETURN(
      const std::vector<JsonlRow> rows,
      ReadJsonl(options.path, {options.prompt_column, options.target_column}));
  PromptDataset dataset;
  for (const JsonlRow& row : rows) {
    absl::StatusOr<DatasetRow> encoded = EncodeRow(options, encode, row);
    if (!encoded.ok()) return WithContext(encoded.status(), Where(options, row));
    const int64_t prompt = static_cast<int64_t>(encoded->prompt.size());
    const int64_t response = static_cast<int64_t>(encoded->response.size());
    const int64_t needed = prompt + std::max<int64_t>(1, response);
    if (needed > options.max_tokens) {
      if (options.overlong == OverlongPolicy::kRefuse) {
        return Error(
            absl::StatusCode::kInvalidArgument, "PROMPT_TOO_LONG",
            absl::StrCat(Where(options, row), ": a prompt of ", prompt, " tokens needs room for ",
                         needed, ", the model has ", options.max_tokens,
                         "; shorten it or set data.overlong_prompts to skip"));
      }
      ++dataset.skipped_;
      continue;
    }
    dataset.longest_prompt_ = std::max(dataset.longest_prompt_, prompt);
    dataset.longest_sequence_ = std::max(dataset.longest_sequence_, prompt + response);
    dataset.rows_.push_back(*std::move(encoded));
  }
  if (dataset.rows_.empty()) {
    return Error(
        absl::StatusCode::kInvalidArgument, "EMPTY_DATASET",
        absl::StrCat(options.path, ": all ", dataset.skipped_,
                     " prompts are longer than the model's ", options.max_tokens, " tokens allow"));
  }
  return dataset;
}

const DatasetRow& PromptDataset::Shuffled(uint64_t seed, uint64_t cursor) {
  const uint64_t epoch = cursor / rows_.size();
  if (order_.empty() || order_seed_ != seed || order_epoch_ != epoch) {
    order_ =
        Permutation(static_cast<uint32_t>(rows_.size()), {seed, PermutationUse::kDataOrder, epoch});
    order_seed_ = seed;
    order_epoch_ = epoch;
  }
  return rows_[order_[cursor % rows_.size()]];
}

}  // namespace halfstep
