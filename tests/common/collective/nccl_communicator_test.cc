// SPDX-License-Identifier: Apache-2.0
// NcclCommunicator's own code over the fake of NCCL, and the fake's checks themselves.
#include <cuda_runtime_api.h>
#include <gmock/gmock.h>
#include <stdlib.h>

#include <mutex>

#include "absl/strings/str_join.h"
#include "common/base/error_reason.h"
#include "common/collective/nccl_communicator.h"
#include "common/collective/rank_tree.h"
#include "tests/common/collective/collective_backend.h"
#include "tests/common/collective/fake_nccl.h"

namespace halfstep {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr Device kGpu{DeviceType::kCuda, 0};

// Every test starts with an empty fake and ends without a violation or a leak.
class Protocol : public testing::EmptyTestEventListener {
  void OnTestStart(const testing::TestInfo&) override { fake_nccl::Reset(); }
  void OnTestEnd(const testing::TestInfo&) override {
    EXPECT_THAT(fake_nccl::Violations(), IsEmpty());
    EXPECT_EQ(fake_nccl::Alive(), 0);
  }
};
[[maybe_unused]] const bool kListens = [] {
  testing::UnitTest::GetInstance()->listeners().Append(new Protocol);
  return true;
}();

// The seam of the CUDA backend's kernel: enqueued like one, done by the host.
absl::Status ReduceOnStream(const RankShards& input, void* out, cudaStream_t stream) {
  struct Task {
    std::vector<const void*> shards;
    int64_t count;
    DType dtype;
    void* out;
  };
  auto* const task =
      new Task{{input.shards.begin(), input.shards.end()}, input.count, input.dtype, out};
  const cudaError_t result = cudaLaunchHostFunc(
      stream,
      [](void* data) {
        const std::unique_ptr<Task> work(static_cast<Task*>(data));
        ReduceShards({work->shards, work->count, work->dtype}, ReduceOp::kSum, work->out);
      },
      task);
  return result == cudaSuccess ? absl::OkStatus() : absl::InternalError("launch");
}

// What a rank's options point to.
struct RankMemory {
  std::vector<char> scratch = std::vector<char>(1 << 20);
  cudaStream_t stream = nullptr;
};

NcclOptions OptionsFor(const Membership& membership, const NcclId& id, RankMemory* memory) {
  EXPECT_EQ(cudaStreamCreate(&memory->stream), cudaSuccess);
  NcclOptions options;
  options.membership = membership;
  options.id = id;
  options.stream = memory->stream;
  options.scratch = Tensor(memory->scratch.data(), DType::kUInt8,
                           Shape{static_cast<int64_t>(memory->scratch.size())}, kGpu);
  options.reducer = ReduceOnStream;
  return options;
}

NcclId NewId() {
  const absl::StatusOr<NcclId> id = NcclId::Create();
  EXPECT_TRUE(id.ok()) << id.status();
  // Over the wire and back, as ranks get it.
  return *NcclId::FromBytes(id->bytes());
}

JoinRank Session(int size, uint64_t epoch, bool in_rank_order) {
  auto memory = std::make_shared<std::vector<RankMemory>>(size);
  return [=, id = NewId()](int rank) -> absl::StatusOr<std::unique_ptr<Communicator>> {
    NcclOptions options = OptionsFor({rank, size, epoch}, id, &(*memory)[rank]);
    if (!in_rank_order) options.reducer = nullptr;
    return NcclCommunicator::Form(options, CallFor("start", absl::Seconds(30)));
  };
}

INSTANTIATE_TEST_SUITE_P(Nccl, CollectiveSuite,
                         testing::Values(CollectiveBackend{.name = "nccl_rank_order",
                                                           .device = kGpu,
                                                           .names_peers = false,
                                                           .session =
                                                               [](int size, uint64_t epoch) {
                                                                 return Session(size, epoch, true);
                                                               }},
                                         CollectiveBackend{.name = "nccl_own_order",
                                                           .device = kGpu,
                                                           .names_peers = false,
                                                           .in_rank_order = false,
                                                           .session =
                                                               [](int size, uint64_t epoch) {
                                                                 return Session(size, epoch, false);
                                                               }}),
                         BackendName);

TEST(NcclCommunicatorTest, NameHoldsTheEpoch) {
  OnRanks(Session(1, 42, true), 1, [](Communicator& communicator) {
    EXPECT_EQ(communicator.Barrier(CallFor("start")), absl::OkStatus());
  });
  EXPECT_THAT(fake_nccl::Names(), ElementsAre("halfstep/epoch 42"));
}

TEST(NcclCommunicatorTest, EnvironmentThatTakesControlIsRefused) {
  RankMemory memory;
  const NcclOptions options = OptionsFor({0, 1, 1}, NewId(), &memory);
  ASSERT_EQ(setenv("NCCL_COMM_ID", "127.0.0.1:9999", 1), 0);
  const absl::Status status = NcclCommunicator::Form(options, CallFor("start")).status();
  EXPECT_EQ(ReasonOf(status), "NCCL_COMM_ID_SET");
  EXPECT_THAT(std::string(status.message()), HasSubstr("unset it"));
  EXPECT_EQ(ReasonOf(NcclId::Create().status()), "NCCL_COMM_ID_SET");
  unsetenv("NCCL_COMM_ID");
  ASSERT_EQ(setenv("NCCL_COMM_BLOCKING", "1", 1), 0);
  EXPECT_EQ(ReasonOf(NcclCommunicator::Form(options, CallFor("start")).status()),
            "NCCL_BLOCKING_FORCED");
  unsetenv("NCCL_COMM_BLOCKING");
}

TEST(NcclCommunicatorTest, BadOptionsAreRefused) {
  RankMemory memory;
  memory.scratch.resize(100);
  const NcclOptions options = OptionsFor({0, 1, 1}, NewId(), &memory);
  const absl::Status status = NcclCommunicator::Form(options, CallFor("start")).status();
  EXPECT_EQ(ReasonOf(status), "COLLECTIVE_ARGUMENT");
  EXPECT_THAT(std::string(status.message()), HasSubstr("its scratch is 100 bytes"));
  EXPECT_EQ(ReasonOf(NcclId::FromBytes("short").status()), "COLLECTIVE_ARGUMENT");
}

TEST(NcclCommunicatorTest, FormGivesUpOnARankThatDoesNotCome) {
  RankMemory memory;
  const NcclOptions options = OptionsFor({0, 2, 3}, NewId(), &memory);
  const absl::Status status =
      NcclCommunicator::Form(options, CallFor("start", absl::Milliseconds(100))).status();
  EXPECT_EQ(ReasonOf(status), "COLLECTIVE_TIMEOUT") << status;
  EXPECT_EQ(GetErrorReason(status)->metadata["operation"], "form");
}

TEST(NcclCommunicatorTest, ErrorThatComesLaterIsTyped) {
  const std::pair<ncclResult_t, const char*> cases[] = {
      {ncclRemoteError, "PEER_LOST"},
      {ncclInternalError, "COLLECTIVE_TRANSPORT"},
      {ncclInvalidUsage, "COLLECTIVE_MISMATCH"},
  };
  for (const auto& [error, reason] : cases) {
    fake_nccl::Reset();
    fake_nccl::FailCall(0, 2, error);
    OnRanks(Session(1, 1, true), 1, [&](Communicator& communicator) {
      EXPECT_EQ(communicator.Barrier(CallFor("first")), absl::OkStatus());
      const absl::Status status = communicator.Barrier(CallFor("second"));
      EXPECT_EQ(ReasonOf(status), reason) << status;
      EXPECT_THAT(std::string(status.message()), HasSubstr("injected"));
      EXPECT_EQ(fake_nccl::Alive(), 1) << "only the event is left: the communicator is aborted";
    });
  }
}

TEST(NcclCommunicatorTest, SlowRankIsWaitedForUntilTheDeadline) {
  fake_nccl::SlowDown(1, 300);
  OnRanks(Session(2, 1, true), 2, [](Communicator& communicator) {
    EXPECT_EQ(communicator.Barrier(CallFor("slow")), absl::OkStatus());
  });
  fake_nccl::SlowDown(1, 1 << 30);
  OnRanks(Session(2, 2, true), 2, [](Communicator& communicator) {
    const absl::Status status = communicator.Barrier(CallFor("stuck", absl::Milliseconds(100)));
    EXPECT_EQ(ReasonOf(status), "COLLECTIVE_TIMEOUT") << status;
  });
}

TEST(NcclCommunicatorTest, IdsDifferAndStayOutOfErrors) {
  const NcclId a = NewId(), b = NewId();
  EXPECT_NE(a.bytes(), b.bytes());
  RankMemory memory;
  const absl::Status status = NcclCommunicator::Form(OptionsFor({0, 2, 3}, a, &memory),
                                                     CallFor("start", absl::Milliseconds(20)))
                                  .status();
  EXPECT_EQ(status.ToString().find(a.bytes().substr(0, 16)), std::string::npos);
}

// The checks of the fake, each broken once by direct calls.
class FakeNcclTest : public testing::Test {
 protected:
  FakeNcclTest() {
    ncclUniqueId id;
    ncclGetUniqueId(&id);
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    config.commName = "fake";
    ncclCommInitRankConfig(&comm_, 1, id, 0, &config);
    cudaStreamCreate(&stream_);
  }
  ~FakeNcclTest() override { fake_nccl::Reset(); }

  void WaitUntilTaken() {
    ncclResult_t state = ncclInProgress;
    while (state == ncclInProgress) ncclCommGetAsyncError(comm_, &state);
    EXPECT_EQ(state, ncclSuccess);
  }
  ncclResult_t Call() { return ncclBroadcast(&value_, &value_, 1, ncclInt32, 0, comm_, stream_); }
  std::string Violations() { return absl::StrJoin(fake_nccl::Violations(), "; "); }

  ncclComm_t comm_ = nullptr;
  cudaStream_t stream_ = nullptr;
  int value_ = 0;
};

TEST_F(FakeNcclTest, SeesACallBeforeTheLastIsTaken) {
  EXPECT_EQ(Call(), ncclInvalidUsage);  // before the initialisation is over
  WaitUntilTaken();
  EXPECT_EQ(Call(), ncclInProgress);
  EXPECT_EQ(Violations(), "a call on a busy communicator");
}

TEST_F(FakeNcclTest, SeesWorkBehindACallThatIsNotTaken) {
  WaitUntilTaken();
  Call();
  cudaEvent_t event = nullptr;
  cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
  cudaEventRecord(event, stream_);
  cudaEventDestroy(event);
  EXPECT_THAT(Violations(), HasSubstr("an event behind a call"));
}

TEST_F(FakeNcclTest, SeesUseAfterAbort) {
  ncclCommAbort(comm_);
  EXPECT_EQ(Call(), ncclInvalidUsage);
  EXPECT_EQ(Violations(), "ncclBroadcast after abort or destroy");
}

TEST_F(FakeNcclTest, SeesForeignThreads) {
  WaitUntilTaken();
  std::thread([this] { EXPECT_EQ(Call(), ncclInvalidUsage); }).join();
  EXPECT_EQ(Violations(), "ncclBroadcast from a foreign thread");
}

TEST_F(FakeNcclTest, SeesDestroyWithoutFinalize) {
  WaitUntilTaken();
  EXPECT_EQ(ncclCommDestroy(comm_), ncclInvalidUsage);
  EXPECT_EQ(Violations(), "destroy without finalize");
}

TEST_F(FakeNcclTest, SeesABlockingConfiguration) {
  ncclUniqueId id;
  ncclGetUniqueId(&id);
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.commName = "fake";
  ncclComm_t other = nullptr;
  EXPECT_EQ(ncclCommInitRankConfig(&other, 1, id, 0, &config), ncclInvalidUsage);
  EXPECT_THAT(Violations(), HasSubstr("a configuration that blocks"));
}

// A receive that nobody sends is what a wrong peer or count comes to.
TEST_F(FakeNcclTest, SeesAReceiveWithoutItsSend) {
  WaitUntilTaken();
  ncclGroupStart();
  ncclRecv(&value_, 1, ncclInt32, 0, comm_, stream_);
  EXPECT_EQ(ncclGroupEnd(), ncclInProgress);
  ncclResult_t state = ncclInProgress;
  while (state == ncclInProgress) ncclCommGetAsyncError(comm_, &state);
  EXPECT_EQ(state, ncclInvalidUsage);
  EXPECT_THAT(std::string(ncclGetLastError(comm_)), HasSubstr("a send without its receive"));
}

}  // namespace
}  // namespace halfstep
