// SPDX-License-Identifier: Apache-2.0
// The emulator itself: small kernels that are right, and the same with one bug planted in each,
// which it must find.
#include "kernels/cuda/emulator/emulator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "kernels/cuda/launch.h"
#include "tests/kernels/op_test.h"

namespace halfstep::cuda {
namespace {

using ::testing::ContainsRegex;
using ::testing::HasSubstr;

// Schedules that a bug of timing has to show itself in.
constexpr int kSchedules = 20;
constexpr int kThreads = 64;

// What Launch throws, or "" when it does not.
template <class... Parameters, class... Arguments>
std::string ErrorOf(const LaunchShape& shape, void (*kernel)(Parameters...),
                    const Arguments&... arguments) {
  const test::TestContext ctx;
  try {
    Launch(ctx, shape, kernel, arguments...);
  } catch (const emulator::EmulationError& error) {
    return error.what();
  }
  return "";
}

// Whether `right` holds after every one of kSchedules runs.
bool HoldsInEverySchedule(const std::function<bool()>& run) {
  for (int i = 0; i < kSchedules; ++i) {
    emulator::SetSeed(static_cast<uint64_t>(i));
    if (!run()) return false;
  }
  return true;
}

OwnedTensor Iota(int64_t count) {
  OwnedTensor x = test::Zeros(DType::kFloat32, {count});
  std::iota(x.view().as<float>(), x.view().as<float>() + count, 1.0f);
  return x;
}

// ---- barriers

enum class Barriers { kAll, kNoneBeforeReading, kNoneBeforeWriting };

// y = x reversed within each chunk of kThreads elements, through one shared array for all chunks.
template <Barriers barriers>
HALFSTEP_KERNEL void ReverseChunks(int chunks, Pointer<const float> x, Pointer<float> y) {
  const Pointer<float> chunk = SharedMemory<float>(0, kThreads);
  for (int c = 0; c < chunks; ++c) {
    chunk[ThreadIndex()] = x[c * kThreads + ThreadIndex()];
    if (barriers != Barriers::kNoneBeforeReading) SyncBlock();
    y[c * kThreads + ThreadIndex()] = chunk[kThreads - 1 - ThreadIndex()];
    if (barriers != Barriers::kNoneBeforeWriting) SyncBlock();
  }
}

template <Barriers barriers>
bool ReversesRightly() {
  constexpr int kChunks = 3;
  const test::TestContext ctx;
  const OwnedTensor x = Iota(kChunks * kThreads);
  OwnedTensor y = test::Zeros(DType::kFloat32, {kChunks * kThreads});
  Launch(ctx, {"ReverseChunks", 1, 1, kThreads, kThreads * sizeof(float)}, ReverseChunks<barriers>,
         kChunks, PointerTo<const float>(x.view()), PointerTo<float>(y.view()));
  for (int64_t i = 0; i < kChunks * kThreads; ++i) {
    const int64_t mirrored = i / kThreads * kThreads + (kThreads - 1 - i % kThreads);
    if (y.view().as<float>()[i] != x.view().as<float>()[mirrored]) return false;
  }
  return true;
}

TEST(CudaEmulatorTest, AMissingBarrierShows) {
  EXPECT_TRUE(HoldsInEverySchedule(ReversesRightly<Barriers::kAll>));
  EXPECT_FALSE(HoldsInEverySchedule(ReversesRightly<Barriers::kNoneBeforeReading>));
  EXPECT_FALSE(HoldsInEverySchedule(ReversesRightly<Barriers::kNoneBeforeWriting>));
}

HALFSTEP_KERNEL void BarrierForSomeThreads() {
  if (ThreadIndex() == 5) return;
  SyncBlock();
}

TEST(CudaEmulatorTest, AThreadThatReturnsBeforeABarrierIsNamed) {
  EXPECT_THAT(ErrorOf({"BarrierForSomeThreads", 1, 1, 32}, BarrierForSomeThreads),
              HasSubstr("no thread can go on; at a barrier: 0 1 2 3 4 6 7"));
}

// ---- asynchronous copies

enum class Waits { kRight, kOneTooFew, kNotCommitted, kNoBarrier };

// y = x, 16 bytes per thread through shared memory, in two groups of copies.
template <Waits waits>
HALFSTEP_KERNEL void CopyThroughShared(Pointer<const float> x, Pointer<float> y) {
  const Pointer<float> both = SharedMemory<float>(0, 2 * 4 * kThreads);
  const int own = 4 * ThreadIndex();
  CopyAsync16(both + own, x + own, true);
  CommitCopies();
  CopyAsync16(both + 4 * kThreads + own, x + 4 * kThreads + own, true);
  if (waits != Waits::kNotCommitted) CommitCopies();
  WaitCopies<waits == Waits::kOneTooFew ? 1 : 0>();
  if (waits != Waits::kNoBarrier) SyncBlock();
  // What the neighbour copied.
  const int other = 4 * ((ThreadIndex() + 1) % kThreads);
  for (int i = 0; i < 4; ++i) {
    y[other + i] = both[other + i];
    y[4 * kThreads + other + i] = both[4 * kThreads + other + i];
  }
}

template <Waits waits>
bool CopiesRightly() {
  const test::TestContext ctx;
  const OwnedTensor x = Iota(8 * kThreads);
  OwnedTensor y = test::Zeros(DType::kFloat32, {8 * kThreads});
  Launch(ctx, {"CopyThroughShared", 1, 1, kThreads, 8 * kThreads * sizeof(float)},
         CopyThroughShared<waits>, PointerTo<const float>(x.view()), PointerTo<float>(y.view()));
  return static_cast<bool>(test::SameBits(y, x, ""));
}

TEST(CudaEmulatorTest, AnAsynchronousCopyLandsNoEarlierThanItsWait) {
  EXPECT_TRUE(HoldsInEverySchedule(CopiesRightly<Waits::kRight>));
  EXPECT_FALSE(CopiesRightly<Waits::kOneTooFew>());
  EXPECT_THROW(CopiesRightly<Waits::kNotCommitted>(), emulator::EmulationError);
  EXPECT_FALSE(HoldsInEverySchedule(CopiesRightly<Waits::kNoBarrier>));
}

HALFSTEP_KERNEL void CopyPastTheEnd(bool valid, Pointer<const float> x, Pointer<float> y) {
  const Pointer<float> shared = SharedMemory<float>(0, 4 * kThreads);
  CopyAsync16(shared + 4 * ThreadIndex(), x + 4 * ThreadIndex(), valid);
  CommitCopies();
  WaitCopies<0>();
  if (ThreadIndex() == 0) y[0] = shared[0];
}

TEST(CudaEmulatorTest, ACopyThatIsNotValidReadsNothingAndFillsWithZeros) {
  const OwnedTensor x = Iota(8);
  OwnedTensor y = Iota(1);
  const LaunchShape shape{"CopyPastTheEnd", 1, 1, kThreads, 4 * kThreads * sizeof(float)};
  EXPECT_EQ(ErrorOf(shape, CopyPastTheEnd, false, PointerTo<const float>(x.view()),
                    PointerTo<float>(y.view())),
            "");
  EXPECT_EQ(y.view().as<float>()[0], 0.0f);
  EXPECT_THAT(ErrorOf(shape, CopyPastTheEnd, true, PointerTo<const float>(x.view()),
                      PointerTo<float>(y.view())),
              ContainsRegex("kernel CopyPastTheEnd, block 0, 0 of 1 x 1, thread [0-9]+ of 64"));
}

// ---- addresses

HALFSTEP_KERNEL void SumRows(bool masked, int width, Pointer<const float> x, Pointer<float> y) {
  float sum = 0;
  for (int i = 0; i < 8; ++i) {
    const int column = ThreadIndex() * 8 + i;
    if (!masked || column < width) sum += x[column];
  }
  y[ThreadIndex()] = sum;
}

TEST(CudaEmulatorTest, AReadBeyondATensorIsAnErrorEvenWithinItsBuffer) {
  const OwnedTensor buffer = Iota(256);
  const ConstTensor x = buffer.view().Rows(0, 250);
  OwnedTensor y = test::Zeros(DType::kFloat32, {32});
  const LaunchShape shape{"SumRows", 1, 1, 32};
  EXPECT_EQ(
      ErrorOf(shape, SumRows, true, 250, PointerTo<const float>(x), PointerTo<float>(y.view())),
      "");
  EXPECT_THAT(
      ErrorOf(shape, SumRows, false, 250, PointerTo<const float>(x), PointerTo<float>(y.view())),
      HasSubstr("thread 31 of 32"));
}

HALFSTEP_KERNEL void WriteShared(int offset) {
  SharedMemory<float>(0, 32)[ThreadIndex() + offset] = 1;
}
HALFSTEP_KERNEL void TakeShared(int count) { SharedMemory<float>(16, count); }

TEST(CudaEmulatorTest, AWrongOffsetIntoSharedMemoryIsAnError) {
  const LaunchShape shape{"WriteShared", 1, 1, 32, 32 * sizeof(float)};
  EXPECT_EQ(ErrorOf(shape, WriteShared, 0), "");
  EXPECT_THAT(ErrorOf(shape, WriteShared, 1), HasSubstr("element 32 of a tensor or shared array"));
  EXPECT_EQ(ErrorOf(shape, TakeShared, 28), "");
  EXPECT_THAT(ErrorOf(shape, TakeShared, 29), HasSubstr("shared memory up to byte 132 of 128"));
}

HALFSTEP_KERNEL void LoadPackAt(int first, Pointer<const float> x) {
  LoadPack(x, first + 4 * ThreadIndex());
}

TEST(CudaEmulatorTest, AWideAccessThatIsNotAlignedIsAnError) {
  const OwnedTensor x = Iota(256);
  const LaunchShape shape{"LoadPackAt", 1, 1, 32};
  EXPECT_EQ(ErrorOf(shape, LoadPackAt, 4, PointerTo<const float>(x.view())), "");
  EXPECT_THAT(ErrorOf(shape, LoadPackAt, 2, PointerTo<const float>(x.view())),
              HasSubstr("are not aligned"));
}

HALFSTEP_KERNEL void ReadShared(Pointer<float> y) {
  y[ThreadIndex()] = SharedMemory<float>(0, 32)[ThreadIndex()];
}

TEST(CudaEmulatorTest, SharedMemoryIsPoisonedForEveryBlock) {
  OwnedTensor y = Iota(32);
  EXPECT_EQ(
      ErrorOf({"ReadShared", 2, 1, 32, 32 * sizeof(float)}, ReadShared, PointerTo<float>(y.view())),
      "");
  for (int i = 0; i < 32; ++i) EXPECT_TRUE(std::isnan(y.view().as<float>()[i])) << i;
}

// ---- warps

HALFSTEP_KERNEL void DivergedCollectives() {
  if (ThreadIndex() < 16) {
    ShuffleXor(1.0f, 1);
  } else {
    Ballot(true);
  }
}
HALFSTEP_KERNEL void CollectiveOfHalfAWarp() {
  if (ThreadIndex() < 16) ShuffleXor(1.0f, 1);
}

TEST(CudaEmulatorTest, AWarpThatDivergesAtACollectiveIsAnError) {
  EXPECT_THAT(ErrorOf({"DivergedCollectives", 1, 1, 32}, DivergedCollectives),
              HasSubstr("the warp has diverged: this lane is at"));
  EXPECT_THAT(ErrorOf({"CollectiveOfHalfAWarp", 1, 1, 32}, CollectiveOfHalfAWarp),
              HasSubstr("in a collective: 0 1 2 3"));
}

HALFSTEP_KERNEL void WarpFacts(Pointer<float> sums, Pointer<int> lanes, Pointer<unsigned> ballots) {
  const int t = ThreadIndex();
  sums[t] = WarpSum(static_cast<float>(t));
  lanes[t] = Shuffle(t, 7);
  ballots[t] = Ballot(t % 3 == 0);
}

TEST(CudaEmulatorTest, CollectivesActWithinTheirWarp) {
  const test::TestContext ctx;
  OwnedTensor sums = Iota(kThreads), lanes = test::Zeros(DType::kInt32, {kThreads});
  OwnedTensor ballots = test::Zeros(DType::kInt32, {kThreads});
  const Pointer<unsigned> bits(static_cast<unsigned*>(ballots.view().data()), kThreads);
  Launch(ctx, {"WarpFacts", 1, 1, kThreads}, WarpFacts, PointerTo<float>(sums.view()),
         PointerTo<int32_t>(lanes.view()), bits);
  for (int t = 0; t < kThreads; ++t) {
    unsigned wanted = 0;
    for (int l = 0; l < 32; ++l) wanted |= unsigned{(t / 32 * 32 + l) % 3 == 0} << l;
    EXPECT_EQ(sums.view().as<float>()[t], t < 32 ? 496.0f : 1520.0f);
    EXPECT_EQ(lanes.view().as<int32_t>()[t], t < 32 ? 7 : 39);
    EXPECT_EQ(bits[t], wanted);
  }
}

enum class LaneMap { kRight, kColumnsOfARowSwapped, kRowsOfBNotTransposed };

// d = a b^T with a: [16, 16] and b: [8, 16], from shared memory through LoadMatrix4.
template <LaneMap map>
HALFSTEP_KERNEL void MultiplyOneTile(Pointer<const Float16> a, Pointer<const Float16> b,
                                     Pointer<float> d) {
  const Pointer<Float16> rows = SharedMemory<Float16>(0, 24 * 16);
  for (int i = Lane(); i < 24 * 16; i += kWarpSize) rows[i] = i < 256 ? a[i] : b[i - 256];
  SyncBlock();
  uint32_t left[4], right[4];
  const int half = Lane() / 16;
  LoadMatrix4<Float16>(left, rows + Lane() % 16 * 16 +
                                 (map == LaneMap::kColumnsOfARowSwapped ? 1 - half : half) * 8);
  const Pointer<const Float16> right_row = rows + 256 + Lane() % 8 * 16 + Lane() / 8 % 2 * 8;
  if (map == LaneMap::kRowsOfBNotTransposed) {
    LoadMatrix4Transposed<Float16>(right, right_row);
  } else {
    LoadMatrix4<Float16>(right, right_row);
  }
  float sum[4] = {};
  MatrixMultiplyAdd<Float16>(sum, left, {right[0], right[1]});
  for (int i = 0; i < 4; ++i) {
    d[(Lane() / 4 + i / 2 * 8) * 8 + Lane() % 4 * 2 + i % 2] = sum[i];
  }
}

template <LaneMap map>
bool MultipliesRightly() {
  test::Random random(3);
  const test::TestContext ctx;
  const OwnedTensor a = random.Normal(DType::kFloat16, {16, 16});
  const OwnedTensor b = random.Normal(DType::kFloat16, {8, 16});
  OwnedTensor got = Iota(128), want = test::Zeros(DType::kFloat64, {128});
  Launch(ctx, {"MultiplyOneTile", 1, 1, 32, 24 * 16 * 2}, MultiplyOneTile<map>,
         PointerTo<const Float16>(a.view()), PointerTo<const Float16>(b.view()),
         PointerTo<float>(got.view()));
  for (int m = 0; m < 16; ++m) {
    for (int n = 0; n < 8; ++n) {
      for (int k = 0; k < 16; ++k) {
        want.view().as<double>()[m * 8 + n] +=
            test::LoadDouble(a, m * 16 + k) * test::LoadDouble(b, n * 16 + k);
      }
    }
  }
  return test::RelativeL2(got, want) < 1e-6;
}

TEST(CudaEmulatorTest, AWrongMapFromLanesToElementsShows) {
  const int64_t before = emulator::MatrixInstructions();
  EXPECT_TRUE(MultipliesRightly<LaneMap::kRight>());
  EXPECT_EQ(emulator::MatrixInstructions(), before + 1);
  EXPECT_FALSE(MultipliesRightly<LaneMap::kColumnsOfARowSwapped>());
  EXPECT_FALSE(MultipliesRightly<LaneMap::kRowsOfBNotTransposed>());
}

// ---- launches

HALFSTEP_KERNEL void Count(Pointer<unsigned long long> counter, Pointer<unsigned> largest) {
  AtomicAdd(counter, 2ull);
  AtomicMax(largest, static_cast<unsigned>(BlockX() + 10 * BlockY() + ThreadIndex()));
}

TEST(CudaEmulatorTest, RunsEveryThreadOfEveryBlock) {
  unsigned long long counter = 0;
  unsigned largest = 0;
  EXPECT_EQ(ErrorOf({"Count", 3, 2, 64}, Count, Pointer<unsigned long long>(&counter, 1),
                    Pointer<unsigned>(&largest, 1)),
            "");
  EXPECT_EQ(counter, 2u * 3 * 2 * 64);
  EXPECT_EQ(largest, 2u + 10 + 63);
  EXPECT_EQ(ErrorOf({"Count", 0, 2, 64}, Count, Pointer<unsigned long long>(&counter, 1),
                    Pointer<unsigned>(&largest, 1)),
            "");
  EXPECT_EQ(counter, 2u * 3 * 2 * 64);
}

TEST(CudaEmulatorTest, MoreSharedMemoryThanABlockCanHaveIsRefused) {
  EXPECT_THAT(ErrorOf({"WriteShared", 1, 1, 32, 228 << 10}, WriteShared, 0),
              HasSubstr("bytes of shared memory"));
}

TEST(CudaEmulatorTest, ABlockThatIsNoWholeNumberOfWarpsIsRefused) {
  for (const int threads : {0, 31, 33, 1056}) {
    EXPECT_THAT(ErrorOf({"Nothing", 1, 1, threads}, BarrierForSomeThreads),
                HasSubstr("a block cannot have " + std::to_string(threads) + " threads"));
  }
}

// Who comes last in a race, which must depend on the seed alone.
HALFSTEP_KERNEL void Race(Pointer<int> winner) { winner[0] = ThreadIndex(); }

TEST(CudaEmulatorTest, AScheduleIsAFunctionOfItsSeed) {
  const auto winners = [](uint64_t seed) {
    const test::TestContext ctx;
    emulator::SetSeed(seed);
    std::vector<int> all;
    for (int i = 0; i < 8; ++i) {
      int winner = -1;
      Launch(ctx, {"Race", 1, 1, 64}, Race, Pointer<int>(&winner, 1));
      all.push_back(winner);
    }
    return all;
  };
  EXPECT_EQ(winners(1), winners(1));
  EXPECT_NE(winners(1), winners(2));
}

TEST(CudaEmulatorDeathTest, ATensorOfTheHostIsNoArgumentOfAKernel) {
  const OwnedTensor host("test", DType::kFloat32, {4});
  EXPECT_DEATH(PointerTo<const float>(host.view()), "check failed");
}

}  // namespace
}  // namespace halfstep::cuda
