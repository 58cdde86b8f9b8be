// SPDX-License-Identifier: Apache-2.0
// Finding the name somebody probably meant.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace halfstep {

// Insertions, deletions, replacements and swaps of neighbours that turn `a` into `b`.
size_t EditDistance(const std::string& a, const std::string& b);

// The candidate nearest to `name` (the first of equals), or "" when none is close enough to be
// meant.
std::string Nearest(const std::string& name, const std::vector<std::string>& candidates);

// "; did you mean 'x'?", or "" when nothing is near.
std::string DidYouMean(const std::string& name, const std::vector<std::string>& candidates);

}  // namespace halfstep
