// SPDX-License-Identifier: Apache-2.0
#include "cli/report/html_text.h"

#include "common/base/utf8.h"

namespace halfstep {

std::string EscapeHtml(absl::string_view text) {
  std::string out;
  while (!text.empty()) {
    const Utf8Step step = ReadUtf8(text);
    text.remove_prefix(step.size);
    const char32_t c = step.code_point;
    const bool control = (c < 0x20 && c != '\t' && c != '\n') || (c >= 0x7f && c < 0xa0);
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default:
        AppendUtf8(out, control ? kReplacement : c);
    }
  }
  return out;
}

}  // namespace halfstep
