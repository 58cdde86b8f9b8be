// SPDX-License-Identifier: Apache-2.0
#include "common/base/file.h"

#include <cerrno>
#include <filesystem>
#include <fstream>

#include "common/base/error_reason.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/full_disk.h"
#include "tests/testing/temp_dir.h"

namespace halfstep {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

TEST(FileTest, ReadsWhatWasWritten) {
  TempDir dir;
  const std::string contents("a\0b\n", 4);
  ASSERT_TRUE(WriteFileAtomic(dir / "f", contents).ok());
  EXPECT_EQ(ReadFile(dir / "f", 4).value(), contents);
}

TEST(FileTest, ReadsAnEmptyFile) {
  TempDir dir;
  ASSERT_TRUE(WriteFileAtomic(dir / "f", "").ok());
  EXPECT_EQ(ReadFile(dir / "f", 0).value(), "");
}

TEST(FileTest, ReadsFilesWhoseSizeTheSystemDoesNotTell) {
  EXPECT_THAT(ReadFile("/proc/self/status", 1 << 20).value(), HasSubstr("VmRSS"));
}

TEST(FileTest, RefusesAFileAboveTheLimit) {
  TempDir dir;
  ASSERT_TRUE(WriteFileAtomic(dir / "f", "12345").ok());
  const absl::Status status = ReadFile(dir / "f", 4).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ReasonOf(status), "FILE_TOO_LARGE");
  EXPECT_THAT(std::string(status.message()), HasSubstr("larger than the 4 bytes"));
}

TEST(FileTest, MissingFileIsNotFoundAndNamed) {
  TempDir dir;
  const absl::Status status = ReadFile(dir / "absent", 10).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(ReasonOf(status), "FILE_NOT_FOUND");
  EXPECT_THAT(std::string(status.message()), HasSubstr("absent"));
}

TEST(FileTest, RefusesToReadAFolder) {
  TempDir dir;
  const absl::Status status = ReadFile(dir.path(), 10).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ReasonOf(status), "FILE_ERROR");
  EXPECT_THAT(std::string(status.message()), HasSubstr("is not a regular file"));
}

TEST(FileTest, AtomicWriteReplacesAndLeavesNoOtherFile) {
  TempDir dir;
  ASSERT_TRUE(WriteFileAtomic(dir / "f", "old").ok());
  ASSERT_TRUE(WriteFileAtomic(dir / "f", "new").ok());
  EXPECT_EQ(ReadFile(dir / "f", 10).value(), "new");
  EXPECT_EQ(std::distance(fs::directory_iterator(dir.path()), fs::directory_iterator()), 1);
}

TEST(FileTest, FailedAtomicWriteKeepsTheOldAndLeavesNoOtherFile) {
  TempDir dir;
  fs::create_directory(dir / "f");  // a file cannot be renamed onto a folder
  EXPECT_FALSE(WriteFileAtomic(dir / "f", "new").ok());
  EXPECT_EQ(std::distance(fs::directory_iterator(dir.path()), fs::directory_iterator()), 1);
}

TEST(FileTest, AppendLineKeepsWhatWasThere) {
  TempDir dir;
  ASSERT_TRUE(AppendLine(dir / "f", "one").ok());
  ASSERT_TRUE(AppendLine(dir / "f", "two").ok());
  EXPECT_EQ(ReadFile(dir / "f", 100).value(), "one\ntwo\n");
}

TEST(FileTest, AppendLineThatFailsLeavesWholeLinesOnly) {
  TempDir dir;
  {
    const FullDisk disk(/*room=*/4);
    EXPECT_FALSE(AppendLine(dir / "f", "too long").ok());
    EXPECT_FALSE(fs::exists(dir / "f"));
  }
  {
    const FullDisk disk(/*room=*/6);
    ASSERT_TRUE(AppendLine(dir / "f", "one").ok());
    const absl::Status status = AppendLine(dir / "f", "two");  // half of it fits
    EXPECT_THAT(std::string(status.message()), HasSubstr("cannot write"));
    EXPECT_EQ(ReadFile(dir / "f", 100).value(), "one\n");
  }
  ASSERT_TRUE(AppendLine(dir / "f", "three").ok());
  EXPECT_EQ(ReadFile(dir / "f", 100).value(), "one\nthree\n");
}

TEST(FileTest, FullDiskHasAReasonOfItsOwn) {
  const absl::Status status = FileError(ENOSPC, "write", "/x");
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ReasonOf(status), "DISK_FULL");
  const absl::Status full = AppendLine("/dev/full", "line");
  EXPECT_EQ(ReasonOf(full), "DISK_FULL") << full;
  EXPECT_THAT(std::string(full.message()),
              HasSubstr("cannot write '/dev/full': No space left on device"));
}

TEST(FileTest, AFullDiskKeepsTheOldContentsAndNoHalfLine) {
  TempDir dir;
  ASSERT_TRUE(AppendLine(dir / "f", "one").ok());
  {
    const FullDisk disk(/*room=*/2);
    EXPECT_EQ(ReasonOf(AppendLine(dir / "f", "two")), "DISK_FULL");
  }
  EXPECT_EQ(ReadFile(dir / "f", 100).value(), "one\n");
  {
    const FullDisk disk(/*room=*/2);
    EXPECT_EQ(ReasonOf(WriteFileAtomic(dir / "f", "new")), "DISK_FULL");
  }
  EXPECT_EQ(ReadFile(dir / "f", 100).value(), "one\n");
  EXPECT_EQ(std::distance(fs::directory_iterator(dir.path()), fs::directory_iterator()), 1);
}

TEST(ResolveUnderTest, GivesTheRealPathAlsoOfWhatDoesNotExistYet) {
  TempDir dir;
  fs::create_directory(dir / "a");
  const std::string root = fs::canonical(dir.path()).string();
  EXPECT_EQ(ResolveUnder(dir.path(), "a/b/c").value(), root + "/a/b/c");
  EXPECT_EQ(ResolveUnder(dir.path(), "a/").value(), root + "/a");
  EXPECT_EQ(ResolveUnder(dir.path(), "").value(), root);
  EXPECT_EQ(ResolveUnder(dir.path(), root + "/a").value(), root + "/a");
}

TEST(ResolveUnderTest, FollowsLinksThatStayInside) {
  TempDir dir;
  fs::create_directory(dir / "a");
  fs::create_directory_symlink("a", dir / "link");
  EXPECT_EQ(ResolveUnder(dir.path(), "link/x").value(),
            fs::canonical(dir.path()).string() + "/a/x");
}

TEST(ResolveUnderTest, RefusesWaysOut) {
  TempDir dir, other;
  fs::create_directory(dir / "a");
  fs::create_directory_symlink(other.path(), dir / "out");
  fs::create_symlink(other / "absent", dir / "dangling");
  for (const std::string& path :
       {std::string(".."), std::string("a/../../x"), std::string("a/.."),
        std::string("/etc/passwd"), std::string("out"), std::string("out/x"),
        std::string("dangling"), std::string("dangling/x"), dir.path() + "x"}) {
    const absl::Status status = ResolveUnder(dir.path(), path).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kPermissionDenied) << path;
    EXPECT_EQ(ReasonOf(status), "PATH_OUTSIDE_ROOT") << path;
  }
}

TEST(ResolveUnderTest, MissingRootIsAnError) {
  EXPECT_EQ(ResolveUnder("/no/such/root", "a").status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace halfstep
