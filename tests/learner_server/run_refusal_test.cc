// SPDX-License-Identifier: Apache-2.0
// Jobs that are refused, by a check or at their start, with what is wrong and where.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <functional>

#include "common/base/error_reason.h"
#include "learner_server/training/run_folder.h"
#include "tests/learner_server/tiny_job.h"

namespace halfstep {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class RunRefusalTest : public TinyRunTest {};

TEST_F(RunRefusalTest, RefusesAFolderWithOtherThings) {
  std::filesystem::create_directories(root() + "/full");
  WriteText(root() + "/full/notes.txt", "mine");
  LocalRolloutPool pool;
  TinyLearner learner(root(), &pool);
  const v1::TrainingJobSpec spec = TinyWorkplace::RlSpec("full", 2);
  for (const absl::Status& status :
       {learner.Run("full", spec).status(), learner.runner().Check(spec)}) {
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_EQ(ReasonOf(status), "OUTPUT_DIR_NOT_EMPTY");
    EXPECT_THAT(std::string(status.message()), HasSubstr("notes.txt"));
  }
  EXPECT_EQ(ReadText(root() + "/full/notes.txt"), "mine");
  // Nor does it touch the run of another job.
  const absl::Status other = learner.Run("someone", TinyWorkplace::RlSpec("sft", 2)).status();
  EXPECT_EQ(other.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ReasonOf(other), "OUTPUT_DIR_NOT_EMPTY");
  EXPECT_THAT(std::string(other.message()),
              HasSubstr("/sft is not empty (it belongs to job sft); choose another output_dir"));
}

TEST_F(RunRefusalTest, RefusesAFolderThatAnotherLearnerUses) {
  const auto other = RunFolder::Open(root() + "/shared", "shared");
  ASSERT_TRUE(other.ok()) << other.status();
  LocalRolloutPool pool;
  TinyLearner learner(root(), &pool);
  const auto result = learner.Run("shared", TinyWorkplace::RlSpec("shared", 2));
  EXPECT_EQ(result.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ReasonOf(result.status()), "RUN_FOLDER_IN_USE");
  EXPECT_THAT(std::string(result.status().message()),
              HasSubstr("/shared is in use by another learner"));
  EXPECT_FALSE(std::filesystem::exists(root() + "/shared/job.json"));
}

TEST_F(RunRefusalTest, OverlongPromptsAreCountedAndLeftOutOrRefused) {
  const std::string long_row =
      absl::StrCat("{\"prompt\":\"", std::string(32, '7'), "\",\"answer\":\"a\"}\n");
  WriteText(root() + "/long.jsonl", long_row + ReadText(root() + "/train.jsonl") + long_row);
  LocalRolloutPool pool;
  TinyLearner learner(root(), &pool);
  v1::TrainingJobSpec spec = TinyWorkplace::RlSpec("overlong", 1);
  spec.mutable_data()->set_train("long.jsonl");
  const auto refused = learner.Run("overlong", spec);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ReasonOf(refused.status()), "PROMPT_TOO_LONG");
  EXPECT_THAT(std::string(refused.status().message()),
              HasSubstr("long.jsonl:1: a prompt of 32 tokens needs room for 33, the model has 32"));

  spec.mutable_data()->set_overlong_prompts(v1::OVERLONG_PROMPTS_SKIP);
  ASSERT_TRUE(learner.Run("overlong", spec).ok());
  ASSERT_THAT(learner.control().notices(), ElementsAre("PROMPTS_SKIPPED"));
  EXPECT_THAT(learner.control().events()[0].notice().message(), HasSubstr("2 of 66 prompts of"));
  EXPECT_THAT(learner.control().events()[0].notice().message(), HasSubstr("long.jsonl are left"));
}

TEST_F(RunRefusalTest, BadWeightsAreFoundByCheckAndLeaveNoRunFolder) {
  std::filesystem::copy(root() + "/sft/model", root() + "/torn");
  std::filesystem::resize_file(root() + "/torn/model.safetensors", 5000);
  LocalRolloutPool pool;
  TinyLearner learner(root(), &pool);
  v1::TrainingJobSpec spec = TinyWorkplace::RlSpec("from_torn", 2);
  spec.set_model("torn");
  for (const absl::Status& status :
       {learner.runner().Check(spec), learner.Run("from_torn", spec).status()}) {
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(ReasonOf(status), "INVALID_SAFETENSORS");
    EXPECT_THAT(std::string(status.message()), HasSubstr("/torn/model.safetensors': tensor '"));
    EXPECT_THAT(std::string(status.message()), HasSubstr("the file is truncated"));
  }
  EXPECT_FALSE(std::filesystem::exists(root() + "/from_torn"));
  EXPECT_EQ(pool.jobs_begun(), 0);
}

TEST_F(RunRefusalTest, NanWeightsEndTheRunBeforeItsFirstStep) {
  std::filesystem::copy(root() + "/sft/model", root() + "/nan");
  // The tensors come last in the file.
  std::string bytes = ReadText(root() + "/nan/model.safetensors");
  bytes[bytes.size() - 1] = bytes[bytes.size() - 2] = '\x7f';
  WriteText(root() + "/nan/model.safetensors", bytes);
  LocalRolloutPool pool;
  TinyLearner learner(root(), &pool);
  v1::TrainingJobSpec spec = TinyWorkplace::RlSpec("from_nan", 2);
  spec.set_model("nan");
  const absl::Status status = learner.Run("from_nan", spec).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ReasonOf(status), "NON_FINITE_WEIGHTS");
  EXPECT_THAT(std::string(status.message()), HasSubstr("/nan/model.safetensors' holds 1 NaN"));
  EXPECT_EQ(pool.jobs_begun(), 0);
}

TEST_F(RunRefusalTest, AModelFolderWithLinksOutOfTheRootIsRefused) {
  TinyWorkplace workplace;
  TempDir outside;
  TinyLearner learner(workplace.root().path(), nullptr);
  for (const std::string name : {"config.json", "tokenizer.json"}) {
    const std::string file = workplace.root() / ("start/" + name);
    std::filesystem::rename(file, outside / name);
    std::filesystem::create_symlink(outside / name, file);
    const v1::TrainingJobSpec spec = TinyWorkplace::SupervisedSpec(1);
    for (const absl::Status& status :
         {learner.Run("sft", spec).status(), learner.runner().Check(spec)}) {
      EXPECT_EQ(status.code(), absl::StatusCode::kPermissionDenied);
      EXPECT_EQ(ReasonOf(status), "PATH_OUTSIDE_ROOT");
      EXPECT_THAT(std::string(status.message()), HasSubstr(name));
    }
    std::filesystem::remove(file);
    std::filesystem::rename(outside / name, file);
  }
}

TEST_F(RunRefusalTest, RefusesAFolderInsideAnotherRun) {
  LocalRolloutPool pool;
  TinyLearner learner(root(), &pool);
  const v1::TrainingJobSpec spec = TinyWorkplace::RlSpec("sft/inner", 2);
  for (const absl::Status& status :
       {learner.Run("inner", spec).status(), learner.runner().Check(spec)}) {
    EXPECT_EQ(ReasonOf(status), "OUTPUT_DIR_NOT_ALLOWED") << status;
  }
  EXPECT_FALSE(std::filesystem::exists(root() + "/sft/inner"));
}

TEST_F(RunRefusalTest, CheckCountsRowsThatAreSkipped) {
  const std::string overlong =
      absl::StrCat("{\"prompt\":\"", std::string(40, '1'), "\",\"answer\":\"a\"}\n");
  WriteText(root() + "/with_long.jsonl", overlong + ReadText(root() + "/train.jsonl") + overlong);
  WriteText(root() + "/eval_long.jsonl", overlong + ReadText(root() + "/eval.jsonl"));
  v1::TrainingJobSpec spec = TinyWorkplace::RlSpec("checked", 2);
  spec.mutable_data()->set_train("with_long.jsonl");
  spec.mutable_data()->set_eval("eval_long.jsonl");
  LocalRolloutPool pool;
  TinyLearner learner(root(), &pool);
  EXPECT_EQ(ReasonOf(learner.runner().Inspect(spec).status()), "PROMPT_TOO_LONG");
  spec.mutable_data()->set_overlong_prompts(v1::OVERLONG_PROMPTS_SKIP);
  const auto report = learner.runner().Inspect(spec);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->train_rows_skipped, 2);
  EXPECT_EQ(report->eval_rows_skipped, 1);
}

TEST_F(RunRefusalTest, CheckFindsWhatOnlyTheLearnerCanSee) {
  LocalRolloutPool pool;
  TinyLearner learner(root(), &pool);
  const auto check = [&](const std::function<void(v1::TrainingJobSpec*)>& spoil) {
    v1::TrainingJobSpec spec = TinyWorkplace::RlSpec("checked", 2);
    spoil(&spec);
    return learner.runner().Check(spec);
  };
  const auto expect = [&](const std::function<void(v1::TrainingJobSpec*)>& spoil,
                          absl::StatusCode code, const std::string& reason,
                          const std::string& message) {
    const absl::Status status = check(spoil);
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_EQ(ReasonOf(status), reason) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(message));
  };
  // A copy of the model with one file in it changed.
  const auto with_file = [&](const std::string& name, const std::string& file,
                             const std::string& text) {
    std::filesystem::copy(root() + "/sft/model", root() + "/" + name);
    WriteText(root() + "/" + name + "/" + file, text);
    return [name](v1::TrainingJobSpec* spec) { spec->set_model(name); };
  };
  EXPECT_TRUE(check([](v1::TrainingJobSpec*) {}).ok());
  EXPECT_FALSE(std::filesystem::exists(root() + "/checked"));
  using enum absl::StatusCode;
  expect([](auto* spec) { spec->set_model("start"); }, kInvalidArgument, "MODEL_WITHOUT_WEIGHTS",
         "/start has no safetensors; only a supervised job can start at random");
  expect([](auto* spec) { spec->set_model("nowhere"); }, kNotFound, "FILE_NOT_FOUND",
         "/nowhere/config.json': No such file or directory");
  expect([](auto* spec) { spec->set_output_dir("../elsewhere"); }, kPermissionDenied,
         "PATH_OUTSIDE_ROOT", "'../elsewhere' holds '..'");
  expect([](auto* spec) { spec->mutable_data()->set_train("none.jsonl"); }, kNotFound,
         "FILE_NOT_FOUND", "/none.jsonl': No such file or directory");
  expect([](auto* spec) { spec->mutable_data()->set_train("sft.jsonl"); }, kInvalidArgument,
         "BAD_DATASET_ROW", "sft.jsonl:1: no column \"answer\"; the row has prompt, response");
  WriteText(root() + "/empty.jsonl", "\n");
  expect([](auto* spec) { spec->mutable_data()->set_eval("empty.jsonl"); }, kInvalidArgument,
         "EMPTY_DATASET", "empty.jsonl has no rows");
  expect(with_file("moe", "config.json", R"({"model_type": "mixtral"})"), kUnimplemented,
         "UNSUPPORTED_ARCHITECTURE", "/moe/config.json: model_type = \"mixtral\" is not supported");
  expect(with_file("unigram", "tokenizer.json", R"({"model": {"type": "Unigram"}})"),
         kUnimplemented, "UNSUPPORTED_TOKENIZER",
         "/unigram/tokenizer.json: model type Unigram; only byte-level BPE is supported");
  expect(
      [](auto* spec) {
        spec->mutable_reward()->set_type(v1::REWARD_TYPE_REGEX);
        spec->mutable_reward()->set_pattern("(");
      },
      kInvalidArgument, "INVALID_PATTERN", "(");
}

}  // namespace
}  // namespace halfstep
