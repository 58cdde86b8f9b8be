// SPDX-License-Identifier: Apache-2.0
#include "common/base/json.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/utf8.h"

namespace halfstep {
namespace {

// Leaves the parser from within, before it has built what a limit forbids.
struct LimitExceeded {
  std::string message;
};

// The parser's callback.
template <class Json>
class Watch {
 public:
  explicit Watch(const JsonLimits& limits) : limits_(limits) {}

  bool operator()(int depth, typename Json::parse_event_t event, Json& parsed) {
    using Event = typename Json::parse_event_t;
    const bool opens = event == Event::object_start || event == Event::array_start;
    if (opens && depth >= limits_.max_depth) {
      throw LimitExceeded{absl::StrCat("is nested more than ", limits_.max_depth, " deep")};
    }
    if (!limits_.unique_keys) return true;
    if (event == Event::object_start) keys_.emplace_back();
    if (event == Event::object_end) keys_.pop_back();
    if (event == Event::key && !keys_.back().insert(parsed.template get<std::string>()).second) {
      throw LimitExceeded{absl::StrCat("holds ", parsed.dump(), " twice")};
    }
    return true;
  }

 private:
  const JsonLimits limits_;
  std::vector<std::set<std::string>> keys_;  // of the objects that are open
};

template <class Json>
absl::StatusOr<Json> Parse(std::string_view text, const JsonLimits& limits) {
  try {
    return Json::parse(text.begin(), text.end(), Watch<Json>(limits));
  } catch (const LimitExceeded& limit) {
    return absl::InvalidArgumentError(limit.message);
  } catch (const nlohmann::detail::exception& error) {
    std::string_view what = error.what();  // "[json.exception.parse_error.101] parse error at ..."
    what.remove_prefix(std::min(what.size(), what.find("] ") + 2));
    return absl::InvalidArgumentError(
        absl::StrCat("is not valid JSON: ", ToUtf8({what.data(), what.size()})));
  }
}

}  // namespace

absl::StatusOr<nlohmann::json> ParseJson(std::string_view text, const JsonLimits& limits) {
  return Parse<nlohmann::json>(text, limits);
}

absl::StatusOr<nlohmann::ordered_json> ParseOrderedJson(std::string_view text,
                                                        const JsonLimits& limits) {
  return Parse<nlohmann::ordered_json>(text, limits);
}

}  // namespace halfstep
