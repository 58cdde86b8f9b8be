// SPDX-License-Identifier: Apache-2.0
// Logging by spdlog.
#include "common/base/logging.h"

#include <spdlog/logger.h>
#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/stdout_sinks.h>

#include <memory>

#include "absl/strings/escaping.h"
#include "common/base/nearest.h"

namespace halfstep {
namespace {

void SetPattern(spdlog::logger& logger, const std::string& program) {
  const std::string pattern =
      absl::StrCat("time=%Y-%m-%dT%H:%M:%S.%eZ level=%l ",
                   program.empty() ? "" : absl::StrCat("program=", program, " "), "%v");
  logger.set_formatter(
      std::make_unique<spdlog::pattern_formatter>(pattern, spdlog::pattern_time_type::utc));
}

// The one logger: standard error is one per process too.
spdlog::logger& Logger() {
  static const std::unique_ptr<spdlog::logger> logger = [] {
    auto made = std::make_unique<spdlog::logger>("halfstep",
                                                 std::make_shared<spdlog::sinks::stderr_sink_mt>());
    SetPattern(*made, "");
    made->flush_on(spdlog::level::trace);
    return made;
  }();
  return *logger;
}

spdlog::level::level_enum SpdlogLevel(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return spdlog::level::debug;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kWarning:
      return spdlog::level::warn;
    case LogLevel::kError:
      return spdlog::level::err;
  }
  return spdlog::level::info;
}

bool NeedsQuotes(const std::string& value) {
  if (value.empty()) return true;
  for (const char c : value) {
    if (c <= ' ' || c == '"' || c == '=' || c == '\\' || c == '\x7f') return true;
  }
  return false;
}

void AppendValue(std::string& line, const std::string& value) {
  if (NeedsQuotes(value)) {
    absl::StrAppend(&line, "\"", absl::Utf8SafeCEscape(value), "\"");
  } else {
    line += value;
  }
}

}  // namespace

absl::Status InitLogging(const std::string& program, const std::string& level) {
  static const std::vector<std::string> names = {"debug", "info", "warning", "error"};
  constexpr LogLevel kLevels[] = {LogLevel::kDebug, LogLevel::kInfo, LogLevel::kWarning,
                                  LogLevel::kError};
  for (size_t i = 0; i < names.size(); ++i) {
    if (level != names[i]) continue;
    SetPattern(Logger(), program);
    Logger().set_level(SpdlogLevel(kLevels[i]));
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat("unknown log level '", level,
                                                 "': debug, info, warning or error are accepted",
                                                 DidYouMean(level, names)));
}

std::string FormatLogLine(const std::string& message, std::initializer_list<LogField> fields) {
  std::string line = "msg=";
  AppendValue(line, message);
  for (const LogField& field : fields) {
    absl::StrAppend(&line, " ", field.key, "=");
    AppendValue(line, field.value);
  }
  return line;
}

void Log(LogLevel level, const std::string& message, std::initializer_list<LogField> fields) {
  const spdlog::level::level_enum spdlog_level = SpdlogLevel(level);
  if (!Logger().should_log(spdlog_level)) return;
  Logger().log(spdlog_level, spdlog::string_view_t(FormatLogLine(message, fields)));
}

}  // namespace halfstep
