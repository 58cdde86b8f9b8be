// SPDX-License-Identifier: Apache-2.0
// A tokenizer of one token per byte (its value) and one that ends a response, as the demo's.
#pragma once

#include <memory>
#include <string>

#include "common/base/utf8.h"
#include "common/tokenizer/tokenizer.h"

namespace halfstep {

inline constexpr int32_t kByteTokenizerEnd = 256;  // "<|endoftext|>"

// Its tokenizer.json.
inline std::string ByteTokenizerJson() {
  std::string vocab;
  int stand_in = 256;
  for (int byte = 0; byte < 256; ++byte) {
    const bool printable =
        (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
    std::string spelling;
    AppendUtf8(spelling, static_cast<char32_t>(printable ? byte : stand_in++));
    const bool escaped = byte == '"' || byte == '\\';
    vocab += std::string(byte == 0 ? "" : ",") + (escaped ? "\"\\" : "\"") + spelling +
             "\":" + std::to_string(byte);
  }
  return R"({"added_tokens":[{"id":256,"content":"<|endoftext|>","special":true}],)"
         R"("pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false,"use_regex":false},)"
         R"("model":{"type":"BPE","merges":[],"vocab":{)" +
         vocab + "}}}";
}

inline std::shared_ptr<const Tokenizer> MakeByteTokenizer() {
  return *Tokenizer::FromJson(ByteTokenizerJson(), "byte tokenizer");
}

}  // namespace halfstep
