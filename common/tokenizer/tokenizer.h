// SPDX-License-Identifier: Apache-2.0
// Text to token ids and back, as a Hugging Face tokenizer.json of byte-level BPE says.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace halfstep {

// What to do with special tokens: for encoding, those that the post-processor puts around a text;
// for decoding, all that are marked special.
enum class SpecialTokens { kOmit, kInclude };

// Immutable and thread-safe.
class Tokenizer {
 public:
  // `source` is what errors call the text, such as its path. INVALID_ARGUMENT (reason
  // INVALID_TOKENIZER) for what is malformed, UNIMPLEMENTED (reason UNSUPPORTED_TOKENIZER), naming
  // the part and its type, for what this program does not do.
  static absl::StatusOr<std::shared_ptr<const Tokenizer>> FromJson(const std::string& text,
                                                                   const std::string& source);
  ~Tokenizer();
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  // Every text has an encoding. Invalid UTF-8 is encoded as if each error were U+FFFD; added tokens
  // (also special ones) are found wherever they stand in the text.
  std::vector<int32_t> Encode(const std::string& text,
                              SpecialTokens special = SpecialTokens::kInclude) const;

  // Valid UTF-8: bytes of the tokens that form no code point become U+FFFD. Ids without a token
  // give nothing.
  std::string Decode(std::span<const int32_t> ids,
                     SpecialTokens special = SpecialTokens::kInclude) const;

  // One more than the largest id.
  int32_t vocab_size() const;

  // The id of a token by its text as tokenizer.json spells it, such as "<|im_end|>".
  std::optional<int32_t> IdOf(const std::string& token) const;

  // The bytes that a token stands for, which need not be whole code points; empty for ids without
  // one.
  const std::string& BytesOf(int32_t id) const;

  bool IsSpecial(int32_t id) const;

 private:
  struct Parts;
  explicit Tokenizer(std::unique_ptr<const Parts> parts);
  std::unique_ptr<const Parts> parts_;
};

// Decodes ids as they come, never splitting a code point: what Push and Finish return, joined, is
// what Decode returns for all ids. Not thread-safe.
class StreamingDecoder {
 public:
  StreamingDecoder(std::shared_ptr<const Tokenizer> tokenizer, SpecialTokens special);

  // The text that is complete with this token; the bytes of an unfinished code point wait for the
  // next.
  std::string Push(int32_t id);

  // What is left at the end: U+FFFD for an unfinished code point, else nothing.
  std::string Finish();

 private:
  const std::shared_ptr<const Tokenizer> tokenizer_;
  const SpecialTokens special_;
  std::string pending_;  // the start of a code point, at most three bytes
};

}  // namespace halfstep
