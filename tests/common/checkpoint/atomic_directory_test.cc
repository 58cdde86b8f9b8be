// SPDX-License-Identifier: Apache-2.0
// Checkpoints appear whole or not at all, and the last good one survives everything.
#include "common/checkpoint/atomic_directory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mount.h>

#include <atomic>
#include <csignal>
#include <filesystem>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "common/base/error_reason.h"
#include "common/checkpoint/checkpoint_store.h"
#include "tests/common/checkpoint/scratch_directory.h"
#include "tests/testing/full_disk.h"

namespace halfstep {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::UnorderedElementsAre;

class AtomicDirectoryTest : public ::testing::Test {
 protected:
  CheckpointStore Open() {
    auto store = CheckpointStore::Open(scratch_ / "checkpoints", "i1");
    EXPECT_TRUE(store.ok()) << store.status();
    return *std::move(store);
  }
  static void Write(const CheckpointStore& store, int64_t step, const std::string& contents) {
    auto writer = store.Begin(step);
    ASSERT_TRUE(writer.ok()) << writer.status();
    ASSERT_TRUE(writer->AddFile("state", contents).ok());
    ASSERT_TRUE(writer->AddFile("model/config.json", "{}").ok());
    const absl::Status committed = store.Commit(*std::move(writer));
    ASSERT_TRUE(committed.ok()) << committed;
  }
  static void FlipByte(const std::string& path) {
    std::string bytes = ReadBytes(path);
    ASSERT_FALSE(bytes.empty());
    bytes[bytes.size() / 2] ^= 1;
    WriteBytes(path, bytes);
  }
  std::vector<std::string> Names(const std::string& folder) {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(scratch_ / folder)) {
      names.push_back(entry.path().filename().string());
    }
    return names;
  }

  ScratchDirectory scratch_;
};

TEST_F(AtomicDirectoryTest, CommittedDirectoryVerifiesAndLatestPointsAtIt) {
  const CheckpointStore store = Open();
  Write(store, 10, "ten");
  EXPECT_TRUE(VerifyDirectory(store.PathOf(10)).ok());
  EXPECT_EQ(ReadBytes(scratch_ / "checkpoints/LATEST"), "step_10\n");
  EXPECT_EQ(ReadBytes(store.PathOf(10) + "/state"), "ten");
  EXPECT_THAT(ReadBytes(store.PathOf(10) + "/manifest.json"), HasSubstr("model/config.json"));
}

TEST_F(AtomicDirectoryTest, NothingIsVisibleBeforeCommitAndNothingStaysWithoutIt) {
  const CheckpointStore store = Open();
  {
    auto writer = store.Begin(1);
    ASSERT_TRUE(writer.ok());
    ASSERT_TRUE(writer->AddFile("state", "x").ok());
    EXPECT_FALSE(fs::exists(store.PathOf(1)));
    EXPECT_TRUE(fs::exists(store.PathOf(1) + ".tmp.i1/state"));
  }
  EXPECT_TRUE(fs::is_empty(scratch_ / "checkpoints"));
  EXPECT_EQ(store.FindNewest().status().code(), absl::StatusCode::kNotFound);
}

TEST_F(AtomicDirectoryTest, OpeningRemovesWhatAKilledWriterLeft) {
  fs::create_directories(scratch_ / "checkpoints/step_4.tmp.i0/model");
  WriteBytes(scratch_ / "checkpoints/step_4.tmp.i0/state", "half");
  const CheckpointStore store = Open();
  EXPECT_TRUE(fs::is_empty(scratch_ / "checkpoints"));
}

TEST_F(AtomicDirectoryTest, RefusesNamesThatLeadOut) {
  const CheckpointStore store = Open();
  auto writer = store.Begin(1);
  ASSERT_TRUE(writer.ok());
  for (const char* name : {"", "/etc/x", "../x", "a/../../x", "a//b", "a/", "manifest.json"}) {
    EXPECT_EQ(writer->AddFile(name, "x").code(), absl::StatusCode::kInvalidArgument) << name;
  }
  EXPECT_EQ(AtomicDirectoryWriter::Create(scratch_.path(), "a/b", "i").status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(AtomicDirectoryTest, ACorruptCheckpointIsSetAsideAndThePreviousOneLoads) {
  const auto damage = std::vector<std::function<void(const std::string&)>>{
      [](const std::string& path) { FlipByte(path + "/state"); },
      [](const std::string& path) { fs::resize_file(path + "/state", 1); },
      [](const std::string& path) { fs::remove(path + "/model/config.json"); },
      [](const std::string& path) { fs::remove(path + "/manifest.json"); },
      [](const std::string& path) { WriteBytes(path + "/manifest.json", "{\"format\": \"x\"}"); },
      [](const std::string& path) {
        WriteBytes(path + "/manifest.json", R"({"format":1,"files":[{"name":"../x"}]})");
      }};
  for (size_t i = 0; i < damage.size(); ++i) {
    fs::remove_all(scratch_ / "checkpoints");
    const CheckpointStore store = Open();
    Write(store, 9, "nine");
    Write(store, 10, "ten");
    damage[i](store.PathOf(10));
    const auto found = store.FindNewest();
    ASSERT_TRUE(found.ok()) << i << ": " << found.status();
    EXPECT_EQ(found->step, 9);
    ASSERT_EQ(found->rejected.size(), 1u) << i;
    EXPECT_EQ(found->rejected[0].path, store.PathOf(10) + ".corrupt");
    EXPECT_THAT(found->rejected[0].reason, HasSubstr("step_10")) << i;
    EXPECT_TRUE(fs::exists(store.PathOf(10) + ".corrupt"));
    Write(store, 10, "again");  // the run goes on
    EXPECT_EQ(store.FindNewest()->step, 10);
  }
}

TEST_F(AtomicDirectoryTest, WhenNoneVerifiesAllStayAndSaySo) {
  const CheckpointStore store = Open();
  for (const int64_t step : {1, 2}) {
    Write(store, step, "x");
    WriteBytes(store.PathOf(step) + "/state", "y");
  }
  for (int i = 0; i < 2; ++i) {
    const absl::Status status = store.FindNewest().status();
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
    EXPECT_EQ(ReasonOf(status), "NO_SOUND_CHECKPOINT");
    EXPECT_THAT(std::string(status.message()), HasSubstr("step_1"));
    EXPECT_THAT(std::string(status.message()), HasSubstr("remove them all to start over"));
  }
  WriteBytes(store.PathOf(1) + "/state", "x");
  EXPECT_EQ(store.FindNewest()->step, 1);
  EXPECT_TRUE(fs::exists(store.PathOf(2) + ".corrupt"));
}

TEST_F(AtomicDirectoryTest, StepsOrderAsNumbers) {
  const CheckpointStore store = Open();
  for (const int64_t step : {9, 100, 20}) Write(store, step, "x");
  EXPECT_THAT(*store.Steps(), ElementsAre(100, 20, 9));
  EXPECT_EQ(store.FindNewest()->step, 100);
}

TEST_F(AtomicDirectoryTest, CommittingAStepAgainReplacesIt) {
  const CheckpointStore store = Open();
  Write(store, 3, "old");
  Write(store, 3, "new");
  EXPECT_EQ(ReadBytes(store.PathOf(3) + "/state"), "new");
  EXPECT_TRUE(VerifyDirectory(store.PathOf(3)).ok());
}

TEST_F(AtomicDirectoryTest, WhileADirectoryIsReplacedThereIsAlwaysOne) {
  const CheckpointStore store = Open();
  Write(store, 3, "0");
  std::atomic<bool> done = false;
  std::thread watcher([&] {
    while (!done) EXPECT_TRUE(fs::exists(store.PathOf(3)));
  });
  for (int i = 1; i <= 50; ++i) Write(store, 3, std::to_string(i));
  done = true;
  watcher.join();
  EXPECT_EQ(ReadBytes(store.PathOf(3) + "/state"), "50");
  EXPECT_THAT(Names("checkpoints"), UnorderedElementsAre("LATEST", "step_3"));
}

// A crash right after the exchange of names, and one between the two renames that take its place.
TEST_F(AtomicDirectoryTest, OpeningFinishesAReplacementThatACrashCutShort) {
  {
    const CheckpointStore store = Open();
    Write(store, 3, "new");
    Write(store, 4, "old");
  }
  fs::create_directory(scratch_ / "checkpoints/step_3.tmp.i0");
  WriteBytes(scratch_ / "checkpoints/step_3.tmp.i0/state", "old");
  fs::rename(scratch_ / "checkpoints/step_4", scratch_ / "checkpoints/step_4.tmp.i0.replaced");
  fs::create_directory(scratch_ / "checkpoints/step_4.tmp.i0");
  const CheckpointStore store = Open();
  EXPECT_THAT(Names("checkpoints"), UnorderedElementsAre("LATEST", "step_3", "step_4"));
  EXPECT_EQ(ReadBytes(store.PathOf(3) + "/state"), "new");
  EXPECT_EQ(ReadBytes(store.PathOf(4) + "/state"), "old");
  EXPECT_EQ(store.FindNewest()->step, 4);
}

TEST_F(AtomicDirectoryTest, AReplacedDirectoryStaysAwayWhereItsSuccessorIs) {
  {
    const CheckpointStore store = Open();
    Write(store, 3, "new");
  }
  fs::create_directory(scratch_ / "checkpoints/step_3.tmp.i0.replaced");
  const CheckpointStore store = Open();
  EXPECT_THAT(Names("checkpoints"), UnorderedElementsAre("LATEST", "step_3"));
  EXPECT_EQ(ReadBytes(store.PathOf(3) + "/state"), "new");
}

TEST_F(AtomicDirectoryTest, LeftoversOfOneNameCanBeRemovedAlone) {
  for (const char* name :
       {"model.tmp.a", "model.tmp.b.replaced", "other.tmp.a", "my_model.tmp.a"}) {
    fs::create_directories(scratch_ / "run/" + name);
  }
  ASSERT_TRUE(RemoveLeftovers(scratch_ / "run", "model").ok());
  EXPECT_THAT(Names("run"), UnorderedElementsAre("model", "other.tmp.a", "my_model.tmp.a"));
  EXPECT_EQ(RemoveLeftovers(scratch_ / "none").code(), absl::StatusCode::kNotFound);
}

TEST_F(AtomicDirectoryTest, PruneKeepsTheNewest) {
  const CheckpointStore store = Open();
  for (const int64_t step : {1, 2, 3, 4}) Write(store, step, "x");
  ASSERT_TRUE(store.Prune(2).ok());
  EXPECT_THAT(*store.Steps(), ElementsAre(4, 3));
}

TEST_F(AtomicDirectoryTest, PruneRemovesNothingWhenOneThatStaysDoesNotVerify) {
  const CheckpointStore store = Open();
  for (const int64_t step : {1, 2, 3}) Write(store, step, "contents");
  FlipByte(store.PathOf(2) + "/state");
  EXPECT_EQ(store.Prune(2).code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(*store.Steps(), ElementsAre(3, 2, 1));
}

TEST_F(AtomicDirectoryTest, AFullDiskIsReportedAsSuchAndLosesNothing) {
  const CheckpointStore store = Open();
  Write(store, 1, "one");
  auto writer = store.Begin(2);
  ASSERT_TRUE(writer.ok());
  {
    const FullDisk disk(/*room=*/1000);
    const absl::Status status = writer->AddFile("state", std::string(5000, 'x'));
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
    EXPECT_EQ(ReasonOf(status), "DISK_FULL");
    EXPECT_THAT(std::string(status.message()),
                HasSubstr("step_2.tmp.i1/state': No space left on device"));
  }
}

TEST_F(AtomicDirectoryTest, WhereverTheDiskBecomesFullTheOldCheckpointStaysAndTheNextOneWorks) {
  const CheckpointStore store = Open();
  Write(store, 1, "one");
  const auto write_two = [&store] {
    auto writer = store.Begin(2);
    if (!writer.ok()) return writer.status();
    absl::Status status = writer->AddFile("state", "two");
    status.Update(writer->AddFile("model/config.json", "{}"));
    return status.ok() ? store.Commit(*std::move(writer)) : status;
  };
  int failures = 0;
  for (int64_t room = 0;; room += 5, ++failures) {
    const absl::Status status = [&] {
      const FullDisk disk(room);
      return write_two();
    }();
    EXPECT_TRUE(VerifyDirectory(store.PathOf(1)).ok()) << room;
    if (status.ok()) break;
    EXPECT_EQ(ReasonOf(status), "DISK_FULL") << room;
    // Nothing half-written is left: what has the name of a checkpoint is one.
    const auto steps = store.Steps();
    for (const int64_t step : *steps) {
      EXPECT_TRUE(VerifyDirectory(store.PathOf(step)).ok()) << room;
    }
    EXPECT_EQ(ReadBytes(scratch_ / "checkpoints/LATEST"), "step_1\n") << room;
    fs::remove_all(store.PathOf(2));
  }
  EXPECT_GT(failures, 20);  // in the files, in the manifest, in LATEST
  EXPECT_EQ(store.FindNewest()->step, 2);
  EXPECT_EQ(ReadBytes(scratch_ / "checkpoints/LATEST"), "step_2\n");
}

TEST_F(AtomicDirectoryTest, ARealFileSystemWithoutRoomLosesNothing) {
  const std::string root = scratch_ / "small";
  fs::create_directory(root);
  if (mount("none", root.c_str(), "tmpfs", 0, "size=64k") != 0) {
    GTEST_SKIP() << "mounting a small file system needs root";
  }
  {
    const auto store = CheckpointStore::Open(root, "i1");
    ASSERT_TRUE(store.ok());
    Write(*store, 1, "one");
    {
      auto writer = store->Begin(2);
      ASSERT_TRUE(writer.ok());
      const absl::Status status = writer->AddFile("state", std::string(100000, 'x'));
      EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
      EXPECT_EQ(ReasonOf(status), "DISK_FULL");
    }
    EXPECT_TRUE(VerifyDirectory(store->PathOf(1)).ok());
    Write(*store, 2, "two");
    EXPECT_EQ(store->FindNewest()->step, 2);
  }
  umount(root.c_str());
}

}  // namespace
}  // namespace halfstep
