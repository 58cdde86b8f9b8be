// SPDX-License-Identifier: Apache-2.0
// Responses as people and programs read them, in the order of prompts and samples.
#pragma once

#include <optional>
#include <ostream>
#include <string>
#include <vector>

#include "cli/console.h"
#include "cli/generator.h"

namespace halfstep {

struct ResponseFormat {
  OutputFormat format = OutputFormat::kTable;
  bool log_probs = false;
};

// A single response for people is shown as it comes, several once each is whole and its turn has
// come. For programs: an object per response and line {prompt, index, response, tokens, log_probs
// (where asked for), finish_reason}. Not thread-safe.
class ResponsePrinter {
 public:
  // Both must outlive it.
  ResponsePrinter(const GenerateOrder* order, const ResponseFormat& format, std::ostream* out);
  // Ends a line that was begun.
  ~ResponsePrinter();
  ResponsePrinter(const ResponsePrinter&) = delete;
  ResponsePrinter& operator=(const ResponsePrinter&) = delete;

  void OnPiece(const Piece& piece);

 private:
  // A token with the text that came with it, or the text that came without one.
  struct Part {
    std::optional<int32_t> token;
    float log_prob = 0;
    std::string text;
  };
  struct Response {
    std::vector<Part> parts;
    std::optional<FinishReason> finish_reason;
  };

  void Print(size_t number, const Response& response);
  void PrintJson(size_t number, const Response& response);
  void PrintLogProbs(const Response& response);

  const GenerateOrder& order_;
  const ResponseFormat format_;
  std::ostream& out_;
  const bool streaming_;
  bool line_begun_ = false;
  std::vector<Response> responses_;  // by prompt, then sample; emptied once printed
  size_t next_ = 0;                  // to be printed
};

}  // namespace halfstep
