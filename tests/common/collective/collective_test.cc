// SPDX-License-Identifier: Apache-2.0
// The suite over threads and over gloo, and what is particular to each of the two.
#include <gmock/gmock.h>

#include <latch>

#include "common/base/error_reason.h"
#include "common/collective/gloo_communicator.h"
#include "common/collective/rank_tree.h"
#include "common/collective/thread_communicator.h"
#include "tests/common/collective/collective_backend.h"
#include "tests/common/collective/rendezvous_stores.h"

namespace halfstep {
namespace {

using testing::HasSubstr;

JoinRank ThreadSession(int size, uint64_t epoch) {
  return [group = std::make_shared<ThreadGroup>(size, epoch)](
             int rank) -> absl::StatusOr<std::unique_ptr<Communicator>> {
    return std::make_unique<ThreadCommunicator>(group, rank);
  };
}

JoinRank GlooSession(int size, uint64_t epoch) {
  return [=, store = std::make_shared<InProcessStore>()](
             int rank) -> absl::StatusOr<std::unique_ptr<Communicator>> {
    GlooOptions options;
    options.membership = {rank, size, epoch};
    options.store = store;
    return GlooCommunicator::Form(options, CallFor("start", absl::Seconds(30)));
  };
}

INSTANTIATE_TEST_SUITE_P(Host, CollectiveSuite,
                         testing::Values(CollectiveBackend{.name = "threads",
                                                           .session = ThreadSession},
                                         CollectiveBackend{.name = "gloo", .session = GlooSession}),
                         BackendName);

TEST(RankTreeTest, ThreeRanksAddTheFirstTwoFirst) {
  const float a = 1.0f, b = 0x1p-24f, c = 0x1p-24f;  // a + b is a; b + c is what a can feel
  float out = 0;
  const void* const shards[] = {&a, &b, &c};
  ReduceShards({shards, 1, DType::kFloat32}, ReduceOp::kSum, &out);
  EXPECT_EQ(out, 1.0f);
  const void* const other_order[] = {&b, &c, &a};
  ReduceShards({other_order, 1, DType::kFloat32}, ReduceOp::kSum, &out);
  EXPECT_EQ(out, 1.0f + 0x1p-23f);
}

TEST(RankTreeTest, Fp16IsRoundedOnce) {
  // 2048 + 1 is 2048 in FP16 each time; the sum of all three in FP32 is 2050.
  const Float16 big = ToFloat16(2048.0f), one = ToFloat16(1.0f);
  const void* const shards[] = {&big, &one, &one};
  Float16 out;
  ReduceShards({shards, 1, DType::kFloat16}, ReduceOp::kSum, &out);
  EXPECT_EQ(ToFloat(out), 2050.0f);
}

TEST(RankTreeTest, ChunksCoverTheWholeInOrder) {
  for (const int64_t total : {0, 1, 5, 7, 12}) {
    for (const int size : {1, 2, 3, 5}) {
      int64_t next = 0;
      for (int rank = 0; rank < size; ++rank) {
        const Chunk chunk = ChunkOf(total, size, rank);
        EXPECT_EQ(chunk.begin, next);
        EXPECT_LE(chunk.count(), LongestChunk(total, size));
        next = chunk.end;
      }
      EXPECT_EQ(next, total);
    }
  }
}

TEST(ThreadCommunicatorTest, RankThatLeavesIsLost) {
  const JoinRank join = ThreadSession(2, 1);
  OnRanks(join, 2, [](Communicator& communicator) {
    if (communicator.rank() == 1) return;
    const absl::Status status = communicator.Barrier(CallFor("barrier"));
    EXPECT_EQ(ReasonOf(status), "PEER_LOST") << status;
    EXPECT_EQ(GetErrorReason(status)->metadata["peers"], "1");
  });
}

TEST(GlooCommunicatorTest, FormNamesAllRanksThatDoNotCome) {
  const auto store = std::make_shared<InProcessStore>();
  OnRanks(
      [&](int rank) -> absl::StatusOr<std::unique_ptr<Communicator>> {
        GlooOptions options;
        options.membership = {rank * 2, 4, 1};  // ranks 0 and 2 of 4
        options.store = store;
        const auto formed = GlooCommunicator::Form(options, CallFor("start", absl::Seconds(3)));
        EXPECT_EQ(ReasonOf(formed.status()), "COLLECTIVE_TIMEOUT") << formed.status();
        EXPECT_EQ(GetErrorReason(formed.status())->metadata["peers"], "1,3");
        return std::make_unique<ThreadCommunicator>(std::make_shared<ThreadGroup>(1, 1), 0);
      },
      2, [](Communicator&) {});
}

TEST(GlooCommunicatorTest, UnknownInterfaceIsNamed) {
  GlooOptions options;
  options.membership = {0, 2, 1};
  options.store = std::make_shared<InProcessStore>();
  options.interface = "no-such-interface";
  const absl::Status status = GlooCommunicator::Form(options, CallFor("start")).status();
  EXPECT_EQ(ReasonOf(status), "COLLECTIVE_TRANSPORT") << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("no-such-interface"));
}

// Rank 0 gives up on rank 2; rank 1 comes after that, finds the connection closed and learns why.
TEST(GlooCommunicatorTest, WhoGivesUpSaysOnWhom) {
  std::latch gave_up(1), done(2);
  OnRanks(GlooSession(3, 1), 3, [&](Communicator& communicator) {
    if (communicator.rank() == 2) return done.wait();
    if (communicator.rank() == 0) {
      Elements data(DType::kFloat32, 1, kCpuDevice);
      const absl::Status status = communicator.AllReduce(data.tensor(), ReduceOp::kSum,
                                                         CallFor("step", absl::Milliseconds(100)));
      EXPECT_EQ(GetErrorReason(status)->metadata["peers"], "1,2") << status;
      gave_up.count_down();
    } else {
      gave_up.wait();
      const absl::Status status = communicator.Barrier(CallFor("step"));
      EXPECT_EQ(ReasonOf(status), "COLLECTIVE_TIMEOUT") << status;
      EXPECT_EQ(GetErrorReason(status)->metadata["peers"], "2") << status;
      EXPECT_THAT(std::string(status.message()), HasSubstr("rank 0 gave up"));
    }
    done.count_down();
  });
}

class RecordTest : public testing::TestWithParam<JoinRank (*)(int size, uint64_t epoch)> {};

TEST_P(RecordTest, SaysWhatEachRankCalls) {
  OnRanks(GetParam()(2, 1), 2, [&](Communicator& communicator) {
    CollectiveCall call = CallFor("weights");
    call.version += communicator.rank();
    const absl::Status status = communicator.Barrier(call);
    EXPECT_EQ(ReasonOf(status), "COLLECTIVE_MISMATCH");
    EXPECT_THAT(std::string(status.message()), HasSubstr("rank 1 calls barrier for \"weights\", "
                                                         "version 8, call 1 of 2 ranks"));
  });
}

INSTANTIATE_TEST_SUITE_P(ThreadsAndGloo, RecordTest, testing::Values(ThreadSession, GlooSession));

}  // namespace
}  // namespace halfstep
