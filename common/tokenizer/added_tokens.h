// SPDX-License-Identifier: Apache-2.0
// Tokens that are found in a text before anything else is done to it.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace halfstep {

struct AddedToken {
  int32_t id = 0;
  std::string content;       // valid UTF-8, not empty
  bool special = false;      // left out when decoding without special tokens
  bool single_word = false;  // only where no word character is next to it
  bool lstrip = false;       // takes the white space before it
  bool rstrip = false;       // takes the white space behind it
  bool normalized = false;   // looked for after normalisation, in its normalised form
};

// A stretch of a text: an added token, or (id -1) what lies between.
struct TextPiece {
  int32_t id = -1;
  absl::string_view text;
};

// Finds a set of added tokens. Immutable once built; thread-safe.
class AddedTokenFinder {
 public:
  // Contents are compared byte by byte.
  explicit AddedTokenFinder(const std::vector<AddedToken>& tokens);

  // Cuts `text` (valid UTF-8) at the tokens in it: from left to right, at each place the longest.
  // Pieces between tokens are not empty.
  std::vector<TextPiece> Split(absl::string_view text) const;

 private:
  // A trie over bytes.
  struct Node {
    std::map<uint8_t, int32_t> children;
    int32_t token = -1;  // index into tokens_
  };

  // The longest token that starts at the start of `text`, or null.
  const AddedToken* LongestAt(absl::string_view text) const;

  std::vector<AddedToken> tokens_;
  std::vector<Node> nodes_;
  std::array<bool, 256> starts_{};  // bytes that some token starts with
};

}  // namespace halfstep
