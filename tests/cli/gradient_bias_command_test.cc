// SPDX-License-Identifier: Apache-2.0
// halfstep gradient-bias on a tiny model that answers right a quarter of the time.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include "tests/cli/command_line.h"
#include "tests/learner_server/tiny_job.h"

namespace halfstep {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::SizeIs;
using Json = nlohmann::json;

// sft/model, and younger/model, which was trained for fewer steps.
class GradientBiasCommandTest : public CommandLine {
 protected:
  static void SetUpTestSuite() {
    workplace_ = new TinyWorkplace();
    TinyLearner teacher(root(), nullptr);
    ASSERT_TRUE(teacher.Run("sft", TinyWorkplace::SupervisedSpec(40)).ok());
    v1::TrainingJobSpec spec = TinyWorkplace::SupervisedSpec(30);
    spec.set_output_dir("younger");
    ASSERT_TRUE(teacher.Run("younger", spec).ok());
    std::filesystem::copy(root() + "/younger/model", root() + "/short");
    Json config = Json::parse(ReadText(root() + "/short/config.json"));
    config["max_position_embeddings"] = 7;
    WriteText(root() + "/short/config.json", config.dump());
    WriteText(root() + "/wrong.jsonl", "{\"prompt\":\"1+1=\",\"answer\":\"nothing at all\"}\n");
  }
  static void TearDownTestSuite() { delete workplace_; }

  static const std::string& root() { return workplace_->root().path(); }

  Result RunIn(const std::string& arguments) {
    return RunShell(
        absl::StrCat("cd '", root(), "' && '", Binary("halfstep"), "' gradient-bias ", arguments));
  }

  Json Study(const std::string& arguments) {
    const Result result = RunIn(
        "sft/model --data train.jsonl --max-new-tokens 4 --threads 1 --format json " + arguments);
    EXPECT_EQ(result.exit_code, 0) << result.err << result.out;
    return Json::parse(result.out, nullptr, false);
  }

  static const Json& Correction(const Json& cell, const std::string& name) {
    for (const Json& correction : cell["corrections"]) {
      if (correction["correction"] == name) return correction;
    }
    ADD_FAILURE() << "no correction " << name;
    return cell;
  }

  static inline TinyWorkplace* workplace_ = nullptr;
};

TEST_F(GradientBiasCommandTest, WhereMuIsPiEveryCorrectionIsTheExactGradient) {
  const Json report = Study("--profile bitwise --cells fp16/fp16,bf16/bf16,fp32/fp32 --batches 12");
  EXPECT_EQ(report["prompts_skipped"], 0);
  ASSERT_THAT(report["cells"], SizeIs(3));
  for (const Json& cell : report["cells"]) {
    SCOPED_TRACE(cell["learner"]);
    EXPECT_EQ(cell["responses"], 12 * 8 * 8);
    EXPECT_GT(cell["score"], 0);
    EXPECT_LT(cell["score"], 1);
    EXPECT_EQ(cell["equal_share"], 1);
    EXPECT_EQ(cell["mismatch"]["abs_max"], 0);
    EXPECT_EQ(cell["exact"]["abs_max"], 0);
    EXPECT_GT(cell["exact"]["norm"]["low"], 0);
    ASSERT_THAT(cell["corrections"], SizeIs(10));
    for (const Json& correction : cell["corrections"]) {
      SCOPED_TRACE(correction["correction"]);
      EXPECT_EQ(correction["weights"]["mean"], 1);
      EXPECT_EQ(correction["weights"]["max"], 1);
      EXPECT_EQ(correction["weights"]["effective_sample_size"], 1);
      for (const char* bias : {"bias", "paired_bias"}) {
        EXPECT_EQ(correction["gradient"][bias]["value"], 0);
        EXPECT_EQ(correction["gradient"][bias]["high"], 0);
        EXPECT_EQ(correction["gradient"][bias]["batches_apart"], 0);
      }
      EXPECT_NEAR(correction["gradient"]["cosine"]["value"], 1, 1e-12);
      EXPECT_EQ(correction["gradient"]["variance_ratio"]["value"], 1);
    }
  }
}

TEST_F(GradientBiasCommandTest, AnOlderRolloutBiasesWhatDoesNotCorrectIt) {
  const Json report = Study(
      "--rollout-model younger/model --cells fp32/fp32 --batches 40 "
      "--corrections none,sequence_is");
  const Json& cell = report["cells"][0];
  EXPECT_EQ(cell["exact"]["abs_max"], 0) << "the reference samples from the learner's own weights";
  EXPECT_GT(cell["mismatch"]["abs_mean"], 0.01);
  EXPECT_LT(cell["equal_share"], 1);
  const Json& none = Correction(cell, "none");
  EXPECT_EQ(none["weights"]["max"], 1);
  EXPECT_GT(none["gradient"]["paired_bias"]["low"], 0);
  EXPECT_GT(none["gradient"]["bias"]["low"], 0);
  const Json& sequence_is = Correction(cell, "sequence_is");
  EXPECT_EQ(sequence_is["gradient"]["paired_bias"]["high"], 0);
  EXPECT_EQ(sequence_is["gradient"]["bias"]["low"], 0) << "told from the exact gradient";
  EXPECT_LT(sequence_is["weights"]["effective_sample_size"], 1);
}

TEST_F(GradientBiasCommandTest, PrintsATableForEachCellAndTheSameAgain) {
  WriteText(root() + "/long.jsonl", ReadText(root() + "/train.jsonl") + R"({"prompt":")" +
                                        std::string(40, '1') + R"(","answer":"a"})" + "\n");
  const std::string command =
      "sft/model --data long.jsonl --max-new-tokens 4 --threads 1 --batches 6";
  const Result text = RunIn(command);
  ASSERT_EQ(text.exit_code, 0) << text.err;
  EXPECT_THAT(text.out, HasSubstr("rollouts in profile fast, temperature 1; 6 batches of 8 "));
  EXPECT_THAT(text.out, HasSubstr("1 prompts are too long for the model and were left out"));
  EXPECT_THAT(text.out, HasSubstr("rollout fp16, learner fp16: "));
  EXPECT_THAT(text.out, HasSubstr("rollout bf16, learner bf16: "));
  EXPECT_THAT(text.out, HasSubstr("geometric_mask"));
  EXPECT_THAT(text.out, HasSubstr("reference"));
  EXPECT_THAT(text.err, HasSubstr("6 batches of 64 responses, bf16/bf16\n"));
  EXPECT_EQ(RunIn(command).out, text.out) << "the same seed gives the same figures";
  EXPECT_THAT(RunIn(command + " --seed 2").out, Not(text.out));
}

TEST_F(GradientBiasCommandTest, SaysWhatIsWrong) {
  const auto refused = [&](const std::string& arguments, int exit_code, const std::string& why) {
    const Result result = RunIn("sft/model --threads 1 --max-new-tokens 4 " + arguments);
    EXPECT_EQ(result.exit_code, exit_code) << arguments;
    EXPECT_THAT(result.err, HasSubstr(why)) << arguments;
  };
  refused("", 2, "--data is required");
  refused("--data train.jsonl --batch-prompts 65", 2, "there are 64; ask for fewer");
  refused("--data train.jsonl --profile bitwise --cells bf16/fp16", 2,
          "profile bitwise needs equal precisions, and cell bf16/fp16 has not");
  refused("--data train.jsonl --cells bf16", 2, "bf16");
  refused("--data train.jsonl --corrections all", 2, "all");
  refused("--data train.jsonl --samples 1", 2, "--samples");
  refused("--data train.jsonl --temperature 0", 2, "--temperature");
  refused("--data train.jsonl --reward regex", 2, "--reward regex needs --reward-pattern");
  refused("--data train.jsonl --batches 100000", 1, "are free; ask for fewer batches");
  refused("--data wrong.jsonl --batch-prompts 1 --batches 3", 4,
          "all responses to a prompt have the same score, for each of 3 groups in fp16");
  refused("--data wrong.jsonl --batch-prompts 1 --reward numeric", 4,
          "wrong.jsonl:1: a response has no score (unscorable: ");
  refused("--data train.jsonl --rollout-model short", 2,
          "short has 257 tokens and 7 positions where sft/model has 257 and needs ");
}

}  // namespace
}  // namespace halfstep
