// SPDX-License-Identifier: Apache-2.0
#include "cli/response_printer.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace halfstep {
namespace {

using Json = nlohmann::ordered_json;

}  // namespace

ResponsePrinter::ResponsePrinter(const GenerateOrder* order, const ResponseFormat& format,
                                 std::ostream* out)
    : order_(*order),
      format_(format),
      out_(*out),
      streaming_(format.format == OutputFormat::kTable && order->prompts.size() == 1 &&
                 order->samples == 1),
      responses_(order->prompts.size() * order->samples) {}

ResponsePrinter::~ResponsePrinter() {
  if (line_begun_) out_ << std::endl;
}

void ResponsePrinter::OnPiece(const Piece& piece) {
  Response& response = responses_[piece.prompt * order_.samples + piece.index];
  for (size_t i = 0; i < piece.tokens.size(); ++i) {
    response.parts.push_back({piece.tokens[i], i < piece.log_probs.size() ? piece.log_probs[i] : 0,
                              i == 0 ? piece.text : ""});
  }
  if (piece.tokens.empty() && !piece.text.empty()) {
    response.parts.push_back({std::nullopt, 0, piece.text});
  }
  if (piece.finish_reason) response.finish_reason = piece.finish_reason;
  if (streaming_ && !piece.text.empty()) {
    out_ << piece.text << std::flush;
    line_begun_ = true;
  }
  while (next_ < responses_.size() && responses_[next_].finish_reason) {
    Print(next_, std::exchange(responses_[next_], {}));
    ++next_;
  }
}

void ResponsePrinter::Print(size_t number, const Response& response) {
  if (format_.format == OutputFormat::kJson) {
    PrintJson(number, response);
    return;
  }
  if (!streaming_) {
    size_t tokens = 0;
    for (const Part& part : response.parts) tokens += part.token.has_value();
    const std::string& place = order_.prompts[number / order_.samples].place;
    out_ << "--- " << place << (place.empty() ? "" : ", ") << "sample " << number % order_.samples
         << " (" << Name(*response.finish_reason) << ", " << tokens << " tokens)\n";
    for (const Part& part : response.parts) out_ << part.text;
  }
  out_ << std::endl;
  line_begun_ = false;
  if (format_.log_probs) PrintLogProbs(response);
}

void ResponsePrinter::PrintJson(size_t number, const Response& response) {
  std::string text;
  Json tokens = Json::array(), log_probs = Json::array();
  for (const Part& part : response.parts) {
    text += part.text;
    if (!part.token) continue;
    tokens.push_back(*part.token);
    log_probs.push_back(part.log_prob);
  }
  Json line = {{"prompt", order_.prompts[number / order_.samples].text},
               {"index", number % order_.samples},
               {"response", text},
               {"tokens", std::move(tokens)}};
  if (format_.log_probs) line["log_probs"] = std::move(log_probs);
  line["finish_reason"] = Name(*response.finish_reason);
  out_ << line.dump(-1, ' ', false, Json::error_handler_t::replace) << std::endl;
}

void ResponsePrinter::PrintLogProbs(const Response& response) {
  std::vector<std::vector<std::string>> rows = {{"TOKEN", "LOG-PROB", "TEXT"}};
  for (const Part& part : response.parts) {
    if (!part.token) continue;
    rows.push_back({absl::StrCat(*part.token), absl::StrFormat("%.6f", part.log_prob),
                    absl::Utf8SafeCEscape(part.text)});
  }
  PrintTable(rows, out_);
}

}  // namespace halfstep
