// SPDX-License-Identifier: Apache-2.0
#include "cli/html_page.h"

#include "absl/strings/str_cat.h"
#include "cli/report/html_text.h"
#include "cli/report/svg_plot.h"

namespace halfstep {
namespace {

constexpr char kStyle[] =
    ":root{color-scheme:light dark;--paper:#fff}"
    "@media (prefers-color-scheme:dark){:root{--paper:#15181b}}\n"
    "body{font-family:system-ui,sans-serif;max-width:1400px;margin:2em auto;padding:0 1em;"
    "color:var(--ink);background:var(--paper);line-height:1.45}"
    "table{border-collapse:collapse;font-size:13px;margin:1em 0}"
    "th,td{padding:3px 10px;border-bottom:1px solid var(--faint);text-align:right;"
    "font-variant-numeric:tabular-nums}"
    "th:first-child,td:first-child{text-align:left}"
    ".figure{max-width:900px}"
    ".figures{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,380px),1fr));"
    "gap:18px}"
    "p{max-width:80ch}\n";

}  // namespace

HtmlPage::HtmlPage(const std::string& title) : title_(EscapeHtml(title)) {}

void HtmlPage::AddHeading(const std::string& text) {
  absl::StrAppend(&body_, "<h2>", EscapeHtml(text), "</h2>\n");
}

void HtmlPage::AddParagraph(const std::string& text) {
  absl::StrAppend(&body_, "<p>", EscapeHtml(text), "</p>\n");
}

void HtmlPage::AddTable(const std::vector<std::vector<std::string>>& rows) {
  absl::StrAppend(&body_, "<table>\n");
  for (size_t i = 0; i < rows.size(); ++i) {
    const char* const tag = i == 0 ? "th" : "td";
    absl::StrAppend(&body_, "<tr>");
    for (const std::string& cell : rows[i]) {
      absl::StrAppend(&body_, "<", tag, ">", EscapeHtml(cell), "</", tag, ">");
    }
    absl::StrAppend(&body_, "</tr>\n");
  }
  absl::StrAppend(&body_, "</table>\n");
}

void HtmlPage::AddFigure(const std::string& svg) {
  absl::StrAppend(&body_, "<div class=\"figure\">\n", svg, "</div>\n");
}

void HtmlPage::AddFigures(const std::vector<std::string>& svgs) {
  absl::StrAppend(&body_, "<div class=\"figures\">\n");
  for (const std::string& svg : svgs) absl::StrAppend(&body_, svg);
  absl::StrAppend(&body_, "</div>\n");
}

std::string HtmlPage::ToHtml() const {
  return absl::StrCat(
      "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
      "<meta name=\"viewport\" content=\"width=device-width\"><title>",
      title_, "</title>\n<style>\n", ChartColours(), kStyle, ChartStyle(),
      "</style></head><body>\n<h1>", title_, "</h1>\n", body_, "</body></html>\n");
}

}  // namespace halfstep
