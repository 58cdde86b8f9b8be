// SPDX-License-Identifier: Apache-2.0
// Cutting a text into the pieces within which tokens are merged.
#pragma once

#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "common/base/regex.h"

namespace halfstep {

// One step: every piece is cut at the matches of a pattern.
struct SplitStep {
  enum class Keep {
    kAll,      // matches and what lies between become pieces
    kMatches,  // only the matches do
    kBetween,  // only what lies between does
  };
  Regex pattern;
  Keep keep = Keep::kAll;
};

// A step that puts a space before every piece that does not start with one.
struct PrefixSpaceStep {};

// Steps in order. Immutable; thread-safe.
class PreTokenizer {
 public:
  void Add(SplitStep step);
  void Add(PrefixSpaceStep step);

  // The pieces of `text`, which is valid UTF-8. A pattern that meets a limit on a piece leaves it
  // whole.
  std::vector<std::string> Split(absl::string_view text) const;

 private:
  struct Step {
    bool prefix_space = false;
    std::vector<SplitStep> split;  // one, unless prefix_space
  };
  std::vector<Step> steps_;
};

}  // namespace halfstep
