// SPDX-License-Identifier: Apache-2.0
// A report as one HTML file that needs nothing else: no script, no network. It has a light and a
// dark look, as the charts of cli/report do.
#pragma once

#include <string>
#include <vector>

namespace halfstep {

// Text is escaped. Not thread-safe.
class HtmlPage {
 public:
  explicit HtmlPage(const std::string& title);

  void AddHeading(const std::string& text);
  void AddParagraph(const std::string& text);
  // Rows of cells, the first being the head.
  void AddTable(const std::vector<std::vector<std::string>>& rows);
  // A chart over the width of the page.
  void AddFigure(const std::string& svg);
  // Charts side by side as far as there is room.
  void AddFigures(const std::vector<std::string>& svgs);

  std::string ToHtml() const;

 private:
  const std::string title_;
  std::string body_;
};

}  // namespace halfstep
