// SPDX-License-Identifier: Apache-2.0
// halfstep eval: the number is the trainer's, to the last digit.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

#include "common/config/spec_text.h"
#include "tests/cli/command_line.h"
#include "tests/learner_server/tiny_job.h"

namespace halfstep {
namespace {

using ::testing::HasSubstr;
using Json = nlohmann::json;

// A model made by supervised training, and one step of reinforcement learning on it, with an
// evaluation before and after.
class EvalTest : public CommandLine {
 protected:
  static void SetUpTestSuite() {
    workplace_ = new TinyWorkplace();
    TinyLearner teacher(root(), nullptr);
    ASSERT_TRUE(teacher.Run("sft", TinyWorkplace::SupervisedSpec(40)).ok());
    v1::TrainingJobSpec spec = TinyWorkplace::RlSpec("rl", 1);
    spec.mutable_data()->set_eval("eval.jsonl");
    WriteText(root() + "/job.yaml", SpecToYaml(spec));
    LocalRolloutPool pool;
    TinyLearner learner(root(), &pool);
    ASSERT_TRUE(learner.Run("rl", spec).ok());
    summary_ = new v1::RunSummary(learner.summary());
  }
  static void TearDownTestSuite() {
    delete summary_;
    delete workplace_;
  }

  static const std::string& root() { return workplace_->root().path(); }

  Json Eval(const std::string& arguments) {
    const Result result = RunIn(arguments + " --format json");
    EXPECT_EQ(result.exit_code, 0) << result.err << result.out;
    return Json::parse(result.out, nullptr, false);
  }

  Result RunIn(const std::string& arguments) {
    return RunShell(
        absl::StrCat("cd '", root(), "' && '", Binary("halfstep"), "' eval ", arguments));
  }

  static inline TinyWorkplace* workplace_ = nullptr;
  static inline v1::RunSummary* summary_ = nullptr;
};

TEST_F(EvalTest, AJobsEvaluationGivesTheNumbersOfItsRun) {
  const Json before = Eval("--job job.yaml --root .");
  EXPECT_EQ(before["accuracy"], summary_->base_accuracy());
  EXPECT_EQ(before["greedy"], summary_->base_greedy());
  EXPECT_GT(before["accuracy"], 0) << "a test of nothing";
  EXPECT_LT(before["accuracy"], 1) << "a test of nothing";
  EXPECT_EQ(before["prompts"], 4);
  const Json after = Eval("rl/model --job job.yaml --step 1");
  EXPECT_EQ(after["accuracy"], summary_->final_accuracy());
  EXPECT_EQ(after["greedy"], summary_->final_greedy());
}

TEST_F(EvalTest, OptionsStandForAJob) {
  const Json number = Eval("sft/model --data eval.jsonl --max-new-tokens 4 --threads 2");
  EXPECT_EQ(number["accuracy"], summary_->base_accuracy());
  EXPECT_EQ(number["greedy"], summary_->base_greedy());
  EXPECT_EQ(number["samples"], 4);
  EXPECT_EQ(number["unscored"], Json::object());
  const Json other = Eval("sft/model --data train.jsonl --max-new-tokens 4 --seed 2 --samples 2");
  EXPECT_EQ(other["prompts"], 64);
  EXPECT_EQ(other["samples"], 2);
}

TEST_F(EvalTest, EveryResponseCanBeWritten) {
  const Json number =
      Eval("sft/model --data eval.jsonl --max-new-tokens 4 --samples-file out.jsonl");
  const auto lines = ReadLines(root() + "/out.jsonl");
  ASSERT_EQ(lines.size(), 4u * 5);
  double sampled = 0, greedy = 0, tokens = 0;
  for (const Json& line : lines) {
    (line["greedy"] ? greedy : sampled) += line["score"].get<double>();
    tokens += static_cast<double>(line["tokens"].size());
    EXPECT_EQ(line["answer"], "a");
  }
  EXPECT_EQ(sampled / 16, number["accuracy"]);
  EXPECT_EQ(greedy / 4, number["greedy"]);
  EXPECT_EQ(tokens, number["tokens"]);
  EXPECT_EQ(lines[4]["line"], 2);
  EXPECT_EQ(lines[4]["prompt"], "1+0=");
  EXPECT_EQ(lines[19]["line"], 4);
}

TEST_F(EvalTest, ResponsesWithoutAScoreAreCountedByReason) {
  const std::string arguments =
      "sft/model --data eval.jsonl --max-new-tokens 4 --reward numeric --samples 1";
  const Json number = Eval(arguments);
  EXPECT_EQ(number["accuracy"], 0);
  EXPECT_EQ(number["unscored"]["unscorable"], 8);
  const Result text = RunIn(arguments);
  EXPECT_THAT(text.out, HasSubstr("unscorable     8 of 8 responses, counted as 0"));
  EXPECT_THAT(text.out, HasSubstr("the row's answer 'a' is no number"));
  EXPECT_THAT(text.out, HasSubstr("temperature 1  0.0 % with 1 sample each"));
}

TEST_F(EvalTest, SaysWhatIsWrong) {
  const auto refused = [&](const std::string& arguments, int exit_code, const std::string& why) {
    const Result result = RunIn(arguments);
    EXPECT_EQ(result.exit_code, exit_code) << arguments;
    EXPECT_THAT(result.err, HasSubstr(why)) << arguments;
  };
  refused("", 2, "nothing to evaluate; give a model folder and --data FILE.jsonl, or --job");
  refused("nowhere --data eval.jsonl", 3, "nowhere/config.json");
  refused("start --data eval.jsonl", 2, "start has no safetensors");
  refused("sft/model --data nothing.jsonl", 3, "nothing.jsonl");
  refused("sft/model --data eval.jsonl --answer-column solution", 2,
          "eval.jsonl:1: no column \"solution\"; the row has answer, prompt");
  refused("sft/model --data eval.jsonl --reward regex", 2, "--reward regex needs --reward-pattern");
  refused("sft/model --data eval.jsonl --reward taste", 2, "taste");
  refused("sft/model --data eval.jsonl --samples-file no/where.jsonl", 3, "no/where.jsonl");
  refused("--job nothing.yaml", 3, "nothing.yaml");
  refused("--job job.yaml --root nowhere", 3, "nowhere");
}

}  // namespace
}  // namespace halfstep
