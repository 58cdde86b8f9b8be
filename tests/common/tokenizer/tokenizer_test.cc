// SPDX-License-Identifier: Apache-2.0
#include "common/tokenizer/tokenizer.h"

#include <nlohmann/json.hpp>
#include <thread>

#include "common/base/error_reason.h"
#include "common/base/utf8.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace halfstep {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Json = nlohmann::json;

constexpr char kReplacementText[] = "\xef\xbf\xbd";

// The character that spells a byte.
std::string Spelling(int byte) {
  const auto printable = [](int b) {
    return (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
  };
  char32_t c = static_cast<char32_t>(byte);
  if (!printable(byte)) {
    c = 256;
    for (int b = 0; b < byte; ++b) c += printable(b) ? 0 : 1;
  }
  std::string text;
  AppendUtf8(text, c);
  return text;
}

Json Added(int id, const std::string& content, const Json& flags = Json::object()) {
  Json token = {
      {"id", id},        {"content", content}, {"special", true},    {"single_word", false},
      {"lstrip", false}, {"rstrip", false},    {"normalized", false}};
  token.update(flags);
  return token;
}

Json ByteLevel(bool use_regex) {
  return {{"type", "ByteLevel"},
          {"add_prefix_space", false},
          {"trim_offsets", false},
          {"use_regex", use_regex}};
}

Json SplitBy(const std::string& regex, const std::string& behavior = "Isolated",
             bool invert = false) {
  return {{"type", "Split"},
          {"pattern", {{"Regex", regex}}},
          {"behavior", behavior},
          {"invert", invert}};
}

// Bytes are tokens 0 to 255; 256 he, 257 hel, 258 lo, 259 hello, 260 " w", 261 or.
Json BaseFile() {
  Json vocab = Json::object();
  for (int byte = 0; byte < 256; ++byte) vocab[Spelling(byte)] = byte;
  const std::string space = Spelling(' ');
  int id = 256;
  for (const std::string& token : {std::string("he"), std::string("hel"), std::string("lo"),
                                   std::string("hello"), space + "w", std::string("or")}) {
    vocab[token] = id++;
  }
  return {{"version", "1.0"},
          {"added_tokens", Json::array({Added(300, "<|end|>")})},
          {"normalizer", nullptr},
          {"pre_tokenizer", ByteLevel(true)},
          {"post_processor", nullptr},
          {"decoder", {{"type", "ByteLevel"}}},
          {"model",
           {{"type", "BPE"},
            {"vocab", vocab},
            {"merges", {"h e", "l o", "he l", "hel lo", space + " w", "o r"}}}}};
}

std::shared_ptr<const Tokenizer> Make(const Json& file) {
  auto tokenizer = Tokenizer::FromJson(file.dump(), "tokenizer.json");
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return *tokenizer;
}

// With one part of the base file replaced.
std::shared_ptr<const Tokenizer> MakeWith(const std::string& pointer, const Json& value) {
  Json file = BaseFile();
  file[Json::json_pointer(pointer)] = value;
  return Make(file);
}

std::vector<int32_t> Bytes(const std::string& text) {
  std::vector<int32_t> ids;
  for (const char c : text) ids.push_back(static_cast<uint8_t>(c));
  return ids;
}

TEST(TokenizerTest, MergesInTheOrderOfRanks) {
  const auto tokenizer = Make(BaseFile());
  EXPECT_THAT(tokenizer->Encode("hello"), ElementsAre(259));
  EXPECT_THAT(tokenizer->Encode("hell"), ElementsAre(257, 'l'));
  EXPECT_THAT(tokenizer->Encode("helo"), ElementsAre(256, 258)) << "l o has a lower rank than he l";
  EXPECT_THAT(tokenizer->Encode("hello world"), ElementsAre(259, 260, 261, 'l', 'd'));
}

TEST(TokenizerTest, MergesMayBePairs) {
  Json file = BaseFile();
  file["model"]["merges"] = Json::array({Json::array({"h", "e"}), Json::array({"l", "o"})});
  EXPECT_THAT(Make(file)->Encode("helo"), ElementsAre(256, 258));
}

TEST(TokenizerTest, MergesDoNotCrossPieces) {
  Json file = BaseFile();
  file["pre_tokenizer"] = ByteLevel(true);
  EXPECT_THAT(Make(file)->Encode("he'll"), ElementsAre(256, '\'', 'l', 'l'));
  EXPECT_THAT(Make(file)->Encode("h  w"), ElementsAre('h', ' ', 260))
      << "the last space belongs to the word behind it";
}

TEST(TokenizerTest, IgnoreMergesTakesWholePiecesFromTheVocabulary) {
  Json file = BaseFile();
  file["model"]["merges"] = Json::array({"h e"});
  EXPECT_THAT(Make(file)->Encode("hello"), ElementsAre(256, 'l', 'l', 'o'));
  file["model"]["ignore_merges"] = true;
  EXPECT_THAT(Make(file)->Encode("hello"), ElementsAre(259));
  EXPECT_THAT(Make(file)->Encode("hellos"), ElementsAre(256, 'l', 'l', 'o', 's'));
}

TEST(TokenizerTest, EveryByteSurvives) {
  const auto tokenizer = Make(BaseFile());
  std::string text;
  for (char32_t c = 0; c < 0x3000; ++c) AppendUtf8(text, c);
  EXPECT_EQ(tokenizer->Decode(tokenizer->Encode(text)), text);
  EXPECT_EQ(tokenizer->Encode(""), std::vector<int32_t>());
  EXPECT_EQ(tokenizer->Decode({}), "");
}

TEST(TokenizerTest, InvalidUtf8IsEncodedAsReplacementCharacters) {
  const auto tokenizer = Make(BaseFile());
  EXPECT_EQ(tokenizer->Encode("a\xff"), tokenizer->Encode(std::string("a") + kReplacementText));
  EXPECT_EQ(tokenizer->Decode(Bytes("a\xe2\x82")), std::string("a") + kReplacementText);
}

TEST(TokenizerTest, SplitsWithLookaheadAndCaseFolding) {
  // The pattern of Qwen 2 and 3.
  const auto tokenizer = MakeWith(
      "/pre_tokenizer",
      {{"type", "Sequence"},
       {"pretokenizers",
        {SplitBy(
             R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"),
         ByteLevel(false)}}});
  EXPECT_THAT(tokenizer->Encode("h\nhe wor"), ElementsAre('h', '\n', 256, 260, 261));
  EXPECT_THAT(tokenizer->Encode("he'LL"), ElementsAre(256, '\'', 'L', 'L'));
}

TEST(TokenizerTest, RemovedAndInvertedSplits) {
  const auto sequence = [](const Json& split) {
    return Json{{"type", "Sequence"}, {"pretokenizers", {split, ByteLevel(false)}}};
  };
  EXPECT_THAT(MakeWith("/pre_tokenizer", sequence(SplitBy(",", "Removed")))->Encode("he,l"),
              ElementsAre(256, 'l'));
  EXPECT_THAT(
      MakeWith("/pre_tokenizer", sequence(SplitBy("[a-z]+", "Removed", true)))->Encode("he,l"),
      ElementsAre(256, 'l'));
  EXPECT_THAT(
      MakeWith("/pre_tokenizer", sequence({{"type", "Digits"}, {"individual_digits", true}}))
          ->Encode("he1"),
      ElementsAre(256, '1'));
  EXPECT_THAT(
      MakeWith(
          "/pre_tokenizer",
          sequence({{"type", "Split"}, {"pattern", {{"String", "e.l"}}}, {"behavior", "Isolated"}}))
          ->Encode("hel"),
      ElementsAre(257))
      << "a text is no pattern";
}

TEST(TokenizerTest, PrefixSpaceIsAddedOnce) {
  Json byte_level = ByteLevel(true);
  byte_level["add_prefix_space"] = true;
  const auto tokenizer = MakeWith("/pre_tokenizer", byte_level);
  EXPECT_THAT(tokenizer->Encode("w"), ElementsAre(260));
  EXPECT_THAT(tokenizer->Encode(" w"), ElementsAre(260));
}

TEST(TokenizerTest, NfcComposesBeforeSplitting) {
  const auto tokenizer = MakeWith("/normalizer", {{"type", "NFC"}});
  EXPECT_EQ(tokenizer->Encode("e\xcc\x81"), tokenizer->Encode("\xc3\xa9"));
  EXPECT_EQ(MakeWith("/normalizer", {{"type", "Sequence"}, {"normalizers", {{{"type", "NFC"}}}}})
                ->Decode(tokenizer->Encode("e\xcc\x81")),
            "\xc3\xa9");
  EXPECT_NE(Make(BaseFile())->Encode("e\xcc\x81"), Make(BaseFile())->Encode("\xc3\xa9"));
}

TEST(TokenizerTest, AddedTokensAreFoundAnywhere) {
  const auto tokenizer = Make(BaseFile());
  EXPECT_THAT(tokenizer->Encode("he<|end|>he"), ElementsAre(256, 300, 256));
  EXPECT_THAT(tokenizer->Encode("<|end|><|end|>"), ElementsAre(300, 300));
  EXPECT_THAT(tokenizer->Encode("<|end|").size(), 6u);
}

TEST(TokenizerTest, TheLongestAddedTokenWins) {
  const auto tokenizer = MakeWith(
      "/added_tokens", Json::array({Added(300, "<a"), Added(301, "<a>"), Added(302, "bb")}));
  EXPECT_THAT(tokenizer->Encode("<a>bb<abb"), ElementsAre(301, 302, 300, 302));
}

TEST(TokenizerTest, AddedTokensTakeWhiteSpaceAsTheyAreTold) {
  const auto tokenizer = MakeWith(
      "/added_tokens",
      Json::array({Added(300, "<l>", {{"lstrip", true}}), Added(301, "<r>", {{"rstrip", true}})}));
  EXPECT_THAT(tokenizer->Encode("he \t<l>\nhe"), ElementsAre(256, 300, '\n', 256));
  EXPECT_THAT(tokenizer->Encode("he\n<r> \xc2\xa0he"), ElementsAre(256, '\n', 301, 256));
  EXPECT_THAT(tokenizer->Encode("<r>  <l>"), ElementsAre(301, 300)) << "spaces are taken once";
}

TEST(TokenizerTest, SingleWordTokensStandAlone) {
  const auto tokenizer =
      MakeWith("/added_tokens", Json::array({Added(300, "we", {{"single_word", true}})}));
  EXPECT_THAT(tokenizer->Encode("we"), ElementsAre(300));
  EXPECT_THAT(tokenizer->Encode("-we-"), ElementsAre('-', 300, '-'));
  EXPECT_THAT(tokenizer->Encode("wel"), ElementsAre('w', 'e', 'l'));
  EXPECT_THAT(tokenizer->Encode("\xc3\xa9we"), ElementsAre(0xc3, 0xa9, 'w', 'e'));
}

TEST(TokenizerTest, NormalizedAddedTokensAreFoundInNormalizedText) {
  Json file = BaseFile();
  file["normalizer"] = {{"type", "NFC"}};
  file["added_tokens"] = Json::array({Added(300, "e\xcc\x81", {{"normalized", true}}),
                                      Added(301, "o\xcc\x81", {{"normalized", false}})});
  const auto tokenizer = Make(file);
  EXPECT_THAT(tokenizer->Encode("\xc3\xa9"), ElementsAre(300));
  EXPECT_THAT(tokenizer->Encode("e\xcc\x81"), ElementsAre(300));
  EXPECT_THAT(tokenizer->Encode("o\xcc\x81"), ElementsAre(301));
  EXPECT_THAT(tokenizer->Encode("\xc3\xb3"), ElementsAre(0xc3, 0xb3));
}

TEST(TokenizerTest, TemplatePutsTokensAroundTheText) {
  const Json begin = {{"SpecialToken", {{"id", "<s>"}, {"type_id", 0}}}};
  const Json text = {{"Sequence", {{"id", "A"}, {"type_id", 0}}}};
  const Json end = {{"SpecialToken", {{"id", "</s>"}, {"type_id", 0}}}};
  Json file = BaseFile();
  file["added_tokens"] = Json::array({Added(300, "<s>"), Added(301, "</s>")});
  file["post_processor"] = {
      {"type", "Sequence"},
      {"processors",
       {ByteLevel(true),
        {{"type", "TemplateProcessing"},
         {"single", {begin, text, end}},
         {"pair", Json::array()},
         {"special_tokens", {{"<s>", {{"ids", {300}}}}, {"</s>", {{"ids", {301}}}}}}}}}};
  const auto tokenizer = Make(file);
  EXPECT_THAT(tokenizer->Encode("he"), ElementsAre(300, 256, 301));
  EXPECT_THAT(tokenizer->Encode("he", SpecialTokens::kOmit), ElementsAre(256));
}

TEST(TokenizerTest, DecodingCanLeaveOutSpecialTokens) {
  const auto tokenizer =
      MakeWith("/added_tokens",
               Json::array({Added(300, "<|end|>"), Added(301, "<t>", {{"special", false}})}));
  const std::vector<int32_t> ids = {256, 301, 300};
  EXPECT_EQ(tokenizer->Decode(ids), "he<t><|end|>");
  EXPECT_EQ(tokenizer->Decode(ids, SpecialTokens::kOmit), "he<t>");
}

TEST(TokenizerTest, IdsWithoutATokenDecodeToNothing) {
  const auto tokenizer = Make(BaseFile());
  EXPECT_EQ(tokenizer->Decode(std::vector<int32_t>{-1, 256, 290, 301, 1 << 30}), "he");
}

TEST(TokenizerTest, TellsAboutItsTokens) {
  const auto tokenizer = Make(BaseFile());
  EXPECT_EQ(tokenizer->vocab_size(), 301);
  EXPECT_EQ(tokenizer->IdOf("<|end|>"), 300);
  EXPECT_EQ(tokenizer->IdOf("no such token"), std::nullopt);
  EXPECT_EQ(tokenizer->BytesOf(260), " w");
  EXPECT_EQ(tokenizer->BytesOf(-1), "");
  EXPECT_TRUE(tokenizer->IsSpecial(300));
  EXPECT_FALSE(tokenizer->IsSpecial(256));
  EXPECT_FALSE(tokenizer->IsSpecial(1 << 30));
}

TEST(TokenizerTest, LongPiecesTakeLittleTime) {
  const auto tokenizer = Make(BaseFile());
  std::string text;
  for (int i = 0; i < 200'000; ++i) text += "hel";
  EXPECT_EQ(tokenizer->Encode(text).size(), 200'000u);
}

TEST(TokenizerTest, CanBeUsedFromManyThreads) {
  const auto tokenizer = Make(BaseFile());
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&tokenizer] {
      for (int k = 0; k < 200; ++k) EXPECT_EQ(tokenizer->Encode("hello world").size(), 5u);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(StreamingDecoderTest, NeverSplitsACodePoint) {
  const auto tokenizer = Make(BaseFile());
  StreamingDecoder decoder(tokenizer, SpecialTokens::kInclude);
  EXPECT_EQ(decoder.Push(0xf0), "");
  EXPECT_EQ(decoder.Push(0x9f), "");
  EXPECT_EQ(decoder.Push(0x98), "");
  EXPECT_EQ(decoder.Push(0x80), "\xf0\x9f\x98\x80");
  EXPECT_EQ(decoder.Finish(), "");
}

TEST(StreamingDecoderTest, JoinedPiecesAreWhatDecodeGives) {
  const auto tokenizer = Make(BaseFile());
  const std::string bytes = "a\xf0\x9f\x98z\xff\xe2\x82\xac\xe2\x82";
  StreamingDecoder decoder(tokenizer, SpecialTokens::kInclude);
  std::string joined;
  for (const int32_t id : Bytes(bytes)) joined += decoder.Push(id);
  joined += decoder.Finish();
  EXPECT_EQ(joined, tokenizer->Decode(Bytes(bytes)));
}

TEST(StreamingDecoderTest, LeavesOutSpecialTokens) {
  StreamingDecoder decoder(Make(BaseFile()), SpecialTokens::kOmit);
  EXPECT_EQ(decoder.Push(256), "he");
  EXPECT_EQ(decoder.Push(300), "");
}

// ---- what is refused

absl::Status Refusal(const std::string& pointer, const Json& value) {
  Json file = BaseFile();
  file[Json::json_pointer(pointer)] = value;
  return Tokenizer::FromJson(file.dump(), "m/tokenizer.json").status();
}

void ExpectUnsupported(const std::string& pointer, const Json& value, const std::string& message) {
  const absl::Status status = Refusal(pointer, value);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented) << status;
  EXPECT_EQ(ReasonOf(status), "UNSUPPORTED_TOKENIZER");
  EXPECT_THAT(std::string(status.message()), HasSubstr("m/tokenizer.json: "));
  EXPECT_THAT(std::string(status.message()), HasSubstr(message));
}

void ExpectMalformed(const std::string& pointer, const Json& value, const std::string& message) {
  const absl::Status status = Refusal(pointer, value);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_EQ(ReasonOf(status), "INVALID_TOKENIZER");
  EXPECT_THAT(std::string(status.message()), HasSubstr("m/tokenizer.json"));
  EXPECT_THAT(std::string(status.message()), HasSubstr(message));
}

TEST(TokenizerFileTest, NamesWhatIsNotSupported) {
  ExpectUnsupported("/model/type", "Unigram", "model type Unigram; only byte-level BPE");
  ExpectUnsupported("/model/type", "WordPiece", "model type WordPiece");
  ExpectUnsupported("/model/byte_fallback", true, "model.byte_fallback = true");
  ExpectUnsupported("/model/dropout", 0.1, "model.dropout = 0.1");
  ExpectUnsupported("/model/continuing_subword_prefix", "##", "continuing_subword_prefix");
  ExpectUnsupported("/model/end_of_word_suffix", "</w>", "end_of_word_suffix");
  ExpectUnsupported("/normalizer", {{"type", "Lowercase"}}, "normalizer type Lowercase");
  ExpectUnsupported("/pre_tokenizer", {{"type", "Metaspace"}}, "pre_tokenizer type Metaspace");
  ExpectUnsupported("/pre_tokenizer", nullptr, "without ByteLevel");
  ExpectUnsupported("/pre_tokenizer", SplitBy("x", "MergedWithNext"), "behavior MergedWithNext");
  ExpectUnsupported("/pre_tokenizer",
                    {{"type", "Sequence"}, {"pretokenizers", {ByteLevel(false), SplitBy("x")}}},
                    "Split behind ByteLevel");
  ExpectUnsupported("/decoder", {{"type", "WordPiece"}}, "decoder type WordPiece");
  ExpectUnsupported("/post_processor", {{"type", "BertProcessing"}}, "type BertProcessing");
}

TEST(TokenizerFileTest, SaysWhatIsMalformed) {
  ExpectMalformed("/model", nullptr, "");
  ExpectMalformed("/model/vocab", Json::array(), "model.vocab is not an object");
  ExpectMalformed("/model/vocab/a", 97.5, "the id of 'a' is not a whole number");
  ExpectMalformed("/model/vocab/a", -1, "token 'a' has id -1");
  ExpectMalformed("/model/vocab/a", 1 << 20, "ids go from 0 to");
  ExpectMalformed("/model/vocab/zz", 98, "id 98 belongs to two tokens");
  ExpectMalformed("/model/merges", "x", "model.merges is not a list");
  ExpectMalformed("/model/merges/0", "he", "is no pair of tokens");
  ExpectMalformed("/model/merges/0", 7, "model.merges[0] = 7 is no pair");
  ExpectMalformed("/model/merges/0", "h x", "needs a token that model.vocab does not have");
  ExpectMalformed("/added_tokens", 3, "added_tokens is not a list");
  ExpectMalformed("/added_tokens/0", Added(5, "<|end|>"), "id 5 belongs to two tokens");
  ExpectMalformed("/added_tokens/0", Added(300, "a"), "token 'a' has two ids, 97 and 300");
  ExpectMalformed("/added_tokens/0", Added(300, ""), "empty token");
  ExpectMalformed("/pre_tokenizer", SplitBy("(x"), "pattern '(x' is wrong");
  ExpectMalformed("/post_processor",
                  {{"type", "TemplateProcessing"},
                   {"single", {{{"SpecialToken", {{"id", "<s>"}}}}}},
                   {"special_tokens", {{"<s>", {{"ids", {999}}}}}}},
                  "'<s>' has id 999, which no token has");
}

TEST(TokenizerFileTest, AVocabularyWithoutEveryByteIsRefused) {
  Json file = BaseFile();
  file["model"]["vocab"].erase("a");
  const absl::Status status = Tokenizer::FromJson(file.dump(), "t").status();
  EXPECT_THAT(std::string(status.message()), HasSubstr("no token for byte 97"));
}

TEST(TokenizerFileTest, TextThatIsNoJsonSaysWhere) {
  const std::string whole = BaseFile().dump();
  for (const std::string& text :
       {std::string(), std::string("nope"), std::string("[1]"), whole.substr(0, whole.size() / 2),
        std::string(100000, '['), std::string("\xff\xfe")}) {
    const absl::Status status = Tokenizer::FromJson(text, "m/tokenizer.json").status();
    EXPECT_EQ(ReasonOf(status), "INVALID_TOKENIZER") << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("m/tokenizer.json: "));
  }
}

}  // namespace
}  // namespace halfstep
