// SPDX-License-Identifier: Apache-2.0
// What every Communicator must do, whatever moves its data. Each backend's test instantiates it.
#include <gmock/gmock.h>

#include <algorithm>
#include <bit>
#include <latch>

#include "common/base/error_reason.h"
#include "tests/common/collective/collective_backend.h"

namespace halfstep {
namespace {

using testing::HasSubstr;

#define EXPECT_OK(expression) EXPECT_EQ(expression, absl::OkStatus())

// How long after its deadline a call may return on a machine with more to do than cores.
constexpr absl::Duration kLate = absl::Seconds(5);

constexpr int64_t kCounts[] = {0, 1, 13, 70001};

// The contract's words as a scalar program: ranks [begin, end) by their largest power of two.
float TreeSum(const std::vector<float>& values, int begin, int end) {
  if (end - begin == 1) return values[begin];
  const int half = static_cast<int>(std::bit_floor(static_cast<unsigned>(end - begin - 1)));
  return TreeSum(values, begin, begin + half) + TreeSum(values, begin + half, end);
}

template <class T>
std::vector<char> ExpectedSum(int size, int64_t count) {
  std::vector<char> bytes(count * sizeof(T));
  for (int64_t i = 0; i < count; ++i) {
    std::vector<float> values;
    for (int rank = 0; rank < size; ++rank) {
      values.push_back(ToFloat(FromFloat<T>(ValueOf(rank, i))));
    }
    const T sum = FromFloat<T>(TreeSum(values, 0, size));
    std::memcpy(&bytes[i * sizeof(T)], &sum, sizeof(T));
  }
  return bytes;
}

// Equal bits, or close where the order is the library's.
template <class T>
void ExpectSum(const CollectiveBackend& backend, const std::vector<char>& got,
               const std::vector<char>& want) {
  ASSERT_EQ(got.size(), want.size());
  if (backend.in_rank_order) {
    const auto differs = std::mismatch(got.begin(), got.end(), want.begin());
    EXPECT_EQ(differs.first, got.end()) << "at byte " << differs.first - got.begin();
    return;
  }
  for (size_t i = 0; i < got.size(); i += sizeof(T)) {
    T a, b;
    std::memcpy(&a, &got[i], sizeof(T));
    std::memcpy(&b, &want[i], sizeof(T));
    // Four terms below 32, added with an ulp of 2^-8 at worst (bf16): some rounding errors of that.
    ASSERT_NEAR(ToFloat(a), ToFloat(b), 0.75) << "element " << i / sizeof(T);
  }
}

template <class T>
void CheckValues(const CollectiveBackend& backend, int size) {
  const JoinRank join = backend.session(size, 1);
  std::vector<std::vector<char>> sums(size);
  OnRanks(join, size, [&](Communicator& communicator) {
    const int rank = communicator.rank();
    for (const int64_t count : kCounts) {
      SCOPED_TRACE(absl::StrCat(backend.name, ", ", Name(DTypeOf<T>::value), ", ", count,
                                " elements, rank ", rank, " of ", size));
      const int root = static_cast<int>(count % size);
      Elements data = Contribution<T>(rank, count, backend.device);
      EXPECT_OK(communicator.Broadcast(data.tensor(), root, CallFor("broadcast")));
      EXPECT_EQ(data.bytes(), Contribution<T>(root, count, backend.device).bytes());

      Elements sum = Contribution<T>(rank, count, backend.device);
      EXPECT_OK(communicator.AllReduce(sum.tensor(), ReduceOp::kSum, CallFor("sum")));
      ExpectSum<T>(backend, sum.bytes(), ExpectedSum<T>(size, count));
      const std::vector<char> bits = sum.bytes();
      sums[rank].insert(sums[rank].end(), bits.begin(), bits.end());

      Elements all = Contribution<T>(rank, count * size, backend.device);
      Elements shard(DTypeOf<T>::value, count, backend.device);
      EXPECT_OK(communicator.ReduceScatter(all.tensor(), shard.tensor(), CallFor("scatter")));
      const std::vector<char> whole = ExpectedSum<T>(size, count * size);
      const int64_t bytes = count * static_cast<int64_t>(sizeof(T));
      ExpectSum<T>(backend, shard.bytes(),
                   {whole.begin() + rank * bytes, whole.begin() + (rank + 1) * bytes});

      Elements mine = Contribution<T>(rank, count, backend.device);
      Elements gathered(DTypeOf<T>::value, count * size, backend.device);
      EXPECT_OK(communicator.AllGather(mine.tensor(), gathered.tensor(), CallFor("gather")));
      std::vector<char> expected;
      for (int peer = 0; peer < size; ++peer) {
        const std::vector<char> theirs = Contribution<T>(peer, count, backend.device).bytes();
        expected.insert(expected.end(), theirs.begin(), theirs.end());
      }
      EXPECT_EQ(gathered.bytes(), expected);
    }
    EXPECT_OK(communicator.Barrier(CallFor("end")));
  });
  for (const auto& sum : sums) EXPECT_EQ(sum, sums[0]) << "ranks hold other bits";
}

TEST_P(CollectiveSuite, MovesAndAddsFp32) {
  for (const int size : {1, 2, 3, 4}) CheckValues<float>(GetParam(), size);
}

TEST_P(CollectiveSuite, MovesAndAddsFp16) { CheckValues<Float16>(GetParam(), 4); }

TEST_P(CollectiveSuite, MovesAndAddsBf16) { CheckValues<BFloat16>(GetParam(), 3); }

TEST_P(CollectiveSuite, LargeDataGoesInSlices) {
  const int64_t count = 1'500'001;  // of which a rank's shard is above a slice of any backend
  OnRanks(GetParam().session(2, 1), 2, [&](Communicator& communicator) {
    Elements data = Contribution<float>(communicator.rank(), count, GetParam().device);
    EXPECT_OK(communicator.AllReduce(data.tensor(), ReduceOp::kSum, CallFor("large")));
    ExpectSum<float>(GetParam(), data.bytes(), ExpectedSum<float>(2, count));
  });
}

TEST_P(CollectiveSuite, MaximumOfFlagsAndSumsOfIntegers) {
  OnRanks(GetParam().session(3, 1), 3, [&](Communicator& communicator) {
    const int rank = communicator.rank();
    Elements flag(DType::kInt32, 1, GetParam().device);
    *flag.tensor().as<int32_t>() = rank == 1 ? 1 : 0;
    EXPECT_OK(communicator.AllReduce(flag.tensor(), ReduceOp::kMax, CallFor("found_inf")));
    EXPECT_EQ(*flag.tensor().as<int32_t>(), 1);

    Elements tokens(DType::kInt64, 1, GetParam().device);
    *tokens.tensor().as<int64_t>() = (int64_t{1} << 33) + rank;
    EXPECT_OK(communicator.AllReduce(tokens.tensor(), ReduceOp::kSum, CallFor("tokens")));
    EXPECT_EQ(*tokens.tensor().as<int64_t>(), 3 * (int64_t{1} << 33) + 3);
  });
}

TEST_P(CollectiveSuite, ShardsMayLieInTheWhole) {
  OnRanks(GetParam().session(2, 1), 2, [&](Communicator& communicator) {
    const int rank = communicator.rank();
    Elements all = Contribution<float>(rank, 10, GetParam().device);
    const Tensor shard(all.at(rank * 5), DType::kFloat32, Shape{5}, GetParam().device);
    EXPECT_OK(communicator.ReduceScatter(all.tensor(), shard, CallFor("scatter")));
    EXPECT_OK(communicator.AllGather(shard, all.tensor(), CallFor("gather")));
    ExpectSum<float>(GetParam(), all.bytes(), ExpectedSum<float>(2, 10));
  });
}

// Fails an operation on ranks 0 and 1 of 3, whose rank 2 does not come, and hands their errors out.
std::vector<absl::Status> FailWithoutRankTwo(const CollectiveBackend& backend, uint64_t epoch) {
  std::vector<absl::Status> errors(3);
  std::latch others_done(2);
  OnRanks(backend.session(3, epoch), 3, [&](Communicator& communicator) {
    EXPECT_OK(communicator.Barrier(CallFor("before")));
    if (communicator.rank() == 2) return others_done.wait();
    Elements data(DType::kFloat32, 5, backend.device);
    const CollectiveCall call = CallFor("gradients of layer 3", absl::Seconds(3));
    errors[communicator.rank()] = communicator.AllReduce(data.tensor(), ReduceOp::kSum, call);
    EXPECT_LT(absl::Now(), call.deadline + kLate);
    const absl::Status after = communicator.Barrier(CallFor("after"));
    EXPECT_EQ(ReasonOf(after), "COMMUNICATOR_UNUSABLE") << after;
    others_done.count_down();
  });
  return errors;
}

TEST_P(CollectiveSuite, RankThatDoesNotComeIsNamedAtTheDeadline) {
  const std::vector<absl::Status> errors = FailWithoutRankTwo(GetParam(), 5);
  for (int rank = 0; rank < 2; ++rank) {
    const auto reason = GetErrorReason(errors[rank]);
    ASSERT_TRUE(reason.has_value()) << errors[rank];
    EXPECT_EQ(reason->reason, "COLLECTIVE_TIMEOUT") << errors[rank];
    EXPECT_EQ(errors[rank].code(), absl::StatusCode::kDeadlineExceeded);
    auto metadata = reason->metadata;
    EXPECT_EQ(metadata["rank"], absl::StrCat(rank));
    EXPECT_EQ(metadata["label"], "gradients of layer 3");
    EXPECT_EQ(metadata["operation"], "all_reduce");
    EXPECT_EQ(metadata["version"], "7");
    EXPECT_EQ(metadata["sequence"], "2");
    EXPECT_EQ(metadata["bytes"], "20");
    EXPECT_EQ(metadata["epoch"], "5");
    EXPECT_EQ(metadata["peers"], GetParam().names_peers ? "2" : "");
    EXPECT_THAT(std::string(errors[rank].message()), HasSubstr("gradients of layer 3"));
  }
}

TEST_P(CollectiveSuite, SurvivorsFormANewEpoch) {
  FailWithoutRankTwo(GetParam(), 5);
  OnRanks(GetParam().session(2, 6), 2, [&](Communicator& communicator) {
    EXPECT_EQ(communicator.epoch(), 6u);
    Elements data = Contribution<float>(communicator.rank(), 9, GetParam().device);
    EXPECT_OK(communicator.AllReduce(data.tensor(), ReduceOp::kSum, CallFor("again")));
    ExpectSum<float>(GetParam(), data.bytes(), ExpectedSum<float>(2, 9));
  });
}

TEST_P(CollectiveSuite, AbortFromAnotherThreadWakesARankThatWaits) {
  const JoinRank join = GetParam().session(2, 1);
  std::latch done(1);
  OnRanks(join, 2, [&](Communicator& communicator) {
    if (communicator.rank() == 1) return done.wait();
    const absl::Time start = absl::Now();
    std::thread other([&] { communicator.Abort("the job was cancelled"); });
    const absl::Status status = communicator.Barrier(CallFor("never", absl::Seconds(60)));
    other.join();
    EXPECT_EQ(ReasonOf(status), "COMMUNICATOR_ABORTED") << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("the job was cancelled"));
    EXPECT_LT(absl::Now() - start, absl::Seconds(20));
    EXPECT_EQ(ReasonOf(communicator.Barrier(CallFor("later"))), "COMMUNICATOR_ABORTED");
    done.count_down();
  });
}

TEST_P(CollectiveSuite, AbortOfOneRankReachesTheOthers) {
  std::latch done(1);
  OnRanks(GetParam().session(2, 1), 2, [&](Communicator& communicator) {
    if (communicator.rank() == 1) {
      communicator.Abort("this rank is stopping");
      return done.wait();
    }
    // NCCL alone has no way to tell: there it is the deadline that ends the wait.
    const absl::Duration patience =
        GetParam().names_peers ? absl::Seconds(60) : absl::Milliseconds(150);
    const absl::Time start = absl::Now();
    const absl::Status status = communicator.Barrier(CallFor("barrier", patience));
    EXPECT_EQ(ReasonOf(status),
              GetParam().names_peers ? "COMMUNICATOR_ABORTED" : "COLLECTIVE_TIMEOUT")
        << status;
    EXPECT_LT(absl::Now() - start, absl::Seconds(20));
    if (GetParam().names_peers) {
      EXPECT_EQ(GetErrorReason(status)->metadata["peers"], "1");
    }
    done.count_down();
  });
}

// Both ranks `call`, what does not fit; both must learn it.
void ExpectMismatch(const CollectiveBackend& backend,
                    const std::function<absl::Status(Communicator&)>& call) {
  OnRanks(backend.session(2, 1), 2, [&](Communicator& communicator) {
    const absl::Status status = call(communicator);
    EXPECT_EQ(ReasonOf(status), "COLLECTIVE_MISMATCH") << status;
    EXPECT_EQ(ReasonOf(communicator.Barrier(CallFor("after"))), "COMMUNICATOR_UNUSABLE");
  });
}

TEST_P(CollectiveSuite, CallsThatDoNotFitAreFound) {
  const Device device = GetParam().device;
  {
    SCOPED_TRACE("counts");
    ExpectMismatch(GetParam(), [&](Communicator& communicator) {
      Elements data(DType::kFloat32, 4 + communicator.rank(), device);
      return communicator.Broadcast(data.tensor(), 0, CallFor("weights"));
    });
  }
  {
    SCOPED_TRACE("dtypes");
    ExpectMismatch(GetParam(), [&](Communicator& communicator) {
      Elements data(communicator.rank() == 0 ? DType::kFloat16 : DType::kBFloat16, 4, device);
      return communicator.AllReduce(data.tensor(), ReduceOp::kMax, CallFor("weights"));
    });
  }
  {
    SCOPED_TRACE("roots");
    ExpectMismatch(GetParam(), [&](Communicator& communicator) {
      Elements data(DType::kFloat32, 4, device);
      return communicator.Broadcast(data.tensor(), communicator.rank(), CallFor("weights"));
    });
  }
  {
    SCOPED_TRACE("order");
    ExpectMismatch(GetParam(), [&](Communicator& communicator) {
      Elements data(DType::kFloat32, 4, device);
      return communicator.rank() == 0
                 ? communicator.Broadcast(data.tensor(), 0, CallFor("weights"))
                 : communicator.AllReduce(data.tensor(), ReduceOp::kMax, CallFor("weights"));
    });
  }
}

TEST_P(CollectiveSuite, BadArgumentsAreRefusedAndHarmless) {
  const Device device = GetParam().device;
  OnRanks(GetParam().session(2, 1), 2, [&](Communicator& communicator) {
    const auto expect_refused = [](const absl::Status& status, const std::string& words) {
      EXPECT_EQ(ReasonOf(status), "COLLECTIVE_ARGUMENT") << status;
      EXPECT_THAT(std::string(status.message()), HasSubstr(words));
    };
    Elements four(DType::kFloat32, 4, device), three(DType::kFloat32, 3, device);
    Elements bytes(DType::kUInt8, 4, device), halves(DType::kFloat16, 2, device);
    const CollectiveCall call = CallFor("refused");
    expect_refused(communicator.Broadcast(four.tensor(), 2, call), "the root is rank 2");
    expect_refused(communicator.AllReduce(bytes.tensor(), ReduceOp::kSum, call), "uint8");
    expect_refused(communicator.ReduceScatter(four.tensor(), three.tensor(), call),
                   "a shard of 3 fp32");
    expect_refused(communicator.AllGather(halves.tensor(), four.tensor(), call),
                   "do not make 4 fp32");
    const Device other{device.type == DeviceType::kCpu ? DeviceType::kCuda : DeviceType::kCpu, 0};
    Elements elsewhere(DType::kFloat32, 4, other);
    expect_refused(communicator.Broadcast(elsewhere.tensor(), 0, call), "memory of the");
    EXPECT_OK(communicator.Barrier(CallFor("still usable")));
  });
}

TEST_P(CollectiveSuite, OnlyTheOwnersThreadMayCall) {
  OnRanks(GetParam().session(1, 1), 1, [&](Communicator& communicator) {
    std::thread([&] {
      const absl::Status status = communicator.Barrier(CallFor("foreign"));
      EXPECT_EQ(ReasonOf(status), "COLLECTIVE_FOREIGN_THREAD") << status;
    }).join();
    EXPECT_OK(communicator.Barrier(CallFor("own")));
  });
}

}  // namespace
}  // namespace halfstep
