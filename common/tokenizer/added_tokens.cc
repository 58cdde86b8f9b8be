// SPDX-License-Identifier: Apache-2.0
// Follows AddedVocabulary of Hugging Face's tokenizers.
#include "common/tokenizer/added_tokens.h"

#include <utf8proc.h>

#include <algorithm>

#include "common/base/utf8.h"

namespace halfstep {
namespace {

bool IsWhiteSpace(char32_t c) {
  if ((c >= 0x09 && c <= 0x0d) || c == 0x85) return true;
  const utf8proc_category_t category = utf8proc_category(static_cast<utf8proc_int32_t>(c));
  return category == UTF8PROC_CATEGORY_ZS || category == UTF8PROC_CATEGORY_ZL ||
         category == UTF8PROC_CATEGORY_ZP;
}

bool IsWordCharacter(char32_t c) {
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
      return true;
    default:
      return false;
  }
}

// The code point that ends at the end of valid `text`.
Utf8Step LastUtf8(absl::string_view text) {
  size_t begin = text.size() - 1;
  while (begin > 0 && (static_cast<uint8_t>(text[begin]) & 0xc0) == 0x80) --begin;
  return ReadUtf8(text.substr(begin));
}

size_t WhiteSpaceAtEnd(absl::string_view text) {
  size_t size = 0;
  while (size < text.size()) {
    const Utf8Step last = LastUtf8(text.substr(0, text.size() - size));
    if (!IsWhiteSpace(last.code_point)) break;
    size += last.size;
  }
  return size;
}

size_t WhiteSpaceAtStart(absl::string_view text) {
  size_t size = 0;
  while (size < text.size()) {
    const Utf8Step first = ReadUtf8(text.substr(size));
    if (!IsWhiteSpace(first.code_point)) break;
    size += first.size;
  }
  return size;
}

bool StandsAlone(absl::string_view before, absl::string_view after) {
  return (before.empty() || !IsWordCharacter(LastUtf8(before).code_point)) &&
         (after.empty() || !IsWordCharacter(ReadUtf8(after).code_point));
}

}  // namespace

AddedTokenFinder::AddedTokenFinder(const std::vector<AddedToken>& tokens)
    : tokens_(tokens), nodes_(1) {
  for (size_t index = 0; index < tokens_.size(); ++index) {
    int32_t node = 0;
    for (const char c : tokens_[index].content) {
      const auto [child, added] = nodes_[node].children.try_emplace(
          static_cast<uint8_t>(c), static_cast<int32_t>(nodes_.size()));
      node = child->second;
      if (added) nodes_.emplace_back();
    }
    nodes_[node].token = static_cast<int32_t>(index);
    starts_[static_cast<uint8_t>(tokens_[index].content[0])] = true;
  }
}

const AddedToken* AddedTokenFinder::LongestAt(absl::string_view text) const {
  const AddedToken* longest = nullptr;
  int32_t node = 0;
  for (const char c : text) {
    const auto child = nodes_[node].children.find(static_cast<uint8_t>(c));
    if (child == nodes_[node].children.end()) break;
    node = child->second;
    if (nodes_[node].token >= 0) longest = &tokens_[nodes_[node].token];
  }
  return longest;
}

std::vector<TextPiece> AddedTokenFinder::Split(absl::string_view text) const {
  std::vector<TextPiece> pieces;
  size_t done = 0;  // end of the last token taken
  for (size_t at = 0; at < text.size();) {
    const AddedToken* token =
        starts_[static_cast<uint8_t>(text[at])] ? LongestAt(text.substr(at)) : nullptr;
    if (token == nullptr) {
      ++at;
      continue;
    }
    size_t begin = at;
    size_t end = at + token->content.size();
    at = end;
    if (token->single_word && !StandsAlone(text.substr(0, begin), text.substr(end))) continue;
    if (token->lstrip) begin -= WhiteSpaceAtEnd(text.substr(done, begin - done));
    if (token->rstrip) end += WhiteSpaceAtStart(text.substr(end));
    if (begin > done) pieces.push_back({-1, text.substr(done, begin - done)});
    pieces.push_back({token->id, text.substr(begin, end - begin)});
    done = end;
    at = end;
  }
  if (done < text.size()) pieces.push_back({-1, text.substr(done)});
  return pieces;
}

}  // namespace halfstep
