// SPDX-License-Identifier: Apache-2.0
#include "cli/report/svg_plot.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <string>

#include "cli/html_page.h"

namespace halfstep {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

// Marks go from (50, 132) at the lower left to (150, 32) at the upper right; both axes from 0 to 1.
PlotOptions Square() {
  const Axis axis{AxisScale::kLinear, {0, 1}};
  return {.title = "a < b",
          .x = {.axis = axis},
          .y = {.axis = axis},
          .width = 50 + 100 + 22,
          .height = 100,
          .left = 50};
}

TEST(SvgPlotTest, MapsValuesToTheViewBox) {
  SvgPlot plot(Square());
  plot.AddLine({{0, 0}, {0.5, 0.25}, {1, 1}}, 3, LineStyle::kDotted);
  plot.AddRectangle({0.5, 0}, {1, 0.5}, 2, 0.5);
  EXPECT_THAT(plot.ToSvg(),
              AllOf(HasSubstr("<polyline class=\"l3\" points=\"50.0,132.0 100.0,107.0 150.0,32.0 \""
                              " stroke-dasharray=\"2 3\"/>"),
                    HasSubstr("<rect class=\"f2\" x=\"100.0\" y=\"82.0\" width=\"50.0\" "
                              "height=\"50.0\" fill-opacity=\"0.500\"/>")));

  PlotOptions decades = Square();
  decades.x.axis = MakeAxis(AxisScale::kLog10, 1e-4, 1, 5);
  SvgPlot logarithmic(std::move(decades));
  logarithmic.AddDot({0.01, 0}, 0);
  logarithmic.AddDot({0, 0}, 1);
  EXPECT_THAT(logarithmic.ToSvg(),
              AllOf(HasSubstr("cx=\"100.0\" cy=\"132.0\""), HasSubstr("class=\"f1\" cx=\"50.0\"")));
}

TEST(SvgPlotTest, KeepsToThePlot) {
  SvgPlot plot(Square());
  const double nan = std::numeric_limits<double>::quiet_NaN();
  plot.AddLine({{-5, 7}, {nan, 0}, {0.5, std::numeric_limits<double>::infinity()}}, 0);
  plot.AddDot({nan, 0}, 0, "nowhere");
  plot.AddRectangle({0.5, nan}, {9, 0.5}, 0, 0.25);
  plot.AddRectangle({0.5, 0}, {9, 0.5}, 0, 0.5);
  EXPECT_THAT(plot.ToSvg(),
              AllOf(HasSubstr("points=\"50.0,32.0 \""), Not(HasSubstr("nowhere")),
                    Not(HasSubstr("0.250")), HasSubstr("width=\"50.0\" height=\"50.0\"")));
}

TEST(SvgPlotTest, EscapesTexts) {
  PlotOptions options = Square();
  options.keys = {{.name = "<script>"}};
  options.x.label = "x > 1";
  options.y.label = "y & z";
  options.y.tick_names = {"<none>", "all"};
  SvgPlot plot(std::move(options));
  plot.AddDot({0, 0}, 0, "x & y");
  const std::string svg = plot.ToSvg("1 < 2");
  for (const char* text : {"a &lt; b", "<title>x &amp; y</title>", ">&lt;script&gt;<", ">x &gt; 1<",
                           ">y &amp; z<", ">&lt;none&gt;<", ">all<", ">1 &lt; 2<"}) {
    EXPECT_THAT(svg, HasSubstr(text));
  }
  EXPECT_THAT(svg, Not(HasSubstr("<script>")));
}

TEST(SvgPlotTest, DrawsWhatIsAddedLaterOnTop) {
  SvgPlot plot(Square());
  plot.AddArea({{0, 0.5}, {1, 1}}, {{0, 0}, {1, 0.5}}, 1, AreaFill::kBand);
  plot.AddLine({{0, 0}, {1, 1}}, 2, LineStyle::kDashed);
  const std::string svg = plot.ToSvg();
  EXPECT_THAT(svg, HasSubstr("<polygon class=\"b1\" points=\"50.0,82.0 150.0,32.0 150.0,82.0 "
                             "50.0,132.0 \"/>"));
  ASSERT_NE(svg.find("class=\"l2\""), std::string::npos);
  EXPECT_LT(svg.find("class=\"b1\""), svg.find("class=\"l2\""));
}

TEST(SvgPlotTest, ALongLegendGoesOnInFurtherRowsAboveThePlot) {
  PlotOptions options = Square();
  options.keys = {{.name = "one", .mark = KeyMark::kDot},
                  {.name = "two", .mark = KeyMark::kSwatch},
                  {.name = "three"}};
  options.grid = true;
  const std::string svg = SvgPlot(std::move(options)).ToSvg();
  EXPECT_THAT(svg, HasSubstr("<text x=\"75.0\" y=\"36.0\" text-anchor=\"start\">one<"));
  EXPECT_THAT(svg, HasSubstr("<text x=\"133.4\" y=\"36.0\" text-anchor=\"start\">two<"));
  EXPECT_THAT(svg, HasSubstr("<text x=\"75.0\" y=\"53.0\" text-anchor=\"start\">three<"));
  // Of the x axis, from the top of the plot.
  EXPECT_THAT(svg, HasSubstr("x1=\"150.0\" x2=\"150.0\" y1=\"66.0\" y2=\"170.0\""));
}

TEST(HtmlPageTest, IsOneFileThatNeedsNothingElse) {
  HtmlPage page("runs of <me>");
  page.AddHeading("A & B");
  page.AddParagraph("1 < 2");
  page.AddTable({{"name", "value"}, {"\"x\"", "3"}});
  page.AddFigure("<svg/>");
  page.AddFigures({"<svg id=\"1\"/>", "<svg id=\"2\"/>"});
  const std::string html = page.ToHtml();
  EXPECT_THAT(html, HasSubstr("<title>runs of &lt;me&gt;</title>"));
  EXPECT_THAT(html, HasSubstr("<h2>A &amp; B</h2>"));
  EXPECT_THAT(html, HasSubstr("<p>1 &lt; 2</p>"));
  EXPECT_THAT(html, HasSubstr("<tr><th>name</th><th>value</th></tr>"));
  EXPECT_THAT(html, HasSubstr("<tr><td>&quot;x&quot;</td><td>3</td></tr>"));
  EXPECT_THAT(html, HasSubstr("<div class=\"figure\">\n<svg/></div>"));
  EXPECT_THAT(html, HasSubstr("<svg id=\"1\"/><svg id=\"2\"/>"));
  EXPECT_THAT(html, HasSubstr("--c7:"));
  for (const char* outside : {"http:", "https:", "<script", "<link", "@import", "url("}) {
    EXPECT_THAT(html, Not(HasSubstr(outside)));
  }
}

}  // namespace
}  // namespace halfstep
