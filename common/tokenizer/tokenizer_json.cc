// SPDX-License-Identifier: Apache-2.0
// One function per part of the file. nlohmann's exceptions end here.
#include "common/tokenizer/tokenizer_json.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/error_reason.h"
#include "common/base/json.h"
#include "common/base/status_macros.h"
#include "common/base/utf8.h"
#include "common/tokenizer/byte_alphabet.h"

namespace halfstep {
namespace {

using Json = nlohmann::json;

constexpr int64_t kMaxId = (1 << 20) - 1;

// The split of GPT-2, which ByteLevel makes unless told otherwise.
constexpr char kGpt2Pattern[] =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

absl::Status Malformed(const std::string& message) {
  return Error(absl::StatusCode::kInvalidArgument, "INVALID_TOKENIZER", message);
}

absl::Status Unsupported(const std::string& message) {
  return Error(absl::StatusCode::kUnimplemented, "UNSUPPORTED_TOKENIZER", message);
}

std::string TypeOf(const Json& part) { return part.value("type", std::string("(no type)")); }

// Whether a setting has a value that does something.
bool IsGiven(const Json& object, const char* key) {
  if (!object.contains(key)) return false;
  const Json& value = object[key];
  return !value.is_null() && value != "" && value != false && value != 0;
}

// Refuses a setting of the model that changes what it does.
absl::Status RefuseIfGiven(const Json& model, const char* key) {
  if (!IsGiven(model, key)) return absl::OkStatus();
  return Unsupported(absl::StrCat("model.", key, " = ", model[key].dump().substr(0, 80),
                                  " is not supported; byte-level BPE has none"));
}

class Reader {
 public:
  absl::StatusOr<TokenizerParts> Read(const Json& file) {
    if (!file.is_object()) return Malformed("not an object");
    if (!file.contains("model")) return Malformed("no \"model\"");
    HALFSTEP_RETURN_IF_ERROR(ReadModel(file.at("model")));
    HALFSTEP_RETURN_IF_ERROR(ReadAddedTokens(file.value("added_tokens", Json::array())));
    HALFSTEP_RETURN_IF_ERROR(ReadNormalizer(file.value("normalizer", Json())));
    HALFSTEP_RETURN_IF_ERROR(ReadPreTokenizer(file.value("pre_tokenizer", Json())));
    if (!byte_level_)
      return Unsupported("pre_tokenizer without ByteLevel: only byte-level BPE is supported");
    HALFSTEP_RETURN_IF_ERROR(ReadDecoder(file.value("decoder", Json())));
    HALFSTEP_RETURN_IF_ERROR(ReadPostProcessor(file.value("post_processor", Json())));
    return std::move(parts_);
  }

 private:
  absl::Status ReadModel(const Json& model);
  absl::Status ReadVocabulary(const Json& vocabulary);
  absl::Status ReadBytes();
  absl::Status ReadMerges(const Json& merges);
  absl::Status ReadMerge(const Json& merge, int32_t rank);
  absl::Status AddId(const std::string& token, int64_t id);
  absl::Status ReadAddedTokens(const Json& tokens);
  absl::Status ReadNormalizer(const Json& part);
  absl::Status ReadPreTokenizer(const Json& part);
  absl::Status ReadSplit(const Json& part);
  absl::Status ReadByteLevel(const Json& part);
  absl::Status AddSplit(const std::string& pattern, SplitStep::Keep keep);
  absl::Status ReadDecoder(const Json& part);
  absl::Status ReadPostProcessor(const Json& part);
  absl::Status ReadTemplate(const Json& part);

  TokenizerParts parts_;
  bool byte_level_ = false;
};

absl::Status Reader::ReadModel(const Json& model) {
  // Files of some years ago name no type; what they hold is then told by their keys.
  const std::string type =
      model.contains("merges") ? model.value("type", std::string("BPE")) : TypeOf(model);
  if (type != "BPE") {
    return Unsupported(absl::StrCat("model type ", type, "; only byte-level BPE is supported"));
  }
  for (const char* key :
       {"dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"}) {
    HALFSTEP_RETURN_IF_ERROR(RefuseIfGiven(model, key));
  }
  HALFSTEP_RETURN_IF_ERROR(ReadVocabulary(model.at("vocab")));
  HALFSTEP_RETURN_IF_ERROR(ReadBytes());
  HALFSTEP_RETURN_IF_ERROR(ReadMerges(model.at("merges")));
  if (model.value("ignore_merges", false)) {
    for (const auto& [spelling, id] : parts_.ids) {
      std::optional<std::string> bytes = BytesOfSpelling(spelling);
      if (bytes) parts_.bpe.whole_ids[*std::move(bytes)] = id;
    }
  }
  return absl::OkStatus();
}

absl::Status Reader::AddId(const std::string& token, int64_t id) {
  if (id < 0 || id > kMaxId) {
    return Malformed(
        absl::StrCat("token '", token, "' has id ", id, "; ids go from 0 to ", kMaxId));
  }
  const auto [entry, added] = parts_.ids.try_emplace(token, static_cast<int32_t>(id));
  if (!added && entry->second != id) {
    return Malformed(absl::StrCat("token '", token, "' has two ids, ", entry->second, " and ", id));
  }
  const size_t index = static_cast<size_t>(id);
  if (index >= parts_.bytes.size()) parts_.bytes.resize(index + 1);
  if (added && !parts_.bytes[index].empty()) {
    return Malformed(absl::StrCat("id ", id, " belongs to two tokens, one of them '", token, "'"));
  }
  // A spelling outside the alphabet stands for its own text.
  parts_.bytes[index] = BytesOfSpelling(token).value_or(token);
  return absl::OkStatus();
}

absl::Status Reader::ReadVocabulary(const Json& vocabulary) {
  if (!vocabulary.is_object()) return Malformed("model.vocab is not an object");
  for (const auto& [token, id] : vocabulary.items()) {
    if (token.empty()) return Malformed("model.vocab holds an empty token");
    if (!id.is_number_integer()) {
      return Malformed(absl::StrCat("model.vocab: the id of '", token, "' is not a whole number"));
    }
    HALFSTEP_RETURN_IF_ERROR(AddId(token, id.get<int64_t>()));
  }
  return absl::OkStatus();
}

// Every byte needs a token, so that every text has an encoding.
absl::Status Reader::ReadBytes() {
  std::array<bool, 256> found{};
  for (const auto& [spelling, id] : parts_.ids) {
    const std::optional<std::string> bytes = BytesOfSpelling(spelling);
    if (!bytes || bytes->size() != 1) continue;
    const uint8_t byte = static_cast<uint8_t>((*bytes)[0]);
    parts_.bpe.byte_ids[byte] = id;
    found[byte] = true;
  }
  const auto missing = std::find(found.begin(), found.end(), false);
  if (missing == found.end()) return absl::OkStatus();
  return Malformed(absl::StrCat("model.vocab has no token for byte ", missing - found.begin(),
                                "; a byte-level vocabulary has all 256"));
}

absl::Status Reader::ReadMerges(const Json& merges) {
  if (!merges.is_array()) return Malformed("model.merges is not a list");
  int32_t rank = 0;
  for (const Json& merge : merges) HALFSTEP_RETURN_IF_ERROR(ReadMerge(merge, rank++));
  return absl::OkStatus();
}

absl::Status Reader::ReadMerge(const Json& merge, int32_t rank) {
  std::string left, right;
  if (merge.is_string()) {
    const std::string text = merge.get<std::string>();
    const size_t space = text.find(' ');
    left = text.substr(0, space);
    right = space == std::string::npos ? "" : text.substr(space + 1);
  } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() &&
             merge[1].is_string()) {
    left = merge[0].get<std::string>();
    right = merge[1].get<std::string>();
  }
  const std::string shown =
      merge.dump(-1, ' ', false, Json::error_handler_t::replace).substr(0, 200);
  if (left.empty() || right.empty()) {
    return Malformed(absl::StrCat("model.merges[", rank, "] = ", shown, " is no pair of tokens"));
  }
  const auto left_id = parts_.ids.find(left);
  const auto right_id = parts_.ids.find(right);
  const auto merged = parts_.ids.find(left + right);
  if (left_id == parts_.ids.end() || right_id == parts_.ids.end() || merged == parts_.ids.end()) {
    return Malformed(absl::StrCat("model.merges[", rank, "] = ", shown,
                                  " needs a token that model.vocab does not have"));
  }
  parts_.bpe.merges[Bpe::PairKey(left_id->second, right_id->second)] = {rank, merged->second};
  return absl::OkStatus();
}

absl::Status Reader::ReadAddedTokens(const Json& tokens) {
  if (!tokens.is_array()) return Malformed("added_tokens is not a list");
  for (const Json& token : tokens) {
    AddedToken added;
    added.content = token.at("content").get<std::string>();
    added.special = token.value("special", false);
    added.single_word = token.value("single_word", false);
    added.lstrip = token.value("lstrip", false);
    added.rstrip = token.value("rstrip", false);
    added.normalized = token.value("normalized", !added.special);
    if (added.content.empty()) return Malformed("added_tokens holds an empty token");
    const int64_t id = token.at("id").get<int64_t>();
    HALFSTEP_RETURN_IF_ERROR(AddId(added.content, id));
    added.id = static_cast<int32_t>(id);
    parts_.added.push_back(std::move(added));
  }
  return absl::OkStatus();
}

absl::Status Reader::ReadNormalizer(const Json& part) {
  if (part.is_null()) return absl::OkStatus();
  const std::string type = TypeOf(part);
  if (type == "Sequence") {
    for (const Json& step : part.at("normalizers")) HALFSTEP_RETURN_IF_ERROR(ReadNormalizer(step));
    return absl::OkStatus();
  }
  if (type != "NFC") {
    return Unsupported(absl::StrCat("normalizer type ", type, "; NFC and Sequence are supported"));
  }
  parts_.nfc = true;
  return absl::OkStatus();
}

absl::Status Reader::ReadPreTokenizer(const Json& part) {
  if (part.is_null()) return absl::OkStatus();
  const std::string type = TypeOf(part);
  if (type == "Sequence") {
    for (const Json& step : part.at("pretokenizers")) {
      HALFSTEP_RETURN_IF_ERROR(ReadPreTokenizer(step));
    }
    return absl::OkStatus();
  }
  if (byte_level_) {
    return Unsupported(absl::StrCat("pre_tokenizer ", type, " behind ByteLevel"));
  }
  if (type == "Split") return ReadSplit(part);
  if (type == "ByteLevel") return ReadByteLevel(part);
  if (type == "Digits") {
    return AddSplit(part.value("individual_digits", false) ? "\\p{N}" : "\\p{N}+",
                    SplitStep::Keep::kAll);
  }
  return Unsupported(absl::StrCat("pre_tokenizer type ", type,
                                  "; Sequence, Split, Digits and ByteLevel are supported"));
}

absl::Status Reader::ReadSplit(const Json& part) {
  const Json& pattern = part.at("pattern");
  std::string expression;
  if (pattern.contains("Regex")) {
    expression = pattern.at("Regex").get<std::string>();
  } else {
    // \Q...\E quotes everything but its own end.
    const std::string literal = pattern.at("String").get<std::string>();
    if (literal.find("\\E") != std::string::npos) {
      return Unsupported("a pre_tokenizer Split at a text that holds \\E");
    }
    expression = absl::StrCat("\\Q", literal, "\\E");
  }
  const std::string behavior = part.at("behavior").get<std::string>();
  const bool invert = part.value("invert", false);
  if (behavior == "Isolated") return AddSplit(expression, SplitStep::Keep::kAll);
  if (behavior == "Removed") {
    return AddSplit(expression, invert ? SplitStep::Keep::kMatches : SplitStep::Keep::kBetween);
  }
  return Unsupported(absl::StrCat("pre_tokenizer Split with behavior ", behavior,
                                  "; Isolated and Removed are supported"));
}

absl::Status Reader::ReadByteLevel(const Json& part) {
  byte_level_ = true;
  if (part.value("add_prefix_space", true)) parts_.pre_tokenizer.Add(PrefixSpaceStep());
  if (!part.value("use_regex", true)) return absl::OkStatus();
  return AddSplit(kGpt2Pattern, SplitStep::Keep::kAll);
}

absl::Status Reader::AddSplit(const std::string& pattern, SplitStep::Keep keep) {
  absl::StatusOr<Regex> regex = Regex::Compile(pattern);
  if (!regex.ok()) {
    return Malformed(absl::StrCat("pre_tokenizer: ", regex.status().message()));
  }
  parts_.pre_tokenizer.Add(SplitStep{*std::move(regex), keep});
  return absl::OkStatus();
}

absl::Status Reader::ReadDecoder(const Json& part) {
  if (part.is_null() || TypeOf(part) == "ByteLevel") return absl::OkStatus();
  return Unsupported(absl::StrCat("decoder type ", TypeOf(part), "; ByteLevel is supported"));
}

absl::Status Reader::ReadPostProcessor(const Json& part) {
  if (part.is_null()) return absl::OkStatus();
  const std::string type = TypeOf(part);
  if (type == "ByteLevel") return absl::OkStatus();  // it moves offsets, not tokens
  if (type == "TemplateProcessing") return ReadTemplate(part);
  if (type == "Sequence") {
    for (const Json& step : part.at("processors"))
      HALFSTEP_RETURN_IF_ERROR(ReadPostProcessor(step));
    return absl::OkStatus();
  }
  return Unsupported(absl::StrCat("post_processor type ", type,
                                  "; Sequence, ByteLevel and TemplateProcessing are supported"));
}

absl::Status Reader::ReadTemplate(const Json& part) {
  bool text_seen = false;
  for (const Json& piece : part.at("single")) {
    if (piece.contains("Sequence")) {
      if (text_seen) return Unsupported("post_processor template with the text twice");
      text_seen = true;
      continue;
    }
    const std::string name = piece.at("SpecialToken").at("id").get<std::string>();
    for (const Json& id : part.at("special_tokens").at(name).at("ids")) {
      const int64_t token = id.get<int64_t>();
      if (token < 0 || token >= static_cast<int64_t>(parts_.bytes.size())) {
        return Malformed(
            absl::StrCat("post_processor: '", name, "' has id ", token, ", which no token has"));
      }
      (text_seen ? parts_.suffix : parts_.prefix).push_back(static_cast<int32_t>(token));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<TokenizerParts> ReadTokenizerJson(const std::string& text,
                                                 const std::string& source) {
  try {
    const absl::StatusOr<Json> json = ParseJson(text);
    if (!json.ok()) return Malformed(absl::StrCat(source, ": ", json.status().message()));
    absl::StatusOr<TokenizerParts> parts = Reader().Read(*json);
    if (!parts.ok()) return WithContext(parts.status(), source);
    return parts;
  } catch (const Json::exception& error) {
    return Malformed(absl::StrCat(source, ": ", ToUtf8(error.what())));
  }
}

}  // namespace halfstep
