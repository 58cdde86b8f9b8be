// SPDX-License-Identifier: Apache-2.0
// GlooCommunicator between processes, some of which are killed or stopped. This process never has a
// second thread, so that it may fork.
#include <gmock/gmock.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>

#include "common/base/error_reason.h"
#include "common/collective/gloo_communicator.h"
#include "common/collective/rank_tree.h"
#include "tests/common/collective/collective_backend.h"
#include "tests/common/collective/rendezvous_stores.h"
#include "tests/testing/temp_dir.h"

namespace halfstep {
namespace {

// A process that runs `body`, whose argument is a pipe to this one, and fails if an expectation in
// it does.
class Child {
 public:
  explicit Child(const std::function<void(int pipe)>& body) {
    int ends[2];
    EXPECT_EQ(pipe(ends), 0);
    pid_ = fork();
    if (pid_ == 0) {
      close(ends[0]);
      body(ends[1]);
      std::fflush(stdout);
      _exit(testing::Test::HasFailure() ? 1 : 0);
    }
    close(ends[1]);
    pipe_ = ends[0];
  }
  ~Child() {
    Signal(SIGKILL);
    int status = 0;
    if (pid_ > 0) waitpid(pid_, &status, 0);
    close(pipe_);
  }
  Child(Child&& other) noexcept
      : pid_(std::exchange(other.pid_, -1)), pipe_(std::exchange(other.pipe_, -1)) {}

  void Signal(int signal) const {
    if (pid_ > 0) kill(pid_, signal);
  }

  // The next byte from it; false when it has closed its end, or a minute is over.
  bool Read() const {
    pollfd readable{pipe_, POLLIN, 0};
    char byte = 0;
    return poll(&readable, 1, 60'000) == 1 && read(pipe_, &byte, 1) == 1;
  }

  // It ends by itself, and well.
  void ExpectSuccess() {
    while (Read()) {
    }
    pollfd ended{pipe_, POLLIN, 0};
    ASSERT_EQ(poll(&ended, 1, 0), 1) << "a rank hangs";
    int status = 0;
    ASSERT_EQ(waitpid(pid_, &status, 0), pid_);
    pid_ = -1;
    EXPECT_EQ(status, 0) << "an expectation of a rank failed";
  }

 private:
  pid_t pid_ = -1;
  int pipe_ = -1;
};

size_t Entries(const char* folder) {
  const std::filesystem::directory_iterator entries(folder);
  return std::distance(begin(entries), end(entries));
}
size_t Descriptors() { return Entries("/proc/self/fd"); }
size_t Threads() { return Entries("/proc/self/task"); }

// A joined thread may be listed for a moment more.
void ExpectThreads(size_t expected) {
  const absl::Time deadline = absl::Now() + absl::Seconds(5);
  while (Threads() != expected && absl::Now() < deadline) std::this_thread::yield();
  EXPECT_EQ(Threads(), expected);
}

absl::StatusOr<std::unique_ptr<GlooCommunicator>> Form(const std::string& folder,
                                                       const Membership& membership) {
  GlooOptions options;
  options.membership = membership;
  options.store = std::make_shared<FolderStore>(folder);
  return GlooCommunicator::Form(options, CallFor("start", absl::Seconds(60)));
}

void ExpectSumOf(Communicator& communicator, int64_t count) {
  const int size = communicator.size();
  Elements sum = Contribution<float>(communicator.rank(), count, kCpuDevice);
  ASSERT_EQ(communicator.AllReduce(sum.tensor(), ReduceOp::kSum, CallFor("sum")), absl::OkStatus());
  std::vector<Elements> inputs;
  std::vector<const void*> shards;
  for (int rank = 0; rank < size; ++rank) {
    inputs.push_back(Contribution<float>(rank, count, kCpuDevice));
  }
  for (Elements& input : inputs) shards.push_back(input.at(0));
  Elements expected(DType::kFloat32, count, kCpuDevice);
  ReduceShards({shards, count, DType::kFloat32}, ReduceOp::kSum, expected.at(0));
  EXPECT_EQ(sum.bytes(), expected.bytes());
}

TEST(GlooProcessTest, FourProcessesAddInTheOrderOfRanks) {
  const TempDir folder;
  std::vector<Child> ranks;
  for (int rank = 0; rank < 4; ++rank) {
    ranks.emplace_back([&folder, rank](int) {
      const size_t descriptors = Descriptors(), threads = Threads();
      {
        const auto communicator = Form(folder.path(), {rank, 4, 1});
        ASSERT_TRUE(communicator.ok()) << communicator.status();
        ExpectSumOf(**communicator, 10'001);
        EXPECT_GT(Descriptors(), descriptors);
        EXPECT_GT(Threads(), threads);
      }
      EXPECT_EQ(Descriptors(), descriptors);
      ExpectThreads(threads);
    });
  }
  for (Child& rank : ranks) rank.ExpectSuccess();
}

// How long after its deadline a call may return on a machine with more to do than cores.
constexpr absl::Duration kLate = absl::Seconds(5);

struct Fault {
  const char* name;
  int signal;
  const char* reason;
  absl::Duration patience;  // of each call
};
std::ostream& operator<<(std::ostream& out, const Fault& fault) { return out << fault.name; }

class FaultTest : public testing::TestWithParam<Fault> {
 protected:
  // Broadcasts from rank 0 until one fails, saying so after each. Then: the error names `victim`
  // and came in time, nothing of the communicator is left, and the survivors form the next one.
  void Survive(const std::string& folder, int rank, int victim, int pipe) const {
    const size_t descriptors = Descriptors(), threads = Threads();
    {
      const auto communicator = Form(folder, {rank, 3, 1});
      ASSERT_TRUE(communicator.ok()) << communicator.status();
      Elements weights(DType::kUInt8, 2 << 20, kCpuDevice);
      CollectiveCall call;
      absl::Status status;
      for (uint64_t version = 1; status.ok(); ++version) {
        call = {"weights", version, absl::Now() + GetParam().patience};
        status = (*communicator)->Broadcast(weights.tensor(), 0, call);
        ASSERT_EQ(write(pipe, "b", 1), 1);
      }
      EXPECT_LT(absl::Now(), call.deadline + kLate);
      const auto reason = GetErrorReason(status);
      ASSERT_TRUE(reason.has_value()) << status;
      EXPECT_EQ(reason->reason, GetParam().reason) << status;
      EXPECT_EQ(reason->metadata.at("peers"), absl::StrCat(victim)) << status;
      // Released by the failure itself, not only by the destructor.
      EXPECT_EQ(Descriptors(), descriptors);
      ExpectThreads(threads);
    }
    const int next_rank = rank < victim ? rank : rank - 1;
    const auto communicator = Form(folder, {next_rank, 2, 2});
    ASSERT_TRUE(communicator.ok()) << communicator.status();
    ExpectSumOf(**communicator, 1001);
  }
};

TEST_P(FaultTest, SurvivorsBlameTheVictimAndGoOn) {
  for (int victim = 0; victim < 3; ++victim) {
    SCOPED_TRACE(absl::StrCat("victim ", victim));
    const TempDir folder;
    std::vector<Child> ranks;
    for (int rank = 0; rank < 3; ++rank) {
      ranks.emplace_back([&, rank](int pipe) { Survive(folder.path(), rank, victim, pipe); });
    }
    for (int broadcasts = 0; broadcasts < 3; ++broadcasts) ASSERT_TRUE(ranks[victim].Read());
    ranks[victim].Signal(GetParam().signal);
    for (int rank = 0; rank < 3; ++rank) {
      if (rank != victim) ranks[rank].ExpectSuccess();
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Signals, FaultTest,
    testing::Values(Fault{"killed", SIGKILL, "PEER_LOST", absl::Seconds(60)},
                    Fault{"stopped", SIGSTOP, "COLLECTIVE_TIMEOUT", absl::Seconds(5)}),
    [](const testing::TestParamInfo<Fault>& fault) { return fault.param.name; });

}  // namespace
}  // namespace halfstep
