// SPDX-License-Identifier: Apache-2.0
// Log lines of key=value pairs on standard error:
//   time=2025-01-31T12:00:00.000Z level=info program=halfstep-learner msg="step finished" step=3
#pragma once

#include <initializer_list>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace halfstep {

enum class LogLevel { kDebug, kInfo, kWarning, kError };

// One key=value pair; the value is anything absl::StrCat takes.
struct LogField {
  template <class T>
  LogField(absl::string_view name, const T& v) : key(name), value(absl::StrCat(v)) {}
  absl::string_view key;
  std::string value;
};

// Call once, first thing in main. `level`: debug, info, warning or error; INVALID_ARGUMENT
// otherwise. Before (and in tests) lines of level info and above are written without a program.
absl::Status InitLogging(const std::string& program, const std::string& level);

// Thread-safe. Secrets never belong into a line.
void Log(LogLevel level, const std::string& message, std::initializer_list<LogField> fields = {});

inline void LogDebug(const std::string& message, std::initializer_list<LogField> fields = {}) {
  Log(LogLevel::kDebug, message, fields);
}
inline void LogInfo(const std::string& message, std::initializer_list<LogField> fields = {}) {
  Log(LogLevel::kInfo, message, fields);
}
inline void LogWarning(const std::string& message, std::initializer_list<LogField> fields = {}) {
  Log(LogLevel::kWarning, message, fields);
}
inline void LogError(const std::string& message, std::initializer_list<LogField> fields = {}) {
  Log(LogLevel::kError, message, fields);
}

// What follows the level in a line: msg="..." key=value ..., quoted where a value needs it, so that
// no value can start a new line or pair.
std::string FormatLogLine(const std::string& message, std::initializer_list<LogField> fields);

}  // namespace halfstep
