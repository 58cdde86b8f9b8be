// SPDX-License-Identifier: Apache-2.0
// Who owns a run's folder, and what a resumed run keeps of its metrics.
#include "learner_server/training/run_folder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/base/error_reason.h"
#include "tests/learner_server/tiny_job.h"
#include "tests/testing/full_disk.h"

namespace halfstep {
namespace {

using ::testing::HasSubstr;

TEST(RunFolderTest, TwoLearnersOnOneFolderAreRefused) {
  TempDir dir;
  const std::string path = dir / "runs/one";
  {
    const auto first = RunFolder::Open(path, "job");
    ASSERT_TRUE(first.ok()) << first.status();
    const auto second = RunFolder::Open(path, "job");
    EXPECT_EQ(second.status().code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_EQ(ReasonOf(second.status()), "RUN_FOLDER_IN_USE");
    EXPECT_THAT(std::string(second.status().message()),
                HasSubstr("runs/one is in use by another learner; stop that one or choose another "
                          "output_dir"));
  }
  EXPECT_TRUE(RunFolder::Open(path, "job").ok());
}

TEST(RunFolderTest, BelongsToOneJob) {
  TempDir dir;
  ASSERT_TRUE(RunFolder::Open(dir / "run", "job-1").ok());
  EXPECT_TRUE(RunFolder::Open(dir / "run", "job-1").ok());
  const auto other = RunFolder::Open(dir / "run", "job-2");
  EXPECT_EQ(other.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ReasonOf(other.status()), "OUTPUT_DIR_NOT_EMPTY");
  EXPECT_THAT(std::string(other.status().message()), HasSubstr("belongs to job job-1"));
}

TEST(RunFolderTest, TakesAnEmptyFolderButNoFile) {
  TempDir dir;
  std::filesystem::create_directories(dir / "empty");
  EXPECT_TRUE(RunFolder::Open(dir / "empty", "job").ok());
  WriteText(dir / "file", "x");
  const absl::Status status = RunFolder::Open(dir / "file", "job").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ReasonOf(status), "OUTPUT_DIR_NOT_EMPTY");
  EXPECT_THAT(std::string(status.message()), HasSubstr("file is not a folder; choose another"));
}

TEST(RunFolderTest, LiesInNoOtherRunAndNotInTheStateFolder) {
  TempDir dir;
  const std::string root = std::filesystem::canonical(dir.path());
  ASSERT_TRUE(RunFolder::Open(root + "/runs/one", "job-1").ok());
  std::filesystem::create_directories(root + "/.halfstep");
  std::filesystem::create_directory_symlink(root + "/.halfstep", root + "/link");
  const auto check = [&](const std::string& path) {
    return CheckRunPlace(root + path, root, root + "/link");
  };
  for (const char* path : {"/runs/one", "/runs/one_more", "/runs/two/deep", "/.halfstep2", ""}) {
    EXPECT_TRUE(check(path).ok()) << path;
  }
  for (const char* path :
       {"/runs/one/model", "/runs/one/checkpoints/step_9", "/.halfstep", "/.halfstep/logs/run"}) {
    const absl::Status status = check(path);
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << path;
    EXPECT_EQ(ReasonOf(status), "OUTPUT_DIR_NOT_ALLOWED") << path;
    EXPECT_THAT(std::string(status.message()), HasSubstr("choose another output_dir"));
  }
  // What lies around the root is somebody else's.
  WriteText(root + "/job_id", "x");
  EXPECT_TRUE(check("/runs/two").ok());
  EXPECT_TRUE(CheckRunPlace(root + "/run", root, "").ok());
}

TEST(RunFolderTest, CutsMetricsBackToTheCheckpoint) {
  TempDir dir;
  const auto folder = RunFolder::Open(dir / "run", "job");
  ASSERT_TRUE(folder.ok());
  EXPECT_TRUE(folder->CutMetricsAfter(0, 0).ok());  // nothing to cut
  for (int step = 0; step < 5; ++step) {
    ASSERT_TRUE(folder->AppendMetrics(absl::StrCat("{\"step\":", step, "}")).ok());
  }
  const std::string path = dir / "run/metrics.jsonl";
  WriteText(path, ReadText(path) + "{\"step\":2,\"lo");  // torn by a power cut
  ASSERT_TRUE(folder->CutMetricsAfter(2, 0).ok());
  EXPECT_EQ(ReadText(path), "{\"step\":0}\n{\"step\":1}\n{\"step\":2}\n");
}

TEST(RunFolderTest, CutsEvaluationsThatWillBeMadeAgain) {
  TempDir dir;
  const auto folder = RunFolder::Open(dir / "run", "job");
  ASSERT_TRUE(folder.ok());
  const std::string before = "{\"step\":0,\"eval_accuracy\":0.5}";
  const std::string after = "{\"step\":1,\"eval_accuracy\":0.6}";
  for (const std::string& line : {before, std::string("{\"step\":1}"), after}) {
    ASSERT_TRUE(folder->AppendMetrics(line).ok());
  }
  const std::string path = dir / "run/metrics.jsonl";
  ASSERT_TRUE(folder->CutMetricsAfter(1, 1).ok());
  EXPECT_EQ(ReadText(path), before + "\n{\"step\":1}\n" + after + "\n");
  ASSERT_TRUE(folder->CutMetricsAfter(1, 0).ok());
  EXPECT_EQ(ReadText(path), before + "\n{\"step\":1}\n");
  ASSERT_TRUE(folder->CutMetricsAfter(0, -1).ok());
  EXPECT_EQ(ReadText(path), "");
}

TEST(RunFolderTest, CutsSamplesBackToTheCheckpoint) {
  TempDir dir;
  const auto folder = RunFolder::Open(dir / "run", "job");
  ASSERT_TRUE(folder.ok());
  EXPECT_TRUE(folder->CutSamplesAfter(0).ok());  // nothing to cut
  for (int step = 1; step < 4; ++step) {
    const std::string line = absl::StrCat("{\"step\":", step, ",\"group\":7}");
    ASSERT_TRUE(folder->AppendSamples({line, line}).ok());
  }
  const std::string path = dir / "run/samples.jsonl";
  const std::string whole = ReadText(path);
  ASSERT_TRUE(folder->CutSamplesAfter(3).ok());
  EXPECT_EQ(ReadText(path), whole);
  WriteText(path, whole + "{\"step\":3,\"gro");  // torn by a power cut
  ASSERT_TRUE(folder->CutSamplesAfter(3).ok());
  EXPECT_EQ(ReadText(path), whole);
  ASSERT_TRUE(folder->CutSamplesAfter(1).ok());
  EXPECT_EQ(ReadText(path), whole.substr(0, whole.size() / 3));
  ASSERT_TRUE(folder->CutSamplesAfter(-1).ok());
  EXPECT_EQ(ReadText(path), "");
}

TEST(RunFolderTest, ALineThatDidNotFitOnTheDiskDoesNotJoinTheNext) {
  TempDir dir;
  const auto folder = RunFolder::Open(dir / "run", "job");
  ASSERT_TRUE(folder.ok());
  {
    const FullDisk disk(/*room=*/20);
    ASSERT_TRUE(folder->AppendMetrics("{\"step\":1}").ok());
    EXPECT_FALSE(folder->AppendMetrics("{\"step\":2,\"loss\":1}").ok());
  }
  ASSERT_TRUE(folder->AppendMetrics("{\"step\":3}").ok());
  EXPECT_EQ(ReadText(dir / "run/metrics.jsonl"), "{\"step\":1}\n{\"step\":3}\n");
}

TEST(RunFolderTest, OpeningClearsWhatALearnerLeftThatDiedWhileItWroteTheModel) {
  TempDir dir;
  ASSERT_TRUE(RunFolder::Open(dir / "run", "job").ok());
  std::filesystem::create_directories(dir / "run/model.tmp.trainer");
  std::filesystem::create_directories(dir / "run/model.tmp.trainer.replaced");
  WriteText(dir / "run/model.tmp.trainer.replaced/config.json", "{}");
  ASSERT_TRUE(RunFolder::Open(dir / "run", "job").ok());
  EXPECT_FALSE(std::filesystem::exists(dir / "run/model.tmp.trainer"));
  EXPECT_FALSE(std::filesystem::exists(dir / "run/model.tmp.trainer.replaced"));
  EXPECT_EQ(ReadText(dir / "run/model/config.json"), "{}");
}

TEST(RunFolderTest, RemembersHowFarGroupsWereAssigned) {
  TempDir dir;
  const auto folder = RunFolder::Open(dir / "run", "job");
  ASSERT_TRUE(folder.ok());
  EXPECT_EQ(folder->ReadAssigned().step, 0);
  ASSERT_TRUE(folder->WriteAssigned({.step = 7, .groups_reassigned = 3}).ok());
  EXPECT_EQ(folder->ReadAssigned().step, 7);
  EXPECT_EQ(folder->ReadAssigned().groups_reassigned, 3);
  for (const char* text : {"", "[]", "{\"step\": -1}", "{\"step\": \"x\"}"}) {
    WriteText(dir / "run/assigned.json", text);
    EXPECT_EQ(folder->ReadAssigned().step, 0) << text;
  }
}

}  // namespace
}  // namespace halfstep
