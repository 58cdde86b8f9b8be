// SPDX-License-Identifier: Apache-2.0
// PromptDataset: tokenised prompts (and, for supervised training, responses) in a seeded order.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace halfstep {

// A prompt may begin with special tokens, a response continues it.
enum class TextRole { kPrompt, kResponse };

// Text to token ids: the tokenizer's Encode.
using EncodeText =
    std::function<absl::StatusOr<std::vector<int32_t>>(const std::string& text, TextRole role)>;

struct DatasetRow {
  int64_t line = 0;    // of the file
  std::string target;  // the answer (rl) or the response (sft), as text
  std::vector<int32_t> prompt;
  std::vector<int32_t> response;  // sft: the response and the end-of-sequence token
};

enum class OverlongPolicy { kRefuse, kSkip };

struct PromptDatasetOptions {
  std::string path;
  std::string prompt_column = "prompt";
  std::string target_column = "answer";
  // Supervised: encode the target as the response and end it with this token.
  bool encode_response = false;
  int32_t end_token = -1;
  // Room in the model: a prompt needs at least one response token besides (or its whole response).
  int64_t max_tokens = 0;
  OverlongPolicy overlong = OverlongPolicy::kRefuse;
};

// Immutable once loaded, but for the cached order of an epoch; not thread-safe.
class PromptDataset {
 public:
  // Prompts are used as they are written, without a chat template. INVALID_ARGUMENT naming file and
  // line for a malformed row, an empty prompt, or an overlong one unless they are skipped; also
  // when nothing is left (reason EMPTY_DATASET).
  static absl::StatusOr<PromptDataset> Load(const PromptDatasetOptions& options,
                                            const EncodeText& encode);

  int64_t size() const { return static_cast<int64_t>(rows_.size()); }
  // In the order of the file.
  const DatasetRow& row(int64_t index) const { return rows_[static_cast<size_t>(index)]; }
  int64_t skipped() const { return skipped_; }
  int64_t longest_prompt() const { return longest_prompt_; }
  // Prompt and response; the prompt alone where responses are not encoded.
  int64_t longest_sequence() const { return longest_sequence_; }

  // The row at `cursor` of an endless sequence of epochs, each in its own order seeded by (seed,
  // epoch).
  const DatasetRow& Shuffled(uint64_t seed, uint64_t cursor);

 private:
  std::vector<DatasetRow> rows_;
  int64_t skipped_ = 0;
  int64_t longest_prompt_ = 0;
  int64_t longest_sequence_ = 0;
  std::vector<uint32_t> order_;  // of (order_seed_, order_epoch_)
  uint64_t order_seed_ = 0;
  uint64_t order_epoch_ = 0;
};

}  // namespace halfstep
