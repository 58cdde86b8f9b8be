// SPDX-License-Identifier: Apache-2.0
// Reading tokenizer.json into the parts that the tokenizer is made of.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "common/tokenizer/added_tokens.h"
#include "common/tokenizer/bpe.h"
#include "common/tokenizer/pre_tokenizer.h"

namespace halfstep {

struct TokenizerParts {
  absl::flat_hash_map<std::string, int32_t> ids;  // by spelling; vocabulary and added tokens
  std::vector<std::string> bytes;                 // by id; "" for ids without a token
  Bpe bpe;
  std::vector<AddedToken> added;
  bool nfc = false;
  PreTokenizer pre_tokenizer;
  std::vector<int32_t> prefix;  // special tokens before and behind a text
  std::vector<int32_t> suffix;
};

// Errors as of Tokenizer::FromJson.
absl::StatusOr<TokenizerParts> ReadTokenizerJson(const std::string& text,
                                                 const std::string& source);

}  // namespace halfstep
