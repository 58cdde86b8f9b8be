// SPDX-License-Identifier: Apache-2.0
// halfstep report: what is drawn, what is refused, and that text of others stays text.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>

#include "cli/report/curve.h"
#include "cli/report/html_text.h"
#include "cli/report/report_page.h"
#include "cli/report/svg_chart.h"
#include "common/base/error_reason.h"
#include "tests/cli/command_line.h"
#include "tests/cli/written_run.h"

namespace halfstep {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

size_t Count(const std::string& text, const std::string& part) {
  size_t count = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
  return count;
}

TEST(CurveTest, ALongCurveBecomesMeansBetweenLeastAndLargest) {
  std::vector<MetricPoint> values;
  for (int64_t step = 1; step <= 10; ++step) values.push_back({step, step == 2 ? 50.0 : 1.0});
  const std::vector<CurvePoint> points = Bucketed(values, 3);
  ASSERT_EQ(points.size(), 3u);
  EXPECT_EQ(points[0].x, 2.5);
  EXPECT_EQ(points[0].low, 1);
  EXPECT_EQ(points[0].mean, 13.25);
  EXPECT_EQ(points[0].high, 50);
  EXPECT_EQ(points[2].x, 9.5);
  EXPECT_EQ(Bucketed(values, 10).size(), 10u);
  EXPECT_TRUE(Bucketed({}, 3).empty());
}

TEST(CurveTest, WhatIsNotFiniteIsLeftOutOrAGap) {
  const std::vector<CurvePoint> points = Bucketed({{1, kNaN}, {2, 4}, {3, kNaN}, {4, kNaN}}, 2);
  ASSERT_EQ(points.size(), 2u);
  EXPECT_EQ(points[0].mean, 4);
  EXPECT_TRUE(std::isnan(points[1].mean));
}

TEST(CurveTest, TicksAreRoundNumbersAroundTheValues) {
  EXPECT_THAT(MakeAxis(AxisScale::kLinear, 0, 240, 6).ticks,
              ElementsAre(0, 50, 100, 150, 200, 250));
  EXPECT_THAT(MakeAxis(AxisScale::kLinear, -0.5, 0.9, 3).ticks, ElementsAre(-0.5, 0, 0.5, 1));
  EXPECT_THAT(MakeAxis(AxisScale::kLog2, 1024, 4096, 5).ticks, ElementsAre(1024, 2048, 4096));
  EXPECT_EQ(MakeAxis(AxisScale::kLog10, 2e-5, 0.3, 9).ticks.front(), 1e-5);
  EXPECT_NEAR(MakeAxis(AxisScale::kLog10, 2e-5, 0.3, 9).ticks.back(), 1, 1e-12);
}

TEST(CurveTest, AnAxisOfAnyNumbersEnclosesThem) {
  const double huge = std::numeric_limits<double>::max();
  const double tiny = std::numeric_limits<double>::denorm_min();
  const std::pair<double, double> ranges[] = {{0, 0},         {7, 7},       {-3, -3},
                                              {1, 1 + 1e-15}, {-1e-9, 2e9}, {1e300, huge},
                                              {0, tiny},      {-huge, huge}};
  for (const auto& [low, high] : ranges) {
    for (const AxisScale scale : {AxisScale::kLinear, AxisScale::kLog10, AxisScale::kLog2}) {
      if (scale != AxisScale::kLinear && low <= 0) continue;
      const Axis axis = MakeAxis(scale, low, high, 5);
      ASSERT_GE(axis.ticks.size(), 2u) << low << " " << high;
      ASSERT_LE(axis.ticks.size(), 12u) << low << " " << high;
      EXPECT_LE(axis.ticks.front(), std::max(low, -1e300)) << low << " " << high;
      EXPECT_GE(axis.ticks.back() * (1 + 1e-9), std::min(high, 1e300)) << low << " " << high;
      EXPECT_TRUE(std::isfinite(axis.Position(axis.ticks.back()))) << low << " " << high;
    }
  }
}

TEST(CurveTest, TickLabelsAreShort) {
  EXPECT_EQ(TickLabel(AxisScale::kLinear, 0.05), "0.05");
  EXPECT_EQ(TickLabel(AxisScale::kLinear, 20000), "20k");
  EXPECT_EQ(TickLabel(AxisScale::kLinear, -2.5e6), "-2.5M");
  EXPECT_EQ(TickLabel(AxisScale::kLog10, 1e-7), "1e-07");
  EXPECT_EQ(TickLabel(AxisScale::kLog2, 65536), "2^16");
}

TEST(SvgChartTest, GapsBreakTheLineAndALonePointIsADot) {
  LineChart chart{"loss", AxisScale::kLinear, {}};
  chart.curves.push_back(
      {"a", 3, LineStyle::kDashed, false,
       Bucketed({{1, 1}, {2, 2}, {3, kNaN}, {4, 4}, {5, kNaN}, {6, 1}, {7, 2}}, 9)});
  const std::string svg = LineChartSvg(chart);
  EXPECT_EQ(Count(svg, "<polyline class=\"l3\""), 2u);
  EXPECT_EQ(Count(svg, "<circle class=\"f3\""), 1u);
  EXPECT_EQ(Count(svg, "<polygon"), 0u);
  EXPECT_THAT(svg, HasSubstr("stroke-dasharray=\"6 4\"/>"));
  EXPECT_THAT(svg, HasSubstr(">points not finite: 2<"));
  EXPECT_THAT(svg, Not(HasSubstr("nan")));
}

TEST(SvgChartTest, PointsOfSeveralValuesHaveABand) {
  LineChart chart{"loss", AxisScale::kLinear, {}};
  chart.curves.push_back(
      {"a", 0, LineStyle::kSolid, false, Bucketed({{1, 1}, {2, 3}, {3, 1}, {4, 9}}, 2)});
  EXPECT_EQ(Count(LineChartSvg(chart), "<polygon class=\"b0\""), 1u);
}

TEST(SvgChartTest, ALogarithmicAxisCountsWhatItCannotShow) {
  LineChart chart{"kl", AxisScale::kLog10, {}};
  chart.curves.push_back(
      {"a", 0, LineStyle::kSolid, false, Bucketed({{1, 0}, {2, 1e-3}, {3, 1e-5}}, 9)});
  EXPECT_THAT(LineChartSvg(chart), HasSubstr("points of 0 or less, not shown: 1"));
  EXPECT_THAT(LineChartSvg(chart), HasSubstr(">1e-05<"));
  // Nothing positive: a line at 0.
  chart.curves[0].points = Bucketed({{1, 0}, {2, 0}}, 9);
  EXPECT_EQ(Count(LineChartSvg(chart), "<polyline"), 1u);
  EXPECT_THAT(LineChartSvg(chart), Not(HasSubstr("not shown")));
  chart.curves[0].points.clear();
  EXPECT_EQ(LineChartSvg(chart), "");
}

TEST(SvgChartTest, LayersStandOnEachOther) {
  StackedChart chart;
  chart.layers.push_back({"wait", 0, LineStyle::kSolid, false, Bucketed({{0, 1}, {5, 1}}, 9)});
  chart.layers.push_back({"train", 1, LineStyle::kSolid, false, Bucketed({{0, 3}, {5, kNaN}}, 9)});
  const std::string svg = StackedChartSvg(chart);
  // From 1 to 4 of an axis from 0 to 4, whose plot is 190 high and begins at 49; then from 1 to 1.
  EXPECT_THAT(svg, HasSubstr("<polygon class=\"f1\" points=\"52.0,49.0 438.0,191.5 438.0,191.5 "
                             "52.0,191.5 \"/>"));
  EXPECT_EQ(Count(svg, "<rect"), 2u);
  EXPECT_EQ(StackedChartSvg({}), "");
}

TEST(HtmlTextTest, NothingIsMarkupAndEverythingIsUtf8) {
  EXPECT_EQ(EscapeHtml("<b a=\"1\" c='2'>&amp;"),
            "&lt;b a=&quot;1&quot; c=&#39;2&#39;&gt;&amp;amp;");
  EXPECT_EQ(EscapeHtml(std::string("a\x01\xff\tb\0", 6)),
            "a\xef\xbf\xbd\xef\xbf\xbd\tb\xef\xbf\xbd");
}

class ReportTest : public CommandLine {
 protected:
  std::string Page(const std::string& arguments, const std::string& file) {
    const Result result = Run("halfstep report " + arguments);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    EXPECT_EQ(result.out, file + "\n");
    return Slurp(dir_ / file);
  }
};

TEST_F(ReportTest, RunsAreDrawnOverEachOther) {
  for (const char* name : {"one", "two"}) {
    v1::TrainingJobSpec spec = WrittenRun::Spec();
    spec.set_seed(name[0] == 'o' ? 1 : 22);
    const WrittenRun run(dir_ / name, spec);
    run.Evaluation(0, 0.25);
    for (int64_t step = 1; step <= 3; ++step) run.Metrics(WrittenRun::Step(step, 0.5));
    run.Evaluation(3, 0.75);
  }
  const std::string page = Page("one two/ -o page.html", "page.html");
  const std::string reward = page.substr(page.find("aria-label=\"Reward"));
  const std::string chart = reward.substr(0, reward.find("</svg>"));
  EXPECT_EQ(Count(chart, "<polyline class=\"l0\""), 1u);
  EXPECT_EQ(Count(chart, "<polyline class=\"l1\""), 1u);
  EXPECT_THAT(chart, HasSubstr(">one</text>"));
  EXPECT_THAT(chart, HasSubstr(">two</text>"));
  EXPECT_THAT(page, HasSubstr("25.0 % \xe2\x86\x92 75.0 %"));
  EXPECT_THAT(page, HasSubstr("<tr class=\"differs\"><td>seed</td><td>1</td><td>22</td></tr>"));
  EXPECT_THAT(page, HasSubstr("<tr><td>steps</td><td>4</td><td>4</td></tr>"));
  EXPECT_THAT(page, HasSubstr(">forward and backward</text>"));
  EXPECT_THAT(page, HasSubstr("Every step is drawn."));
  // A metric without a chart of its own is drawn all the same.
  EXPECT_THAT(page, HasSubstr("aria-label=\"policy_version\""));
  // These compared nothing, as older versions did.
  EXPECT_THAT(page, HasSubstr("Not in these runs: Mismatch: KL per token (k3); "));
  for (const char* loaded : {"<script", "http:", "https:", "@import", "url("}) {
    EXPECT_THAT(page, Not(HasSubstr(loaded)));
  }
}

TEST_F(ReportTest, ResponsesAreTextWithTheirLineage) {
  const WrittenRun run(dir_ / "run");
  std::ofstream(dir_ / "train.jsonl") << "{\"prompt\":\"<i>one\"}\n{\"prompt\":\"p<two>\"}\n";
  run.Metrics(WrittenRun::Step(1, 0.5));
  run.Samples(1, WrittenRun::Sample(1, 0, "</pre><script>alert(1)</script>"));
  SampleRecord unscored = WrittenRun::Sample(1, 1, "x");
  unscored.reward = {RewardOutcome::kError, 0, "<no number>"};
  unscored.rollout_id = "<r&1>";
  unscored.versions = {{4, 30}, {5, 2}};
  unscored.advantage.reset();
  run.Samples(1, unscored);
  const std::string page = Page("run", "run/report.html");
  EXPECT_THAT(page, Not(HasSubstr("<script")));
  EXPECT_THAT(page, HasSubstr("<td>2</td><td><pre>p&lt;two&gt;</pre></td><td><pre>&lt;/pre&gt;"
                              "&lt;script&gt;alert(1)&lt;/script&gt;</pre></td>"));
  EXPECT_THAT(page, HasSubstr("<td>error: &lt;no number&gt;</td><td>none</td>"
                              "<td>4 (30 tokens), 5 (2 tokens)</td><td>&lt;r&amp;1&gt;</td>"));
}

TEST_F(ReportTest, LongRunsAreDrawnWithFewPoints) {
  const WrittenRun run(dir_ / "run");
  std::string lines;
  for (int64_t step = 1; step <= 1000; ++step) {
    absl::StrAppend(&lines, MetricsLine(WrittenRun::Step(step, step % 2 == 0 ? 1 : 0)), "\n");
  }
  Write("run/metrics.jsonl", lines);
  const std::string page = Page("run", "run/report.html");
  EXPECT_THAT(page, HasSubstr("Curves have at most 300 points: of the longest run each is the mean "
                              "of 4 neighbouring steps"));
  const std::string reward = page.substr(page.find("aria-label=\"Reward"));
  const std::string line = reward.substr(reward.find("<polyline"));
  EXPECT_EQ(Count(line.substr(0, line.find("/>")), ","), 250u);
}

TEST_F(ReportTest, ATornLastLineIsLeftOutAndAnyOtherIsNamed) {
  const WrittenRun run(dir_ / "run");
  const std::string line = MetricsLine(WrittenRun::Step(1, 0.5)) + "\n";
  Write("run/metrics.jsonl", line + "{\"step\":2,\"rew");
  EXPECT_THAT(Page("run", "run/report.html"), HasSubstr("<td>1 of 4</td>"));
  const auto refused = [this](const std::string& what) {
    const Result result = Run("halfstep report run --format json");
    EXPECT_EQ(result.exit_code, 2);
    EXPECT_THAT(result.out, HasSubstr("\"reason\": \"CORRUPT_RUN\""));
    EXPECT_THAT(result.out, HasSubstr(what));
  };
  Write("run/metrics.jsonl", line + "{\"step\":2,\"rew\n" + line);
  refused("run/metrics.jsonl:2: ");
  Write("run/metrics.jsonl", line + "[2]\n");
  refused("run/metrics.jsonl:2: it is not an object");
  Write("run/metrics.jsonl", line + "{\"loss\":2}\n");
  refused("run/metrics.jsonl:2: it has no step");
  Write("run/metrics.jsonl", line + line);
  refused("run/metrics.jsonl:2: step 1 comes after step 1");
  Write("run/metrics.jsonl", line);
  Write("run/samples.jsonl", "{\"step\":1,\"group\":0}\n{\"group\":0}\n");
  refused("run/samples.jsonl:2: it does not begin with its step");
}

TEST_F(ReportTest, AnEvaluationInTheLineOfItsStepIsRead) {
  const WrittenRun run(dir_ / "run");
  run.Metrics(WrittenRun::Step(1, 0.5));
  nlohmann::json line = nlohmann::json::parse(MetricsLine(WrittenRun::Step(2, 0.5)));
  line["eval_accuracy"] = 0.25;
  Write("run/metrics.jsonl", Slurp(dir_ / "run/metrics.jsonl") + line.dump() + "\n");
  const absl::StatusOr<RunRecord> record = ReadRun(run.path());
  ASSERT_TRUE(record.ok()) << record.status();
  EXPECT_EQ(record->steps.lines, 2);
  EXPECT_EQ(record->steps.numbers.at("reward_mean").size(), 2u);
  EXPECT_EQ(record->evaluations.lines, 1);
  EXPECT_EQ(record->evaluations.numbers.size(), 1u);
}

TEST_F(ReportTest, ARunWithoutAFinishedStepHasAPage) {
  const WrittenRun run(dir_ / "run");
  const std::string page = Page("run", "run/report.html");
  EXPECT_THAT(page, HasSubstr("<td>0 of 4</td>"));
  EXPECT_THAT(page, HasSubstr("The run saved none"));
}

TEST_F(ReportTest, WhatIsNoRunIsNamedWithTheWayOut) {
  Result result = Run("halfstep report nowhere");
  EXPECT_EQ(result.exit_code, 3);
  EXPECT_EQ(result.err, "error: there is no folder nowhere; give the output_dir of a job\n");
  const WrittenRun run(dir_ / "demo/run");
  result = Run("halfstep report demo");
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_EQ(result.err, "error: demo is no run folder, for it has no job.json; give demo/run\n");
  EXPECT_EQ(ReasonOf(ReadRun(dir_.path()).status()), "NOT_A_RUN");
  EXPECT_EQ(ReasonOf(ReadRun(dir_ / "nowhere").status()), "RUN_NOT_FOUND");
}

TEST_F(ReportTest, CurvesAreFilesOfTheirOwn) {
  for (const char* name : {"a-s1", "a-s2", "b-s1"}) {
    v1::TrainingJobSpec spec = WrittenRun::Spec();
    spec.set_output_dir(name);
    spec.set_seed(name[3] == '2' ? 2 : 1);
    if (name[0] == 'b') spec.set_steps(5);
    const WrittenRun run(dir_ / name, spec);
    const double reward = name[3] == '2' ? 0.75 : 0.25;
    for (int64_t step = 1; step <= 4; ++step) run.Metrics(WrittenRun::Step(step, reward));
  }
  Page("a-s1 a-s2 b-s1 --curves svg --metric reward_mean --metric grad_norm", "a-s1/report.html");
  std::string svg = Slurp(dir_ / "svg/reward_mean.svg");
  EXPECT_TRUE(
      svg.starts_with("<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"chart\" viewBox="));
  EXPECT_EQ(Count(svg, "<polyline"), 3u);
  EXPECT_THAT(svg, HasSubstr("--c7:"));
  EXPECT_EQ(Count(Slurp(dir_ / "svg/grad_norm.svg"), "<polyline"), 3u);

  Page("a-s1 a-s2 b-s1 --curves svg --merge-seeds --points 2", "a-s1/report.html");
  svg = Slurp(dir_ / "svg/reward_mean.svg");
  EXPECT_THAT(svg, HasSubstr(">a</text>"));
  EXPECT_THAT(svg, HasSubstr(">b-s1</text>"));
  EXPECT_EQ(Count(svg, "<polyline"), 2u);
  // A band from 0.25 to 0.75 around 0.5, of two points; the other run has none.
  EXPECT_EQ(Count(svg, "<polygon class=\"b0\""), 1u);
  EXPECT_EQ(Count(svg, "<polygon class=\"b1\""), 0u);

  const Result result = Run("halfstep report a-s1 --curves svg --metric taste");
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_THAT(result.err, HasSubstr("--metric taste: none of the runs has a value for it"));
}

TEST_F(ReportTest, ReplacesAReportAndNothingElse) {
  const WrittenRun run(dir_ / "run");
  Page("run", "run/report.html");
  Page("run", "run/report.html");
  Write("notes.html", "<html>mine</html>");
  const Result result = Run("halfstep report run -o notes.html");
  EXPECT_EQ(result.exit_code, 4);
  EXPECT_THAT(result.err, HasSubstr("notes.html exists and is no report"));
  EXPECT_EQ(Slurp(dir_ / "notes.html"), "<html>mine</html>");
  EXPECT_TRUE(IsReportPage(Page("run -o notes.html --force", "notes.html")));
}

}  // namespace
}  // namespace halfstep
