// SPDX-License-Identifier: Apache-2.0
#include "cli/svg_chart.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "cli/html_page.h"

namespace halfstep {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Le;
using ::testing::Not;
using ::testing::SizeIs;

std::vector<std::string> TickNames(const ChartAxis& axis) {
  std::vector<std::string> names;
  for (const auto& [value, name] : ChooseTicks(axis)) names.push_back(name);
  return names;
}

TEST(ChooseTicksTest, AreRoundNumbersWithinTheAxis) {
  EXPECT_THAT(TickNames({.low = 0, .high = 1}), ElementsAre("0", "0.2", "0.4", "0.6", "0.8", "1"));
  EXPECT_THAT(TickNames({.low = -0.3, .high = 0.3}),
              ElementsAre("-0.3", "-0.2", "-0.1", "0", "0.1", "0.2", "0.3"));
  EXPECT_THAT(TickNames({.low = 3, .high = 128}),
              ElementsAre("20", "40", "60", "80", "100", "120"));
  EXPECT_THAT(TickNames({.low = 0, .high = 2e-6}), SizeIs(Le(8u)));
}

TEST(ChooseTicksTest, AreDecadesOnALogarithmicAxis) {
  EXPECT_THAT(TickNames({.low = 1e-3, .high = 1, .log = true}),
              ElementsAre("1e-3", "1e-2", "1e-1", "1e0"));
  EXPECT_THAT(TickNames({.low = 1e-20, .high = 1, .log = true}), SizeIs(Le(8u)));
}

// A plot of 100 by 100 pixels, from (80, 128) at the lower left.
ChartOptions Square() {
  ChartOptions options;
  options.title = "a < b";
  options.width = 80 + 100 + 14;
  options.height = 28 + 100 + 44;
  return options;
}

TEST(SvgChartTest, MapsValuesToPixels) {
  SvgChart chart(Square());
  chart.AddLine({{0, 0}, {0.5, 0.25}, {1, 1}}, "#123456");
  EXPECT_THAT(chart.ToSvg(), HasSubstr("points=\"80.00,128.00 130.00,103.00 180.00,28.00 \""));

  ChartOptions decades = Square();
  decades.x = {.label = "p", .low = 1e-4, .high = 1, .log = true};
  SvgChart logarithmic(std::move(decades));
  logarithmic.AddDot({0.01, 0}, "#123456", "");
  EXPECT_THAT(logarithmic.ToSvg(), HasSubstr("cx=\"130.00\" cy=\"128.00\""));
}

TEST(SvgChartTest, KeepsToThePlot) {
  SvgChart chart(Square());
  const double nan = std::numeric_limits<double>::quiet_NaN();
  chart.AddLine({{-5, 7}, {nan, 0}, {0.5, std::numeric_limits<double>::infinity()}}, "#123456");
  chart.AddDot({nan, 0}, "#123456", "nowhere");
  chart.AddRectangle({0.5, 0}, {9, 0.5}, "#123456", 0.5);
  EXPECT_THAT(chart.ToSvg(),
              AllOf(HasSubstr("points=\"80.00,28.00 \""), Not(HasSubstr("nowhere")),
                    HasSubstr("x=\"130.00\" y=\"78.00\" width=\"50.00\" height=\"50.00\"")));
}

TEST(SvgChartTest, EscapesTexts) {
  SvgChart chart(Square());
  chart.AddDot({0, 0}, "#123456", "x & y");
  chart.AddLegend("#123456", "<script>");
  EXPECT_THAT(chart.ToSvg(), AllOf(HasSubstr("a &lt; b"), HasSubstr("<title>x &amp; y</title>"),
                                   HasSubstr("&lt;script&gt;"), Not(HasSubstr("<script>"))));
}

TEST(SvgChartTest, DrawsWhatIsAddedLaterOnTop) {
  SvgChart chart(Square());
  chart.AddBand({{0, 0, 0.5}, {1, 0.5, 1}}, "#111111");
  chart.AddDashedLine({{0, 0}, {1, 1}}, "#222222");
  const std::string svg = chart.ToSvg();
  EXPECT_THAT(svg, HasSubstr("points=\"80.00,78.00 180.00,28.00 180.00,78.00 80.00,128.00 \""));
  ASSERT_NE(svg.find("#222222"), std::string::npos);
  EXPECT_LT(svg.find("#111111"), svg.find("#222222"));
}

TEST(HtmlPageTest, IsOneFileThatNeedsNothingElse) {
  HtmlPage page("runs of <me>");
  page.AddHeading("A & B");
  page.AddParagraph("1 < 2");
  page.AddTable({{"name", "value"}, {"\"x\"", "3"}});
  page.AddFigures({"<svg/>"});
  const std::string html = page.ToHtml();
  EXPECT_THAT(html, HasSubstr("<title>runs of &lt;me&gt;</title>"));
  EXPECT_THAT(html, HasSubstr("<h2>A &amp; B</h2>"));
  EXPECT_THAT(html, HasSubstr("<p>1 &lt; 2</p>"));
  EXPECT_THAT(html, HasSubstr("<tr><th>name</th><th>value</th></tr>"));
  EXPECT_THAT(html, HasSubstr("<tr><td>&quot;x&quot;</td><td>3</td></tr>"));
  EXPECT_THAT(html, HasSubstr("<svg/>"));
  for (const char* outside : {"http:", "https:", "<script", "<link", "@import", "url("}) {
    EXPECT_THAT(html, Not(HasSubstr(outside)));
  }
}

}  // namespace
}  // namespace halfstep
