// SPDX-License-Identifier: Apache-2.0
// Fatal checks for broken invariants: they print file, line and both values, then abort. Mistakes
// of users, files and networks are absl::Status in the layers above, never a check.
#pragma once

#include <sstream>
#include <string>

namespace halfstep {

[[noreturn]] void CheckFailed(const char* expression, const std::string& detail, const char* file,
                              int line);

namespace internal {
template <class A, class B>
[[noreturn]] void CheckOpFailed(const char* expression, const A& a, const B& b, const char* file,
                                int line) {
  std::ostringstream detail;
  detail << a << " vs. " << b;
  CheckFailed(expression, detail.str(), file, line);
}
}  // namespace internal
}  // namespace halfstep

#define HALFSTEP_CHECK(condition)                                  \
  do {                                                             \
    if (!(condition)) [[unlikely]]                                 \
      ::halfstep::CheckFailed(#condition, "", __FILE__, __LINE__); \
  } while (false)

#define HALFSTEP_CHECK_OP_(op, a, b)                                                        \
  do {                                                                                      \
    if (!((a)op(b))) [[unlikely]]                                                           \
      ::halfstep::internal::CheckOpFailed(#a " " #op " " #b, (a), (b), __FILE__, __LINE__); \
  } while (false)

#define HALFSTEP_CHECK_EQ(a, b) HALFSTEP_CHECK_OP_(==, a, b)
#define HALFSTEP_CHECK_NE(a, b) HALFSTEP_CHECK_OP_(!=, a, b)
#define HALFSTEP_CHECK_LE(a, b) HALFSTEP_CHECK_OP_(<=, a, b)
#define HALFSTEP_CHECK_LT(a, b) HALFSTEP_CHECK_OP_(<, a, b)
#define HALFSTEP_CHECK_GE(a, b) HALFSTEP_CHECK_OP_(>=, a, b)
#define HALFSTEP_CHECK_GT(a, b) HALFSTEP_CHECK_OP_(>, a, b)
