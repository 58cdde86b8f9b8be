// SPDX-License-Identifier: Apache-2.0
// halfstep generate: with a model folder, and with a rollout server that serves the same weights.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_split.h"
#include "cli/generator.h"
#include "cli/local_engine.h"
#include "common/base/utf8.h"
#include "rollout_server/rollout_server.h"
#include "tests/cli/command_line.h"
#include "tests/cli/tiny_model_folder.h"
#include "tests/rollout_server/fake_learner.h"

namespace halfstep {
namespace {

using ::testing::Each;
using ::testing::HasSubstr;
using ::testing::Le;
using ::testing::SizeIs;
using ::testing::StartsWith;
using Json = nlohmann::json;

class GenerateTest : public CommandLine {
 protected:
  GenerateTest() : master_(WriteTinyModelFolder(dir_)) {}

  // A rollout server that serves the folder's weights; returns its address.
  std::string Serve() {
    learner_ = std::make_unique<FakeLearner>();
    RolloutServerOptions options;
    options.id = "rollout-g";
    options.learner.target = learner_->address();
    options.threads = 1;
    server_ = *RolloutServer::Start(std::move(options));
    learner_->Welcome();
    OwnedTensor rope("rope", DType::kFloat32, {64, 2, 8});
    FillRopeTable(TinyConfig().rope, rope);
    const auto weights = WeightSet::Create(5, master_->parameters(), DType::kFloat16, rope);
    learner_->AddWeights(weights);
    learner_->LoadJob(1);
    learner_->Serve(1, *weights);
    return server_->grpc_address();
  }

  std::vector<Json> Lines(const Result& result) {
    EXPECT_EQ(result.exit_code, 0) << result.err << result.out;
    std::vector<Json> lines;
    for (const auto line : absl::StrSplit(result.out, '\n', absl::SkipEmpty())) {
      lines.push_back(Json::parse(line));
    }
    return lines;
  }

  std::shared_ptr<ModelWeights> master_;
  std::unique_ptr<FakeLearner> learner_;
  std::unique_ptr<RolloutServer> server_;
};

TEST_F(GenerateTest, TheResponseOfAModelFolderIsPrintedAsText) {
  const std::string command = "halfstep generate model --prompt 1+2= --max-new-tokens 30 --seed 9";
  const std::vector<Json> lines = Lines(Run(command + " --format json --log-probs"));
  ASSERT_THAT(lines, SizeIs(1));
  EXPECT_EQ(lines[0]["prompt"], "1+2=");
  EXPECT_EQ(lines[0]["index"], 0);
  const auto tokens = lines[0]["tokens"].get<std::vector<int32_t>>();
  const auto model = *OpenLocalModel(dir_ / "model");
  EXPECT_EQ(lines[0]["response"], model.tokenizer->Decode(tokens, SpecialTokens::kOmit));
  EXPECT_EQ(lines[0]["finish_reason"], tokens.back() == 1 ? "stop" : "length");
  EXPECT_THAT(lines[0]["log_probs"].get<std::vector<float>>(), SizeIs(tokens.size()));
  EXPECT_THAT(lines[0]["log_probs"].get<std::vector<float>>(), Each(Le(0)));

  const Result text = Run(command);
  EXPECT_EQ(text.out, lines[0]["response"].get<std::string>() + "\n");
  EXPECT_NE(Run(command + "0").out, text.out) << "another seed";
  EXPECT_EQ(Run(command + " --threads 2").out, text.out);
}

TEST_F(GenerateTest, PiecesOfAStreamNeverSplitACodePoint) {
  LocalGenerator generator(*OpenLocalModel(dir_ / "model"), {.threads = 1});
  GenerateOrder order;
  order.prompts = {{"1+2=", ""}};
  order.sampling.max_new_tokens = 200;
  std::string text;
  std::vector<int32_t> tokens;
  const absl::Status status = generator.Generate(
      order,
      [&](const Piece& piece) {
        EXPECT_TRUE(IsUtf8(piece.text));
        text += piece.text;
        tokens.insert(tokens.end(), piece.tokens.begin(), piece.tokens.end());
      },
      [] { return true; });
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(text,
            (*OpenLocalModel(dir_ / "model")).tokenizer->Decode(tokens, SpecialTokens::kOmit));
}

TEST_F(GenerateTest, ResponsesComeInTheOrderOfPromptsAndSamples) {
  Write("p.jsonl", "{\"q\": \"one\"}\n\n{\"q\": \"two\"}\n{\"q\": \"one\"}\n");
  const std::string common = " --max-new-tokens 10 --format json";
  const auto lines = Lines(Run(
      "halfstep generate model --prompts p.jsonl --prompt-column q --samples 2 --seed 4" + common));
  ASSERT_THAT(lines, SizeIs(6));
  for (size_t i = 0; i < lines.size(); ++i) {
    EXPECT_EQ(lines[i]["prompt"], i / 2 == 1 ? "two" : "one");
    EXPECT_EQ(lines[i]["index"], i % 2);
  }
  EXPECT_NE(lines[0]["tokens"], lines[1]["tokens"]);
  EXPECT_NE(lines[0]["tokens"], lines[4]["tokens"]) << "a prompt that comes twice draws twice";
  const auto alone =
      Lines(Run("halfstep generate model --prompt two --samples 2 --seed 5" + common));
  ASSERT_THAT(alone, SizeIs(2));
  EXPECT_EQ(alone[1], lines[3]) << "the second prompt is drawn with the next seed";

  const Result text = Run(
      "halfstep generate model --prompts p.jsonl --prompt-column q --max-new-tokens 3 --greedy");
  EXPECT_THAT(text.out, StartsWith("--- p.jsonl:1, sample 0 ("));
  EXPECT_THAT(text.out, HasSubstr("\n--- p.jsonl:3, sample 0 ("));
}

TEST_F(GenerateTest, AStopStringEndsTheResponse) {
  const std::string command =
      "halfstep generate model --prompt 1+2= --greedy --max-new-tokens 30 --format json";
  const std::string all = Lines(Run(command))[0]["response"];
  std::string stop;
  for (const char c : all) {
    if (absl::ascii_isalnum(static_cast<unsigned char>(c))) stop = c;
  }
  ASSERT_FALSE(stop.empty()) << "choose another prompt: " << all;
  const Json stopped = Lines(Run(command + " --stop @@@ --stop " + stop))[0];
  EXPECT_EQ(stopped["response"], all.substr(0, all.find(stop) + 1));
  EXPECT_EQ(stopped["finish_reason"], "stop");
}

TEST_F(GenerateTest, AServerGivesTheSameTextAsTheFolderThatItServes) {
  const std::string server = " --server " + Serve();
  Write("p.jsonl",
        "{\"prompt\": \"one\"}\n{\"prompt\": \"two\"}\n{\"prompt\": \"three\"}\n"
        "{\"prompt\": \"four\"}\n{\"prompt\": \"five\"}\n{\"prompt\": \"six\"}\n");
  for (const std::string options :
       {" --prompt 1+2= --seed 9 --max-new-tokens 20",
        " --prompt 1+2= --max-new-tokens 20 --log-probs --stop 1 --top-p 0.9",
        " --prompts p.jsonl --samples 3 --temperature 0.7 --max-new-tokens 20 --format json "
        "--log-probs"}) {
    const Result here = Run("halfstep generate model" + options);
    const Result there = Run("halfstep generate" + server + options);
    EXPECT_EQ(here.exit_code, 0) << here.err;
    EXPECT_EQ(there.exit_code, 0) << there.err << there.out;
    EXPECT_EQ(here.out, there.out) << options;
  }
  // Without a length it is what the server has room for.
  EXPECT_EQ(Run("halfstep generate --prompt 1+2=" + server).exit_code, 0);
  const Result too_long = Run("halfstep generate --prompt 1+2= --max-new-tokens 500" + server);
  EXPECT_EQ(too_long.exit_code, 2);
  EXPECT_THAT(too_long.err, HasSubstr("exceed the longest sequence of 64 tokens; ask for fewer"));
}

TEST_F(GenerateTest, AnInterruptedCommandEndsWith130) {
  // The reader takes the first of very many responses and interrupts.
  const Result result = RunShell(absl::StrCat(
      "mkfifo pipe; '", Binary("halfstep"),
      "' generate model --prompt 1+2= --samples 4096 --max-new-tokens 100 --format json "
      ">pipe & pid=$!; exec 3<pipe; read -r line <&3; kill -INT $pid; cat <&3 >rest.txt; "
      "wait $pid"));
  EXPECT_EQ(result.exit_code, 130) << result.err;
  EXPECT_THAT(Slurp(dir_ / "rest.txt"), HasSubstr("\"code\": \"CANCELLED\""));
}

TEST_F(GenerateTest, SaysWhatIsWrongWithTheCommandLine) {
  const auto refused = [&](const std::string& arguments, const std::string& why) {
    const Result result = Run("halfstep generate " + arguments);
    EXPECT_EQ(result.exit_code, 2) << arguments;
    EXPECT_THAT(result.err, HasSubstr(why)) << arguments;
  };
  refused("--prompt x", "nothing to generate with; name a model folder or --server HOST:PORT");
  refused("model --server 127.0.0.1:9 --prompt x",
          "a model folder and --server exclude each other");
  refused("model", "no prompt; give --prompt TEXT or --prompts FILE.jsonl");
  refused("model --prompt x --prompts y", "--prompt and --prompts exclude each other");
  refused("--server 127.0.0.1:9 --prompt x --precision fp32", "--head and --threads are for");
  refused("model --prompt x --greedy --temperature 1", "--temperature excludes --greedy");
  refused("model --prompt x --precision int8", "int8");
  refused("--server 127.0.0.1:9 --prompt x --residual fp32", "--head and --threads are for");
  refused("model --prompt x --head bf16", "bf16");
  refused("model --prompt x --top-p 0", "--top-p");
  refused("model --prompt ''", "no prompt; give");
  refused("model --prompt x --max-new-tokens 512",
          "exceed the longest sequence of 512 tokens; ask for fewer");
}

TEST_F(GenerateTest, AMissingModelFolderIsNamed) {
  const Result result = Run("halfstep generate nowhere --prompt x");
  EXPECT_EQ(result.exit_code, 3);
  EXPECT_THAT(result.err, HasSubstr("nowhere/config.json"));
  const Result weightless = Run("halfstep generate base --prompt x");
  EXPECT_EQ(weightless.exit_code, 2);
  EXPECT_THAT(weightless.err, HasSubstr("base has no safetensors to generate with"));
}

TEST_F(GenerateTest, BadPromptFilesAreNamedWithTheLine) {
  Write("p.jsonl", "{\"prompt\": \"x\"}\n{\"question\": \"y\"}\n");
  const Result column = Run("halfstep generate model --prompts p.jsonl");
  EXPECT_EQ(column.exit_code, 2);
  EXPECT_THAT(column.err, HasSubstr("p.jsonl:2: no column \"prompt\"; the row has question; name"));
  EXPECT_THAT(column.err, HasSubstr("--prompt-column"));
  Write("p.jsonl", "{\"prompt\": \"x\"}\n{\"prompt\": \"\"}\n");
  const Result empty = Run("halfstep generate model --prompts p.jsonl");
  EXPECT_EQ(empty.exit_code, 2);
  EXPECT_THAT(empty.err, HasSubstr("p.jsonl:2: the prompt has no tokens"));
  const Result missing = Run("halfstep generate model --prompts nothing.jsonl");
  EXPECT_EQ(missing.exit_code, 3);
  EXPECT_THAT(missing.err, HasSubstr("nothing.jsonl"));
}

TEST_F(GenerateTest, AnUnreachableServerIsNamedWithTheWayOut) {
  // Nobody listens on the discard port.
  const Result result = Run("halfstep generate --server 127.0.0.1:9 --prompt x --timeout 5");
  EXPECT_EQ(result.exit_code, 5);
  EXPECT_THAT(result.err, StartsWith("error: no rollout server answers at 127.0.0.1:9 ("));
  EXPECT_THAT(result.err, HasSubstr("start halfstep-rollout, or name another with --server"));
}

}  // namespace
}  // namespace halfstep
