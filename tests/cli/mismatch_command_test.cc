// SPDX-License-Identifier: Apache-2.0
// halfstep mismatch, and the study behind it, on a tiny random model.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cli/mismatch_report.h"
#include "cli/mismatch_study.h"
#include "common/base/error_reason.h"
#include "tests/cli/command_line.h"
#include "tests/cli/tiny_model_folder.h"

namespace halfstep {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::SizeIs;
using Json = nlohmann::json;

constexpr DType kPrecisions[] = {DType::kFloat16, DType::kBFloat16, DType::kFloat32};

class MismatchTest : public CommandLine {
 protected:
  MismatchTest() {
    WriteTinyModelFolder(dir_);
    Write("p.jsonl", "{\"prompt\": \"1+2=\"}\n{\"prompt\": \"once upon a time\"}\n");
    model_ = *OpenLocalModel(dir_ / "model");
  }

  static GenerateOrder Order(float temperature = 1) {
    GenerateOrder order;
    order.prompts = {{"1+2=", ""}, {"once upon a time", ""}};
    order.samples = 3;
    order.sampling.temperature = temperature;
    order.sampling.max_new_tokens = 20;
    return order;
  }

  static MismatchStudyOptions Options(std::vector<MismatchCell> cells, Profile profile) {
    MismatchStudyOptions options;
    options.cells = std::move(cells);
    options.profile = profile;
    options.threads = 1;
    return options;
  }

  std::vector<SampledSet> Study(const GenerateOrder& order, const MismatchStudyOptions& options) {
    auto sets = SampleAndScore(model_, order, options);
    EXPECT_TRUE(sets.ok()) << sets.status();
    return sets.ok() ? *std::move(sets) : std::vector<SampledSet>();
  }

  LocalModel model_;
};

TEST_F(MismatchTest, BitwiseIsExactlyZeroInEveryPrecision) {
  for (const float temperature : {1.0f, 0.6f, 0.0f}) {
    for (const DType dtype : kPrecisions) {
      const std::vector<MismatchCell> cells = {{dtype, dtype}};
      const auto sets = Study(Order(temperature), Options(cells, Profile::kBitwise));
      ASSERT_THAT(sets, SizeIs(1));
      const MismatchResult result = AnalyzeMismatch(sets, cells, 1, {.resamples = 20})[0];
      EXPECT_GE(result.mismatch.metrics.tokens_compared, 20);
      EXPECT_EQ(result.mismatch.metrics.sequences, 6);
      for (const MismatchMetric& metric : MismatchMetricList()) {
        const Interval interval = result.mismatch.Of(metric.of);
        const double agreement = metric.vanishes ? 0 : 1;
        EXPECT_EQ(interval.value, agreement) << Name(dtype) << " " << metric.name;
        EXPECT_EQ(interval.low, agreement) << Name(dtype) << " " << metric.name;
        EXPECT_EQ(interval.high, agreement) << Name(dtype) << " " << metric.name;
      }
      EXPECT_EQ(result.quantiles.back(), 0);
      // Rounding shows against FP32, in both engines alike.
      ASSERT_EQ(result.rollout_own.has_value(), dtype != DType::kFloat32);
      ASSERT_EQ(result.learner_own.has_value(), dtype != DType::kFloat32);
      if (dtype == DType::kFloat32) continue;
      EXPECT_GT(RmsOf(result.rollout_own->metrics), 0);
      EXPECT_EQ(RmsOf(result.rollout_own->metrics), RmsOf(result.learner_own->metrics));
    }
  }
}

TEST_F(MismatchTest, PrecisionsThatDifferShow) {
  const std::vector<MismatchCell> cells = {{DType::kFloat16, DType::kFloat32}};
  const auto sets = Study(Order(), Options(cells, Profile::kFast));
  const MismatchResult result = AnalyzeMismatch(sets, cells, 1, {.resamples = 20})[0];
  EXPECT_GT(result.mismatch.metrics.abs_max, 0);
  EXPECT_LT(result.mismatch.metrics.abs_max, 1);
  EXPECT_LT(result.mismatch.metrics.bit_equal_share, 1);
  EXPECT_TRUE(result.rollout_own.has_value());
  EXPECT_FALSE(result.learner_own.has_value());
}

TEST_F(MismatchTest, EachRolloutPrecisionSamplesOnceAndIsScoredByEveryLearner) {
  std::vector<std::string> stages;
  int64_t last_done = 0, last_total = 0;
  MismatchStudyOptions options = Options(PrecisionMatrix(), Profile::kFast);
  options.on_progress = [&](const std::string& stage, int64_t done, int64_t total) {
    if (stages.empty() || stages.back() != stage) stages.push_back(stage);
    EXPECT_GE(done, last_done);
    last_done = done;
    last_total = total;
    return true;
  };
  const auto sets = Study(Order(), options);
  ASSERT_THAT(sets, SizeIs(3));
  EXPECT_EQ(last_done, last_total);
  EXPECT_EQ(std::set<std::string>(stages.begin(), stages.end()).size(), 3 + 9 + 2u);
  for (size_t i = 0; i < sets.size(); ++i) {
    EXPECT_EQ(sets[i].rollout, kPrecisions[i]);
    EXPECT_THAT(sets[i].sequences, SizeIs(6));
    EXPECT_THAT(sets[i].learner, SizeIs(3));
    EXPECT_EQ(sets[i].rollout_fp32.empty(), sets[i].rollout == DType::kFloat32);
  }
  const auto results = AnalyzeMismatch(sets, PrecisionMatrix(), 1, {.resamples = 20});
  ASSERT_THAT(results, SizeIs(9));
  EXPECT_GT(results[1].mismatch.metrics.abs_mean, 0) << "fp16 against bf16";
}

TEST_F(MismatchTest, BitwiseRefusesUnequalPrecisions) {
  const auto sets = SampleAndScore(
      model_, Order(), Options({{DType::kFloat16, DType::kBFloat16}}, Profile::kBitwise));
  EXPECT_EQ(ReasonOf(sets.status()), "UNEQUAL_PRECISIONS");
  EXPECT_EQ(sets.status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(MismatchTest, EndsWhenAskedAtEveryStage) {
  const std::vector<MismatchCell> cells = {{DType::kFloat16, DType::kFloat16}};
  std::set<std::string> stages;
  MismatchStudyOptions options = Options(cells, Profile::kBitwise);
  options.on_progress = [&](const std::string& stage, int64_t, int64_t) {
    stages.insert(stage);
    return true;
  };
  Study(Order(), options);
  ASSERT_THAT(stages, SizeIs(4));
  for (const std::string& stop : stages) {
    options.on_progress = [&](const std::string& stage, int64_t, int64_t) { return stage != stop; };
    EXPECT_EQ(SampleAndScore(model_, Order(), options).status().code(),
              absl::StatusCode::kCancelled)
        << stop;
  }
}

// Two sets of four responses, made by hand: the learner is off by 1/8 in BF16, by 1/64 in FP16.
TEST_F(MismatchTest, ReportsMultiplesOfTheCellInBfloat16) {
  std::vector<SampledSet> sets;
  const std::vector<MismatchCell> cells = {{DType::kFloat16, DType::kFloat16},
                                           {DType::kBFloat16, DType::kBFloat16}};
  for (const MismatchCell& cell : cells) {
    SampledSet& set = sets.emplace_back();
    set.rollout = cell.rollout;
    const float d = cell.learner == DType::kFloat16 ? 1.0f / 64 : 1.0f / 8;
    for (int i = 0; i < 4; ++i) {
      TrainSequence& sequence = set.sequences.emplace_back();
      sequence.tokens = {1, 2, 3};
      sequence.prompt_tokens = 1;
      sequence.behaviour = {-1, -2};
      const float odd = i % 2 == 0 ? 1.0f : 2.0f;
      set.learner[cell.learner].push_back({-1 + d * odd, -2 - d * odd});
      set.learner[DType::kFloat32].push_back({-1, -2});
      set.rollout_fp32.push_back({-1 - d, -2 - d});
    }
  }
  MismatchReport report;
  report.model = "m & m";
  report.source = "p.jsonl";
  report.seeds = 2;
  report.resamples = 50;
  report.results = AnalyzeMismatch(sets, cells, 2, {.resamples = 50});
  const auto json = MismatchToJson(report, WithCurves::kYes);
  const auto& fp16 = json["cells"][0];
  EXPECT_EQ(fp16["metrics"]["abs_mean"]["value"], 1.5 / 64);
  EXPECT_EQ(fp16["metrics"]["abs_mean"]["ratio"]["value"], 0.125);
  EXPECT_EQ(fp16["metrics"]["abs_mean"]["ratio"]["low"], 0.125);
  EXPECT_EQ(fp16["metrics"]["abs_mean"]["ratio"]["high"], 0.125);
  EXPECT_FALSE(fp16["metrics"]["bit_equal_share"].contains("ratio"));
  EXPECT_EQ(fp16["rollout_to_own_fp32"]["rms"]["value"], 1.0 / 64);
  EXPECT_EQ(fp16["rollout_to_own_fp32"]["rms"]["ratio"]["value"], 0.125);
  EXPECT_EQ(fp16["learner_to_own_fp32"]["abs_mean"]["value"], 1.5 / 64);
  EXPECT_EQ(json["cells"][1]["metrics"]["k3"]["ratio"]["value"], 1);
  ASSERT_THAT(fp16["by_seed"], SizeIs(2));
  EXPECT_EQ(fp16["by_seed"][0]["tokens"], 4);
  EXPECT_EQ(fp16["by_seed"][0]["abs_mean"], 1.5 / 64);
  EXPECT_THAT(fp16["density"]["bins_mu_pi_tokens"], Not(IsEmpty()));
  EXPECT_EQ(fp16["quantiles"][4]["abs"], 2.0 / 64);
  EXPECT_EQ(fp16["drift"][0]["median"], 1.0 / 64);
  EXPECT_FALSE(MismatchToJson(report, WithCurves::kNo)["cells"][0].contains("drift"));

  std::ostringstream table;
  PrintMismatch(report, table);
  EXPECT_THAT(table.str(), HasSubstr("rollout fp16, learner fp16: 8 tokens of 4 responses"));
  EXPECT_THAT(table.str(), HasSubstr("1/8 [1/8, 1/8]"));
  const std::string page = MismatchPage(report);
  EXPECT_THAT(page, HasSubstr("m &amp; m"));
  EXPECT_THAT(page, HasSubstr("rollout to its fp32: rms"));
}

TEST_F(MismatchTest, TheCommandPrintsAndWritesEverything) {
  const std::string command =
      "halfstep mismatch model --prompts p.jsonl --samples 2 --seeds 2 --max-new-tokens 12 "
      "--resamples 50 --threads 1";
  const Result json = Run(command + " --matrix --format json --output out/study");
  ASSERT_EQ(json.exit_code, 0) << json.err;
  const Json object = Json::parse(json.out);
  EXPECT_EQ(object["profile"], "fast");
  ASSERT_THAT(object["cells"], SizeIs(9));
  std::set<std::string> cells;
  for (const Json& cell : object["cells"]) {
    cells.insert(cell["rollout"].get<std::string>() + cell["learner"].get<std::string>());
    EXPECT_EQ(cell["responses"], 8);
    EXPECT_THAT(cell["by_seed"], SizeIs(2));
    EXPECT_EQ(cell["rollout_to_own_fp32"].is_null(), cell["rollout"] == "fp32");
    EXPECT_EQ(cell["learner_to_own_fp32"].is_null(), cell["learner"] == "fp32");
    EXPECT_FALSE(cell.contains("density"));
  }
  EXPECT_THAT(cells, SizeIs(9));
  EXPECT_THAT(json.err, HasSubstr("sampling 8 responses in fp16\n"));
  EXPECT_THAT(json.err, HasSubstr("scoring those in fp16 by the rollout's engine in fp32\n"));
  EXPECT_THAT(json.err, HasSubstr("scoring those in bf16 by the learner's engine in fp16\n"));

  const Json written = Json::parse(Slurp(dir_ / "out/study/mismatch.json"));
  EXPECT_EQ(written["cells"][3]["metrics"], object["cells"][3]["metrics"]);
  EXPECT_THAT(written["cells"][8]["density"]["bins_mu_pi_tokens"], Not(IsEmpty()));
  EXPECT_THAT(Slurp(dir_ / "out/study/mismatch.html"), HasSubstr("</html>"));

  const Result text = Run(command + " --profile bitwise --rollout-dtype bf16 --learner-dtype bf16");
  EXPECT_EQ(text.exit_code, 0) << text.err;
  EXPECT_THAT(text.out, HasSubstr("profile bitwise, temperature 1;"));
  EXPECT_THAT(text.out, HasSubstr("rollout bf16, learner bf16: "));
  EXPECT_THAT(text.out, HasSubstr("bit_equal_share"));
  EXPECT_EQ(Run(command + " --profile bitwise --rollout-dtype bf16 --learner-dtype bf16").out,
            text.out)
      << "the same seed gives the same figures";
}

TEST_F(MismatchTest, WhatAnotherEngineGeneratedIsScored) {
  const std::vector<MismatchCell> cells = {{DType::kFloat16, DType::kFloat16}};
  const auto sets = Study(Order(), Options(cells, Profile::kBitwise));
  std::string rows;
  for (const TrainSequence& sequence : sets[0].sequences) {
    const auto response = sequence.tokens.begin() + sequence.prompt_tokens;
    const Json row = {{"prompt_ids", std::vector<int32_t>(sequence.tokens.begin(), response)},
                      {"response_ids", std::vector<int32_t>(response, sequence.tokens.end())},
                      {"log_probs", sequence.behaviour}};
    absl::StrAppend(&rows, row.dump(), "\n");
  }
  Write("e.jsonl", rows);
  const Result same = Run(
      "halfstep mismatch model --external e.jsonl --profile bitwise --format json --resamples 20");
  ASSERT_EQ(same.exit_code, 0) << same.err;
  const Json cell = Json::parse(same.out)["cells"][0];
  EXPECT_EQ(cell["rollout"], "external");
  EXPECT_EQ(cell["responses"], 6);
  EXPECT_EQ(cell["metrics"]["abs_max"]["value"], 0);
  EXPECT_EQ(cell["metrics"]["bit_equal_share"]["value"], 1);
  EXPECT_TRUE(cell["rollout_to_own_fp32"].is_null());
  EXPECT_FALSE(cell["learner_to_own_fp32"].is_null());
  const Result other = Run(
      "halfstep mismatch model --external e.jsonl --learner-dtype bf16 --format json --resamples "
      "20");
  ASSERT_EQ(other.exit_code, 0) << other.err;
  EXPECT_GT(Json::parse(other.out)["cells"][0]["metrics"]["abs_max"]["value"], 0);

  Write("e.jsonl", rows + R"({"prompt_ids": [1], "response_ids": [261], "log_probs": [-1]})");
  const Result refused = Run("halfstep mismatch model --external e.jsonl");
  EXPECT_EQ(refused.exit_code, 2);
  EXPECT_THAT(refused.err, HasSubstr("e.jsonl:7: response_ids[0] is 261, not an id below"));
}

TEST_F(MismatchTest, SaysWhatIsWrongWithTheCommandLine) {
  const auto refused = [&](const std::string& arguments, const std::string& why) {
    const Result result = Run("halfstep mismatch " + arguments);
    EXPECT_EQ(result.exit_code, 2) << arguments;
    EXPECT_THAT(result.err, HasSubstr(why)) << arguments;
  };
  refused("model", "nothing to compare; give --prompts FILE.jsonl, or --external FILE.jsonl");
  refused("model --prompts p.jsonl --external e.jsonl", "--external excludes --prompts");
  refused("model --prompts p.jsonl --matrix --rollout-dtype fp16",
          "--matrix excludes --rollout-dtype");
  refused("model --external e.jsonl --matrix", "--external excludes --matrix");
  refused("model --prompts p.jsonl --profile bitwise --learner-dtype fp32",
          "profile bitwise needs equal precisions, and the rollout's is fp16 where the learner's "
          "is fp32; choose profile fast");
  refused("model --prompts p.jsonl --profile bitwise --matrix",
          "profile bitwise needs equal precisions");
  refused("model --prompts p.jsonl --rollout-dtype int8", "int8");
  refused("model --prompts p.jsonl --max-new-tokens 512",
          "p.jsonl:1: a prompt of 4 tokens and 512 new ones exceed");
  Write("bad.jsonl", "{\"question\": \"y\"}\n");
  refused("model --prompts bad.jsonl", "bad.jsonl:1: no column \"prompt\"; the row has question");
  EXPECT_EQ(Run("halfstep mismatch model --prompts nowhere.jsonl").exit_code, 3);
  EXPECT_EQ(Run("halfstep mismatch nowhere --prompts p.jsonl").exit_code, 3);
  const Result output = Run("halfstep mismatch model --prompts p.jsonl --output p.jsonl");
  EXPECT_NE(output.exit_code, 0);
  EXPECT_THAT(output.err, HasSubstr("p.jsonl"));
}

}  // namespace
}  // namespace halfstep
