// SPDX-License-Identifier: Apache-2.0
#include "kernels/buffer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <limits>
#include <new>
#include <string>
#include <utility>

#include "kernels/workspace.h"

namespace halfstep {
namespace {

size_t BytesOf(const std::string& name) {
  for (const MemoryUse& use : MemoryReport()) {
    if (use.name == name) return use.bytes;
  }
  return 0;
}

TEST(BufferTest, IsZeroFilledAndAlignedAtEverySize) {
  for (const size_t bytes :
       {size_t{0}, size_t{1}, size_t{63}, size_t{4096}, size_t{2} << 20, (size_t{5} << 20) + 3}) {
    Buffer buffer("zero", bytes);
    ASSERT_NE(buffer.data(), nullptr) << bytes;
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % 64, 0u) << bytes;
    const char* data = static_cast<const char*>(buffer.data());
    EXPECT_EQ(std::count(data, data + bytes, 0), static_cast<ptrdiff_t>(bytes));
    std::fill_n(static_cast<char*>(buffer.data()), bytes, 'x');  // all of it is writable
  }
}

// Of the mapping that holds `address`; empty where the system does not say.
std::string MappingFlags(const void* address) {
  std::ifstream maps("/proc/self/smaps");
  bool found = false;
  for (std::string line; std::getline(maps, line);) {
    uintptr_t begin = 0, end = 0;
    if (std::sscanf(line.c_str(), "%" SCNxPTR "-%" SCNxPTR " ", &begin, &end) == 2) {
      const auto wanted = reinterpret_cast<uintptr_t>(address);
      found = begin <= wanted && wanted < end;
    } else if (found && line.rfind("VmFlags:", 0) == 0) {
      return line + " ";
    }
  }
  return "";
}

// Otherwise no size would be refused, and the process killed once it used the memory.
TEST(BufferTest, LargeBuffersAreReserved) {
  const Buffer buffer("large", size_t{64} << 20);
  const std::string flags = MappingFlags(buffer.data());
  if (flags.empty()) GTEST_SKIP() << "/proc/self/smaps has no flags here";
  EXPECT_EQ(flags.find(" nr "), std::string::npos) << flags;
}

TEST(BufferTest, ReportSumsLiveBuffersByNameLargestFirst) {
  Buffer a("report a", 1000);
  {
    Buffer b("report b", 3000), second_a("report a", 500);
    EXPECT_EQ(BytesOf("report a"), 1500u);
    EXPECT_EQ(BytesOf("report b"), 3000u);
    const auto report = MemoryReport();
    EXPECT_TRUE(std::is_sorted(report.begin(), report.end(),
                               [](auto& x, auto& y) { return x.bytes > y.bytes; }));
  }
  EXPECT_EQ(BytesOf("report a"), 1000u);
  EXPECT_EQ(BytesOf("report b"), 0u);
}

TEST(BufferTest, MoveKeepsMemoryAndRegistersOnce) {
  Buffer a("moved", 100);
  void* const data = a.data();
  Buffer b = std::move(a);
  EXPECT_EQ(b.data(), data);
  EXPECT_EQ(b.bytes(), 100u);
  EXPECT_EQ(BytesOf("moved"), 100u);
  b = Buffer("replaced", 50);
  EXPECT_EQ(BytesOf("moved"), 0u);
  EXPECT_EQ(BytesOf("replaced"), 50u);
}

TEST(BufferTest, ThrowsWhenMemoryRunsOut) {
  EXPECT_THROW(Buffer("huge", std::numeric_limits<size_t>::max() / 4), std::bad_alloc);
}

TEST(BufferDeathTest, ViewBeyondTheEndIsAnInvariant) {
  Buffer buffer("small", 64);
  EXPECT_EQ(buffer.View(DType::kFloat32, {2, 8}).elements(), 16);
  EXPECT_DEATH(buffer.View(DType::kFloat32, {17}), "check failed");
  EXPECT_DEATH(buffer.View(DType::kFloat32, {16}, 4), "check failed");
}

TEST(WorkspaceTest, ScopesNestAndReuseMemory) {
  Workspace workspace(kCpuDevice, 4096);
  Workspace::Scope outer(&workspace);
  void* const first = outer.Bytes(100);
  void* inner_data = nullptr;
  for (int i = 0; i < 3; ++i) {
    Workspace::Scope inner(&workspace);
    void* const data = inner.Bytes(1000);
    EXPECT_NE(data, first);
    if (i > 0) {
      EXPECT_EQ(data, inner_data);
    }
    inner_data = data;
  }
  EXPECT_LE(workspace.high_water_bytes(), 4096u);
}

TEST(WorkspaceTest, GrowsWithoutMovingWhatItLent) {
  Workspace workspace(kCpuDevice, 4096);
  Workspace::Scope scope(&workspace);
  int* const small = scope.Array<int>(10);
  std::fill_n(small, 10, 7);
  for (const int64_t bytes : {3000, 3000, 100000}) {
    const Tensor taken = scope.Take(DType::kUInt8, {bytes});
    EXPECT_EQ(reinterpret_cast<uintptr_t>(taken.data()) % 64, 0u);
    std::fill_n(taken.as<uint8_t>(), bytes, 1);
  }
  EXPECT_EQ(std::count(small, small + 10, 7), 10);
  EXPECT_GE(workspace.high_water_bytes(), 106000u);
}

TEST(WorkspaceTest, SteadyStateAllocatesNothing) {
  Workspace workspace(kCpuDevice, 4096);
  size_t before = 0;
  for (int i = 0; i < 5; ++i) {
    Workspace::Scope scope(&workspace);
    scope.Bytes(3000);
    scope.Bytes(50000);
    scope.Bytes(100);
    if (i == 0) before = BytesOf("workspace");
  }
  EXPECT_EQ(BytesOf("workspace"), before);
}

}  // namespace
}  // namespace halfstep
