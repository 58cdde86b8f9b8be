// SPDX-License-Identifier: Apache-2.0
// Added tokens, normalisation, split, merge, template.
#include "common/tokenizer/tokenizer.h"

#include <utf8proc.h>

#include <cstdlib>
#include <utility>

#include "absl/strings/string_view.h"
#include "common/base/status_macros.h"
#include "common/base/utf8.h"
#include "common/tokenizer/tokenizer_json.h"

namespace halfstep {
namespace {

bool IsAscii(absl::string_view text) {
  for (const char c : text) {
    if (static_cast<uint8_t>(c) >= 0x80) return false;
  }
  return true;
}

// Unicode normalisation form C of valid UTF-8.
std::string ToNfc(absl::string_view text) {
  if (IsAscii(text)) return std::string(text);
  utf8proc_uint8_t* composed = nullptr;
  const utf8proc_ssize_t size =
      utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                   static_cast<utf8proc_ssize_t>(text.size()), &composed,
                   static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  if (size < 0) return std::string(text);  // out of memory only: the text is valid
  std::string result(reinterpret_cast<const char*>(composed), static_cast<size_t>(size));
  std::free(composed);
  return result;
}

// The added tokens that are looked for before (or after) normalisation.
std::vector<AddedToken> Chosen(const TokenizerParts& parts, bool normalized) {
  std::vector<AddedToken> chosen;
  for (AddedToken token : parts.added) {
    if (token.normalized != normalized) continue;
    if (normalized && parts.nfc) token.content = ToNfc(token.content);
    chosen.push_back(std::move(token));
  }
  return chosen;
}

}  // namespace

struct Tokenizer::Parts {
  explicit Parts(TokenizerParts read)
      : json(std::move(read)), raw(Chosen(json, false)), normalized(Chosen(json, true)) {
    special.resize(json.bytes.size());
    for (const AddedToken& token : json.added) special[token.id] = token.special;
  }

  void EncodePlain(absl::string_view text, std::vector<int32_t>& out) const {
    for (const std::string& piece : json.pre_tokenizer.Split(text)) json.bpe.Encode(piece, out);
  }

  void EncodeNormalized(absl::string_view text, std::vector<int32_t>& out) const {
    for (const TextPiece& piece : normalized.Split(text)) {
      if (piece.id >= 0) {
        out.push_back(piece.id);
      } else {
        EncodePlain(piece.text, out);
      }
    }
  }

  TokenizerParts json;
  AddedTokenFinder raw;
  AddedTokenFinder normalized;
  std::vector<bool> special;  // by id
};

absl::StatusOr<std::shared_ptr<const Tokenizer>> Tokenizer::FromJson(const std::string& text,
                                                                     const std::string& source) {
  HALFSTEP_ASSIGN_OR_RETURN(TokenizerParts parts, ReadTokenizerJson(text, source));
  return std::shared_ptr<const Tokenizer>(
      new Tokenizer(std::make_unique<const Parts>(std::move(parts))));
}

Tokenizer::Tokenizer(std::unique_ptr<const Parts> parts) : parts_(std::move(parts)) {}

Tokenizer::~Tokenizer() = default;

std::vector<int32_t> Tokenizer::Encode(const std::string& text, SpecialTokens special) const {
  const TokenizerParts& json = parts_->json;
  std::vector<int32_t> ids;
  if (special == SpecialTokens::kInclude) ids = json.prefix;
  const std::string valid = ToUtf8(text);
  for (const TextPiece& piece : parts_->raw.Split(valid)) {
    if (piece.id >= 0) {
      ids.push_back(piece.id);
    } else if (json.nfc) {
      parts_->EncodeNormalized(ToNfc(piece.text), ids);
    } else {
      parts_->EncodeNormalized(piece.text, ids);
    }
  }
  if (special == SpecialTokens::kInclude) {
    ids.insert(ids.end(), json.suffix.begin(), json.suffix.end());
  }
  return ids;
}

std::string Tokenizer::Decode(std::span<const int32_t> ids, SpecialTokens special) const {
  std::string bytes;
  for (const int32_t id : ids) {
    if (special == SpecialTokens::kInclude || !IsSpecial(id)) bytes += BytesOf(id);
  }
  return ToUtf8(bytes);
}

int32_t Tokenizer::vocab_size() const { return static_cast<int32_t>(parts_->json.bytes.size()); }

std::optional<int32_t> Tokenizer::IdOf(const std::string& token) const {
  const auto found = parts_->json.ids.find(token);
  if (found == parts_->json.ids.end()) return std::nullopt;
  return found->second;
}

const std::string& Tokenizer::BytesOf(int32_t id) const {
  static const std::string none;
  return id >= 0 && id < vocab_size() ? parts_->json.bytes[id] : none;
}

bool Tokenizer::IsSpecial(int32_t id) const {
  return id >= 0 && id < vocab_size() && parts_->special[id];
}

StreamingDecoder::StreamingDecoder(std::shared_ptr<const Tokenizer> tokenizer,
                                   SpecialTokens special)
    : tokenizer_(std::move(tokenizer)), special_(special) {}

std::string StreamingDecoder::Push(int32_t id) {
  if (special_ == SpecialTokens::kOmit && tokenizer_->IsSpecial(id)) return "";
  pending_ += tokenizer_->BytesOf(id);
  std::string text;
  absl::string_view rest = pending_;
  while (!rest.empty()) {
    const Utf8Step step = ReadUtf8(rest);
    if (step.cut) break;
    AppendUtf8(text, step.code_point);
    rest.remove_prefix(step.size);
  }
  pending_ = std::string(rest);
  return text;
}

std::string StreamingDecoder::Finish() { return ToUtf8(std::exchange(pending_, "")); }

}  // namespace halfstep
