// SPDX-License-Identifier: Apache-2.0
// halfstep dataset sanity: the prompts that a model gets right sometimes, but not always.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_split.h"
#include "cli/perfectible_prompts.h"
#include "common/base/error_reason.h"
#include "common/config/spec_text.h"
#include "tests/cli/command_line.h"
#include "tests/learner_server/tiny_job.h"

namespace halfstep {
namespace {

using ::testing::HasSubstr;
using Json = nlohmann::json;

// A model that answers with a, b, c or d, each about a quarter of the time.
class DatasetTest : public CommandLine {
 protected:
  static void SetUpTestSuite() {
    workplace_ = new TinyWorkplace();
    TinyLearner teacher(root(), nullptr);
    ASSERT_TRUE(teacher.Run("sft", TinyWorkplace::SupervisedSpec(40)).ok());
    // Rows that a model cannot get right, in a style of writing of their own.
    WriteText(root() + "/mixed.jsonl",
              "{\"prompt\" :\"1+0=\",  \"answer\":\"a\",\"topic\":7}\n\n"
              "{\"prompt\":\"2+0=\",\"answer\":\"never\"}\n"
              "{\"prompt\":\"3+0=\",\"answer\":\"b\"}");
    WriteText(root() + "/possible.jsonl", "{\"prompt\":\"1+0=\",\"answer\":\"a\"}\n");
  }
  static void TearDownTestSuite() { delete workplace_; }

  static const std::string& root() { return workplace_->root().path(); }

  Result Sanity(const std::string& arguments) {
    return RunShell(absl::StrCat("cd '", root(), "' && '", Binary("halfstep"), "' dataset sanity ",
                                 arguments, " --max-new-tokens 4"));
  }

  Json SanityJson(const std::string& arguments) {
    const Result result = Sanity(arguments + " --format json");
    EXPECT_EQ(result.exit_code, 0) << result.err << result.out;
    return Json::parse(result.out, nullptr, false);
  }

  static inline TinyWorkplace* workplace_ = nullptr;
};

TEST_F(DatasetTest, KeepsExactlyThePromptsWithinTheRange) {
  const Json result =
      SanityJson("sft/model --prompts train.jsonl --output kept.jsonl --accuracy 0.2,0.3");
  const int64_t kept = result["kept"], below = result["below"], above = result["above"];
  ASSERT_GT(kept, 0) << "a test of nothing";
  ASSERT_GT(below, 0) << "a test of nothing";
  ASSERT_GT(above, 0) << "a test of nothing";
  EXPECT_EQ(kept + below + above, 64);
  EXPECT_EQ(result["sampled"], 64);
  EXPECT_EQ(result["samples"], 40);
  int64_t counted = 0;
  for (const Json& bin : result["histogram"]) counted += bin.get<int64_t>();
  EXPECT_EQ(counted, 64);

  // The judgement is that of an evaluation with the same draws.
  const auto eval = RunShell(absl::StrCat("cd '", root(), "' && '", Binary("halfstep"),
                                          "' eval sft/model --data train.jsonl --samples 40 "
                                          "--max-new-tokens 4 --samples-file all.jsonl"));
  ASSERT_EQ(eval.exit_code, 0) << eval.err;
  std::vector<double> scores(65);
  for (const Json& line : ReadLines(root() + "/all.jsonl")) {
    if (!line["greedy"]) scores[line["line"].get<size_t>()] += line["score"].get<double>();
  }
  std::string expected;
  const std::vector<std::string> rows = absl::StrSplit(ReadText(root() + "/train.jsonl"), '\n');
  for (size_t line = 1; line <= 64; ++line) {
    const double accuracy = scores[line] / 40;
    if (accuracy >= 0.2 && accuracy <= 0.3) absl::StrAppend(&expected, rows[line - 1], "\n");
  }
  EXPECT_EQ(ReadText(root() + "/kept.jsonl"), expected);
}

TEST_F(DatasetTest, RowsStayAsTheyWereWritten) {
  const Json result =
      SanityJson("sft/model --prompts mixed.jsonl --output rows.jsonl --accuracy 0.05,0.95");
  EXPECT_EQ(result["kept"], 2);
  EXPECT_EQ(result["below"], 1);
  EXPECT_EQ(result["histogram"][0], 1);
  EXPECT_EQ(ReadText(root() + "/rows.jsonl"),
            "{\"prompt\" :\"1+0=\",  \"answer\":\"a\",\"topic\":7}\n"
            "{\"prompt\":\"3+0=\",\"answer\":\"b\"}\n");
}

TEST_F(DatasetTest, TheSeedAloneDecides) {
  const std::string arguments = "sft/model --prompts train.jsonl --accuracy 0.2,0.3 --output ";
  SanityJson(arguments + "one.jsonl --threads 1");
  SanityJson(arguments + "two.jsonl --threads 2");
  SanityJson(arguments + "other.jsonl --seed 2");
  EXPECT_EQ(ReadText(root() + "/one.jsonl"), ReadText(root() + "/two.jsonl"));
  EXPECT_NE(ReadText(root() + "/one.jsonl"), ReadText(root() + "/other.jsonl"));
}

TEST_F(DatasetTest, EndsOnceEnoughAreKept) {
  const std::string arguments = "sft/model --prompts train.jsonl --accuracy 0.2,0.3 --output ";
  SanityJson(arguments + "every.jsonl");
  const Json result = SanityJson(arguments + "three.jsonl --limit 3");
  EXPECT_EQ(result["kept"], 3);
  EXPECT_LT(result["sampled"], 64);
  const std::string three = ReadText(root() + "/three.jsonl");
  EXPECT_EQ(std::count(three.begin(), three.end(), '\n'), 3);
  EXPECT_EQ(ReadText(root() + "/every.jsonl").substr(0, three.size()), three);
}

TEST_F(DatasetTest, AJobSaysHowToSampleAndScore) {
  v1::TrainingJobSpec spec = TinyWorkplace::RlSpec("rl", 1);
  spec.mutable_reward()->set_type(v1::REWARD_TYPE_NUMERIC);
  WriteText(root() + "/job.yaml", SpecToYaml(spec));
  const Result refused =
      Sanity("sft/model --prompts train.jsonl --output x.jsonl --job job.yaml --root .");
  EXPECT_EQ(refused.exit_code, 4) << refused.err;
  EXPECT_THAT(refused.err, HasSubstr("of 64 prompts of train.jsonl none has an accuracy from 0.2 "
                                     "to 0.8: 64 are below and 0 above; give easier prompts"));
  EXPECT_EQ(ReadText(root() + "/x.jsonl"), "") << "nothing is written";
}

TEST_F(DatasetTest, AFileThatGotShorterMeanwhileIsNamed) {
  const std::string path = root() + "/mixed.jsonl";
  const auto lines = LinesOfFile(path, {3, 4});
  ASSERT_TRUE(lines.ok()) << lines.status();
  EXPECT_EQ(*lines,
            "{\"prompt\":\"2+0=\",\"answer\":\"never\"}\n{\"prompt\":\"3+0=\",\"answer\":\"b\"}\n");
  EXPECT_EQ(ReasonOf(LinesOfFile(path, {3, 5}).status()), "DATASET_CHANGED");
  EXPECT_EQ(ReasonOf(LinesOfFile(root() + "/nothing", {1}).status()), "FILE_NOT_FOUND");
  EXPECT_EQ(ReasonOf(ParseAccuracyRange("0.8,0.2").status()), "BAD_ACCURACY_RANGE");
}

TEST_F(DatasetTest, PrintsAHistogramForPeople) {
  const Result result =
      Sanity("sft/model --prompts mixed.jsonl --output rows.jsonl --accuracy 0.05,0.95");
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.out, HasSubstr("0 - 10 %    1        #####"));
  EXPECT_THAT(result.out, HasSubstr("kept       2 prompts with an accuracy from 5.0 % to 95.0 %"));
  EXPECT_THAT(result.out, HasSubstr("3 prompts of mixed.jsonl, 40 responses each"));
}

TEST_F(DatasetTest, SaysWhatIsWrong) {
  const auto refused = [&](const std::string& arguments, int exit_code, const std::string& why) {
    const Result result = Sanity(arguments);
    EXPECT_EQ(result.exit_code, exit_code) << arguments;
    EXPECT_THAT(result.err, HasSubstr(why)) << arguments;
  };
  const std::string usual = "sft/model --prompts train.jsonl --output out.jsonl";
  refused("", 2, "model is required");
  refused("sft/model --prompts train.jsonl", 2, "--output is required");
  refused(usual + " --accuracy 0.8,0.2", 2, "'0.8,0.2' is no range of accuracies");
  refused(usual + " --accuracy 0.2", 2, "'0.2' is no range");
  refused(usual + " --accuracy 0.2,1.5", 2, "'0.2,1.5' is no range");
  refused(usual + " --accuracy nan,nan", 2, "'nan,nan' is no range");
  refused(usual + " --samples 0", 2, "--samples");
  refused(usual + " --accuracy 0.9,1", 4, "give easier prompts or a better model");
  refused("sft/model --prompts possible.jsonl --output out.jsonl --accuracy 0,0", 4,
          "0 are below and 1 above; give harder prompts");
  refused("nowhere --prompts train.jsonl --output out.jsonl", 3, "nowhere/config.json");
  refused("start --prompts train.jsonl --output out.jsonl", 2, "start has no safetensors");
  refused("sft/model --prompts nothing.jsonl --output out.jsonl", 3, "nothing.jsonl");
  refused("sft/model --prompts train.jsonl --output no/where.jsonl", 3, "no/where.jsonl");
  refused("sft/model --prompts train.jsonl --output ./train.jsonl", 2,
          "is the file of --prompts, which it would replace");
}

}  // namespace
}  // namespace halfstep
