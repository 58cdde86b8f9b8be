// SPDX-License-Identifier: Apache-2.0
// The real binaries: what they print and how they exit when something is wrong.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "tests/cli/command_line.h"

namespace halfstep {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

using CommandLineTest = CommandLine;

constexpr char kGoodJob[] = R"(model: model
steps: 10
data: {train: train.jsonl}
sampling: {max_new_tokens: 32}
batch: {prompts: 8, samples: 4}
optimizer: {learning_rate: 1e-4}
)";

TEST_F(CommandLineTest, WithoutAVerbItSaysThatOneIsNeeded) {
  const Result result = Run("halfstep");
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_THAT(result.err, HasSubstr("subcommand is required"));
}

TEST_F(CommandLineTest, AnUnknownOptionIsNamed) {
  const Result result = Run("halfstep list --colour red");
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_THAT(result.err, HasSubstr("--colour"));
}

TEST_F(CommandLineTest, HelpSucceeds) {
  const Result result = Run("halfstep demo --help");
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_THAT(result.out, HasSubstr("--rollouts"));
}

TEST_F(CommandLineTest, CheckShowsEveryMistakeAtOnceWithItsPlace) {
  Write("job.yaml", "model: model\nsteps: many\nbatch: {prompts: 8, samples: 4, promts: 1}\n");
  const Result result = Run("halfstep check job.yaml");
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_THAT(result.err, StartsWith("error: job.yaml:2:8: "));
  EXPECT_THAT(result.err, HasSubstr("\njob.yaml:3:"));
  EXPECT_THAT(result.err, HasSubstr("did you mean 'prompts'?"));
  const Result json = Run("halfstep check job.yaml --format json");
  EXPECT_EQ(json.exit_code, 2);
  EXPECT_THAT(json.out, HasSubstr("\"reason\": \"INVALID_SPEC\""));
}

TEST_F(CommandLineTest, CheckExplainsTheAlgorithm) {
  Write("job.yaml",
        "model: model\nsteps: 4\nbatch: {prompts: 8, samples: 4}\n"
        "data: {train: prompts.jsonl}\nreward: {type: exact_match}\n"
        "sampling: {max_new_tokens: 16}\noptimizer: {learning_rate: 0.001}\n"
        "algorithm: {preset: grpo_seq_mis, clip: [0.1, 0.3]}\n");
  const Result plain = Run("halfstep check job.yaml");
  EXPECT_EQ(plain.exit_code, 0) << plain.err;
  EXPECT_THAT(plain.out, ::testing::Not(HasSubstr("sequence_mis")));
  const Result result = Run("halfstep check job.yaml --explain");
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.out, HasSubstr("sequence_mis"));
  EXPECT_THAT(result.out, HasSubstr("1 - 0.1, 1 + 0.3"));
}

TEST_F(CommandLineTest, CheckNamesWhatAnAlgorithmCannotBe) {
  const auto refused = [this](const char* samples, const char* algorithm, const char* what) {
    Write("job.yaml",
          absl::StrCat("model: model\nsteps: 4\nbatch: {prompts: 8, samples: ", samples,
                       "}\ndata: {train: prompts.jsonl}\n", "sampling: {max_new_tokens: 16}\n",
                       "optimizer: {learning_rate: 0.001}\nalgorithm: ", algorithm));
    const Result result = Run("halfstep check job.yaml --explain");
    EXPECT_EQ(result.exit_code, 2) << algorithm;
    EXPECT_THAT(result.err, StartsWith("error: job.yaml: "));
    EXPECT_THAT(result.err, HasSubstr(what));
  };
  refused("4", "{choices: {objective: ppo_klip}}", "did you mean 'ppo_clip'?");
  refused("4", "{preset: rloo, parameters: {dual_clip: 3}}", "take objective ppo_clip");
  refused("1", "{preset: grpo}", "group_mean_std compares the responses to a prompt");
}

// The demo's model, in the source.
std::string DemoModel() {
  const char* source = std::getenv("HALFSTEP_SOURCE_DIR");
  return absl::StrCat("'", source == nullptr ? "." : source, "/deploy/examples/demo/model'");
}

TEST_F(CommandLineTest, CheckRangeSaysWhetherTheModelFitsIntoFp16) {
  Write("prompts.jsonl", "{\"prompt\":\"528+999=\",\"response\":\"1527\"}\n");
  const std::string command =
      absl::StrCat("halfstep check ", DemoModel(), " --range --prompts prompts.jsonl");
  const Result table = Run(command);
  EXPECT_EQ(table.exit_code, 0) << table.err;
  EXPECT_THAT(table.out, HasSubstr("safe in FP16 on these prompts"));
  EXPECT_THAT(table.out, HasSubstr("attention_output"));
  EXPECT_THAT(table.out, HasSubstr("1 sequences, 7 tokens predicted"));
  const Result json =
      Run(absl::StrCat(command, " --response-column response --precision fp32 --format json"));
  EXPECT_EQ(json.exit_code, 0) << json.err;
  EXPECT_THAT(json.out, HasSubstr("\"tokens\": 4"));
  EXPECT_THAT(json.out, HasSubstr("\"safe_in_fp16\": true"));

  EXPECT_THAT(table.out, ::testing::Not(HasSubstr("mlp_residual (FP32)")));
  const Result residual = Run(command + " --residual fp32");
  EXPECT_THAT(residual.out, HasSubstr("mlp_residual (FP32)"));
  EXPECT_THAT(residual.out, ::testing::Not(HasSubstr("final_norm (FP32)")));
  EXPECT_THAT(residual.out, HasSubstr("safe in FP16 with residual: fp32 on these prompts: the"));
  EXPECT_THAT(Run(command + " --head fp32").out, HasSubstr("final_norm (FP32)"));
}

TEST_F(CommandLineTest, CheckRangeNamesWhatIsWrongWithItsInput) {
  const auto refused = [this](const std::string& command, int code, const char* what) {
    const Result result = Run("halfstep check " + command);
    EXPECT_EQ(result.exit_code, code) << command;
    EXPECT_THAT(result.err, HasSubstr(what)) << command;
  };
  Write("short.jsonl", "{\"prompt\":\"12\"}\n\n{\"prompt\":\"1\"}\n");
  Write("long.jsonl", absl::StrCat("{\"prompt\":\"", std::string(100'000, '1'), "\"}\n"));
  const std::string range = DemoModel() + " --range";
  refused(range, 2, "--range needs --prompts");
  refused(range + " --prompts short.jsonl", 2, "short.jsonl:3: a prompt of one token");
  refused(range + " --prompts short.jsonl --response-column answer", 2, "short.jsonl:1");
  refused(range + " --prompts long.jsonl", 2, "long.jsonl:1: has 100000 tokens");
  refused(range + " --prompts short.jsonl --root .", 2, "--explain are for a job file");
  refused(DemoModel(), 2, "is a folder; give a job file, or --range");
  refused("job.yaml --prompts short.jsonl", 2, "go with --range");
  refused("nothing --range --prompts short.jsonl", 3, "nothing");
}

TEST_F(CommandLineTest, CheckDoesTheBatchArithmetic) {
  Write("job.yaml", kGoodJob);
  const Result result = Run("halfstep check job.yaml");
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.out, HasSubstr("8 prompts x 4 samples = 32 sequences per step, 320 in all"));
}

TEST_F(CommandLineTest, CheckWithARootLooksAtFiles) {
  Write("job.yaml", kGoodJob);
  const Result result = Run("halfstep check job.yaml --root .");
  EXPECT_EQ(result.exit_code, 3);
  EXPECT_THAT(result.err, HasSubstr("model/config.json"));
}

TEST_F(CommandLineTest, AMissingJobFileIsNamed) {
  const Result result = Run("halfstep submit nothing.yaml");
  EXPECT_EQ(result.exit_code, 3);
  EXPECT_THAT(result.err, HasSubstr("nothing.yaml"));
}

TEST_F(CommandLineTest, AnUnreachableLearnerIsNamedWithTheWayOut) {
  // Nobody listens on the discard port.
  const Result result = Run("halfstep list --learner 127.0.0.1:9 --timeout 5");
  EXPECT_EQ(result.exit_code, 5);
  EXPECT_THAT(result.err, StartsWith("error: no learner answers at 127.0.0.1:9 ("));
  EXPECT_THAT(result.err, HasSubstr("start halfstep-learner, or name another with --learner"));
}

TEST_F(CommandLineTest, ADemoNeedsAnEmptyFolder) {
  Write("something", "");
  const Result result = Run("halfstep demo --output-dir .");
  EXPECT_EQ(result.exit_code, 4);
  EXPECT_THAT(result.err, HasSubstr(". is not empty; name another with --output-dir"));
}

TEST_F(CommandLineTest, ALearnerRefusesAPublicAddress) {
  const Result result = Run("halfstep-learner --listen 0.0.0.0:0 --http 127.0.0.1:0");
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.err, HasSubstr("refusing to listen on 0.0.0.0:0 without TLS"));
}

TEST_F(CommandLineTest, ALearnerRefusesARootThatIsNone) {
  const Result result = Run("halfstep-learner --root nowhere --http 127.0.0.1:0");
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.err, HasSubstr("--root nowhere is not a folder; create it first"));
}

}  // namespace
}  // namespace halfstep
