// SPDX-License-Identifier: Apache-2.0
// Who owns a run's folder, and what a resumed run keeps of its metrics.
#include "learner_server/training/run_folder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/base/error_reason.h"
#include "tests/learner_server/tiny_job.h"

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
    EXPECT_THAT(std::string(second.status().message()), HasSubstr("runs/one is in use"));
  }
  EXPECT_TRUE(RunFolder::Open(path, "job").ok());
}

TEST(RunFolderTest, BelongsToOneJob) {
  TempDir dir;
  ASSERT_TRUE(RunFolder::Open(dir / "run", "job-1").ok());
  EXPECT_TRUE(RunFolder::Open(dir / "run", "job-1").ok());
  const auto other = RunFolder::Open(dir / "run", "job-2");
  EXPECT_EQ(ReasonOf(other.status()), "OUTPUT_DIR_NOT_EMPTY");
  EXPECT_THAT(std::string(other.status().message()), HasSubstr("belongs to job job-1"));
}

TEST(RunFolderTest, TakesAnEmptyFolderButNoFile) {
  TempDir dir;
  std::filesystem::create_directories(dir / "empty");
  EXPECT_TRUE(RunFolder::Open(dir / "empty", "job").ok());
  WriteText(dir / "file", "x");
  EXPECT_EQ(ReasonOf(RunFolder::Open(dir / "file", "job").status()), "OUTPUT_DIR_NOT_EMPTY");
}

TEST(RunFolderTest, CutsMetricsBackToTheCheckpoint) {
  TempDir dir;
  const auto folder = RunFolder::Open(dir / "run", "job");
  ASSERT_TRUE(folder.ok());
  EXPECT_TRUE(folder->CutMetricsAfter(0).ok());  // nothing to cut
  for (int step = 0; step < 5; ++step) {
    ASSERT_TRUE(folder->AppendMetrics(absl::StrCat("{\"step\":", step, "}")).ok());
  }
  const std::string path = dir / "run/metrics.jsonl";
  WriteText(path, ReadText(path) + "{\"step\":2,\"lo");  // torn by a power cut
  ASSERT_TRUE(folder->CutMetricsAfter(2).ok());
  EXPECT_EQ(ReadText(path), "{\"step\":0}\n{\"step\":1}\n{\"step\":2}\n");
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
