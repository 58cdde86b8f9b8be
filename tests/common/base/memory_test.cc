// SPDX-License-Identifier: Apache-2.0
#include "common/base/memory.h"

#include <gtest/gtest.h>

#include <fstream>

#include "tests/testing/temp_dir.h"

namespace halfstep {
namespace {

class FreeMemoryTest : public ::testing::Test {
 protected:
  FreeMemoryTest() {
    sources_ = {dir_ / "meminfo", dir_.path()};
    Write("meminfo", "MemTotal: 8192 kB\nMemFree: 1 kB\nMemAvailable: 4096 kB\nBuffers: 2 kB\n");
  }

  void Write(const std::string& name, const std::string& text) {
    std::ofstream(dir_ / name) << text;
  }

  TempDir dir_;
  MemorySources sources_;
};

TEST_F(FreeMemoryTest, IsWhatTheSystemSays) {
  EXPECT_EQ(FreeMemoryBytes(sources_), size_t{4096} << 10);
  EXPECT_GT(FreeMemoryBytes(), size_t{1} << 20);
}

TEST_F(FreeMemoryTest, IsUnknownWhereTheSystemSaysNothing) {
  EXPECT_EQ(FreeMemoryBytes({dir_ / "none", dir_ / "none"}), 0u);
}

TEST_F(FreeMemoryTest, StaysWithinTheControlGroupWhoseCachedFilesAreFree) {
  Write("memory.current", "2000000\n");
  Write("memory.max", "max\n");
  EXPECT_EQ(FreeMemoryBytes(sources_), size_t{4096} << 10);
  Write("memory.max", "3000000\n");
  EXPECT_EQ(FreeMemoryBytes(sources_), 1000000u);
  Write("memory.stat", "anon 1500000\ninactive_file 500000\nactive_file 7\n");
  EXPECT_EQ(FreeMemoryBytes(sources_), 1500000u);
  Write("memory.max", "1000000\n");
  EXPECT_EQ(FreeMemoryBytes(sources_), 0u);
  Write("memory.max", "1000000000\n");
  EXPECT_EQ(FreeMemoryBytes(sources_), size_t{4096} << 10);
}

TEST(ShowBytesTest, TakesTheUnitThatReadsWell) {
  EXPECT_EQ(ShowBytes(0), "0.0 MiB");
  EXPECT_EQ(ShowBytes(size_t{3} << 19), "1.5 MiB");
  EXPECT_EQ(ShowBytes(size_t{5} << 29), "2.5 GiB");
}

}  // namespace
}  // namespace halfstep
