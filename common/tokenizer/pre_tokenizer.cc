// SPDX-License-Identifier: Apache-2.0
// Splitting by regular expressions.
#include "common/tokenizer/pre_tokenizer.h"

#include <utility>

namespace halfstep {
namespace {

void Cut(const SplitStep& step, const std::string& piece, std::vector<std::string>& out) {
  const auto add = [&out, &piece](size_t begin, size_t end) {
    if (begin < end) out.push_back(piece.substr(begin, end - begin));
  };
  const size_t size_before = out.size();
  size_t done = 0;
  RegexScan scan(step.pattern, piece);
  while (true) {
    const absl::StatusOr<bool> found = scan.Next();
    if (!found.ok()) {
      out.resize(size_before);
      out.push_back(piece);
      return;
    }
    if (!*found) break;
    const RegexScan::Span match = scan.group(0);
    if (step.keep != SplitStep::Keep::kMatches) add(done, match.begin);
    if (step.keep != SplitStep::Keep::kBetween) add(match.begin, match.end);
    done = match.end;
  }
  if (step.keep != SplitStep::Keep::kMatches) add(done, piece.size());
}

}  // namespace

void PreTokenizer::Add(SplitStep step) { steps_.push_back({false, {std::move(step)}}); }

void PreTokenizer::Add(PrefixSpaceStep) { steps_.push_back({true, {}}); }

std::vector<std::string> PreTokenizer::Split(absl::string_view text) const {
  std::vector<std::string> pieces = {std::string(text)};
  for (const Step& step : steps_) {
    std::vector<std::string> next;
    for (std::string& piece : pieces) {
      if (!step.prefix_space) {
        Cut(step.split[0], piece, next);
      } else {
        next.push_back(piece[0] == ' ' ? std::move(piece) : " " + piece);
      }
    }
    pieces = std::move(next);
  }
  return pieces;
}

}  // namespace halfstep
