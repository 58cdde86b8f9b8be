// SPDX-License-Identifier: Apache-2.0
// Clusters of shell scripts that behave like servers as far as the cluster can see.
#include "cli/local_cluster.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "common/base/error_reason.h"
#include "common/base/file.h"
#include "common/rpc/port_file.h"
#include "tests/testing/temp_dir.h"

namespace halfstep {
namespace {

using ::testing::HasSubstr;

constexpr absl::Duration kPatience = absl::Seconds(30);

constexpr char kHead[] = R"(#!/bin/sh
echo "started with $*"
while [ $# -gt 0 ]; do
  case $1 in --port-file) ports=$2 ;; --listen) listen=$2 ;; esac
  shift
done
[ "$listen" = 127.0.0.1:0 ] && listen=127.0.0.1:4711
)";
constexpr char kWritePorts[] = R"(
echo "{\"grpc\": \"$listen\", \"http\": \"127.0.0.1:4712\", \"pid\": $$}" \
  > "$ports.new" && mv "$ports.new" "$ports"
)";
constexpr char kStay[] = "exec sleep 1000\n";

// Whether the process ends (it need not be our child) within the patience.
bool Ends(pid_t pid) {
  const int fd = static_cast<int>(syscall(SYS_pidfd_open, pid, 0));
  if (fd < 0) return true;
  pollfd waiting = {fd, POLLIN, 0};
  const int ready = poll(&waiting, 1, static_cast<int>(absl::ToInt64Milliseconds(kPatience)));
  close(fd);
  return ready == 1;
}

class LocalClusterTest : public ::testing::Test {
 protected:
  std::string Script(const std::string& name, const std::string& body) {
    const std::string path = dir_ / name;
    std::ofstream(path) << kHead << body;
    std::filesystem::permissions(path, std::filesystem::perms::owner_all);
    return path;
  }

  LocalClusterOptions Options() {
    LocalClusterOptions options;
    options.learner_binary = Script("learner.sh", absl::StrCat(kWritePorts, kStay));
    options.rollout_binary = Script("rollout.sh", absl::StrCat(kWritePorts, kStay));
    options.root = dir_.path();
    options.run_directory = dir_ / "run";
    options.restart_delay = absl::Milliseconds(1);
    options.on_notice = [this](const std::string& text) {
      absl::MutexLock lock(&mutex_);
      notices_.push_back(text);
    };
    return options;
  }

  // Waits until a notice contains `text`.
  bool WaitForNotice(const std::string& text) {
    const auto said = [&] {
      for (const std::string& notice : notices_) {
        if (notice.find(text) != std::string::npos) return true;
      }
      return false;
    };
    absl::MutexLock lock(&mutex_);
    return mutex_.AwaitWithTimeout(absl::Condition(&said), kPatience);
  }

  std::string Log(const std::string& name) {
    return *ReadFile(absl::StrCat(dir_.path(), "/run/logs/", name, ".log"), 1 << 20);
  }

  TempDir dir_;
  absl::Mutex mutex_;
  std::vector<std::string> notices_;
};

TEST_F(LocalClusterTest, TellsTheLearnerToDrainWithinTheGrace) {
  LocalClusterOptions options = Options();
  options.rollouts = 0;
  options.stop_grace = absl::Seconds(20);
  const auto cluster = LocalCluster::Start(std::move(options));
  ASSERT_TRUE(cluster.ok()) << cluster.status();
  EXPECT_THAT(Log("learner"), HasSubstr("--drain-seconds 15 "));
}

TEST_F(LocalClusterTest, StartsTheLearnerThenItsRolloutsAndStopsThemAll) {
  LocalClusterOptions options = Options();
  options.rollouts = 2;
  options.rollout_arguments = {"--threads", "1"};
  auto cluster = LocalCluster::Start(std::move(options));
  ASSERT_TRUE(cluster.ok()) << cluster.status();
  EXPECT_EQ((*cluster)->learner_address(), "127.0.0.1:4711");
  EXPECT_EQ((*cluster)->learner_http_address(), "127.0.0.1:4712");
  const auto processes = (*cluster)->processes();
  ASSERT_EQ(processes.size(), 3u);
  EXPECT_EQ(processes[0].name, "learner");
  EXPECT_EQ(processes[2].name, "rollout-1");
  EXPECT_THAT(Log("rollout-1"), HasSubstr("--learner 127.0.0.1:4711 --id rollout-1"));
  EXPECT_THAT(Log("rollout-1"), HasSubstr("--threads 1"));
  EXPECT_GT((*cluster)->PeakMemoryBytes(), 0);
  (*cluster)->Stop();
  for (const auto& process : processes) EXPECT_EQ(kill(process.pid, 0), -1) << process.name;
}

TEST_F(LocalClusterTest, AKilledProcessIsRestartedWhereItWas) {
  auto cluster = LocalCluster::Start(Options());
  ASSERT_TRUE(cluster.ok()) << cluster.status();
  const pid_t before = (*cluster)->processes()[0].pid;
  kill(before, SIGKILL);
  EXPECT_TRUE(WaitForNotice("learner ended with signal 9 (Killed); restarting it"));
  EXPECT_TRUE(WaitForNotice("learner is running again with process id"));
  const ClusterProcess learner = (*cluster)->processes()[0];
  EXPECT_NE(learner.pid, before);
  EXPECT_EQ(learner.restarts, 1);
  EXPECT_TRUE((*cluster)->Health().ok());
  const absl::Time deadline = absl::Now() + kPatience;
  const std::string same_address = "--listen 127.0.0.1:4711";
  while (Log("learner").find(same_address) == std::string::npos && absl::Now() < deadline) {
    std::this_thread::yield();
  }
  EXPECT_THAT(Log("learner"), HasSubstr(same_address));
}

TEST_F(LocalClusterTest, AProcessThatKeepsDyingIsGivenUp) {
  LocalClusterOptions options = Options();
  options.rollouts = 1;
  options.max_restarts = 2;
  options.rollout_binary =
      Script("dying.sh", absl::StrCat(kWritePorts, "echo out of luck\nexit 3\n"));
  auto cluster = LocalCluster::Start(std::move(options));
  ASSERT_TRUE(cluster.ok()) << cluster.status();
  const absl::Time deadline = absl::Now() + kPatience;
  while ((*cluster)->Health().ok() && absl::Now() < deadline) std::this_thread::yield();
  const absl::Status health = (*cluster)->Health();
  EXPECT_EQ(ReasonOf(health), "PROCESS_DIED");
  EXPECT_THAT(std::string(health.message()),
              HasSubstr("given up after 2 restarts: rollout-0 ended with exit code 3"));
  EXPECT_THAT(std::string(health.message()), HasSubstr("out of luck"));
}

TEST_F(LocalClusterTest, AServerThatDiesAtStartIsReportedWithItsLog) {
  LocalClusterOptions options = Options();
  options.learner_binary = Script("bad.sh", "echo no such model\nexit 1\n");
  const auto cluster = LocalCluster::Start(std::move(options));
  EXPECT_EQ(ReasonOf(cluster.status()), "PROCESS_DIED");
  EXPECT_THAT(std::string(cluster.status().message()), HasSubstr("learner ended with exit code 1"));
  EXPECT_THAT(std::string(cluster.status().message()), HasSubstr("no such model"));
}

TEST_F(LocalClusterTest, ASecondOneInTheSameFolderDoesNotHideThePortsOfTheFirst) {
  LocalClusterOptions options = Options();
  options.rollouts = 0;
  auto first = LocalCluster::Start(options);
  ASSERT_TRUE(first.ok()) << first.status();
  const std::string port_file = dir_ / "run/logs/learner.ports";
  const auto ports = ReadPortFile(port_file);
  ASSERT_TRUE(ports.ok()) << ports.status();
  options.learner_binary = Script("refused.sh", "echo in use\nexit 1\n");
  EXPECT_EQ(ReasonOf(LocalCluster::Start(options).status()), "PROCESS_DIED");
  EXPECT_EQ(ReadPortFile(port_file)->pid, ports->pid);
}

TEST_F(LocalClusterTest, AServerThatIsNeverReadyIsReported) {
  LocalClusterOptions options = Options();
  options.learner_binary = Script("slow.sh", kStay);
  options.ready_timeout = absl::Milliseconds(50);
  const auto cluster = LocalCluster::Start(std::move(options));
  EXPECT_EQ(cluster.status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(ReasonOf(cluster.status()), "PROCESS_NOT_READY");
}

TEST_F(LocalClusterTest, AMissingBinaryIsNamed) {
  LocalClusterOptions options = Options();
  options.rollout_binary = "/nowhere/halfstep-rollout";
  const auto cluster = LocalCluster::Start(std::move(options));
  EXPECT_EQ(ReasonOf(cluster.status()), "BINARY_NOT_FOUND");
  EXPECT_THAT(std::string(cluster.status().message()), HasSubstr("/nowhere/halfstep-rollout"));
}

TEST_F(LocalClusterTest, AProcessThatIgnoresSigtermIsKilledAfterTheGrace) {
  LocalClusterOptions options = Options();
  options.rollouts = 0;
  options.learner_binary =
      Script("stubborn.sh", absl::StrCat("trap '' TERM\n", kWritePorts, kStay));
  options.stop_grace = absl::Milliseconds(50);
  auto cluster = LocalCluster::Start(std::move(options));
  ASSERT_TRUE(cluster.ok()) << cluster.status();
  const pid_t pid = (*cluster)->processes()[0].pid;
  cluster->reset();
  EXPECT_EQ(kill(pid, 0), -1);
}

TEST_F(LocalClusterTest, NothingOutlivesAProcessThatIsKilled) {
  LocalClusterOptions options = Options();
  int pids[2];
  ASSERT_EQ(pipe(pids), 0);
  const pid_t owner = fork();
  if (owner == 0) {
    auto cluster = LocalCluster::Start(std::move(options));
    if (!cluster.ok()) _exit(1);
    std::string text;
    for (const auto& process : (*cluster)->processes()) absl::StrAppend(&text, process.pid, " ");
    text += "\n";
    if (write(pids[1], text.data(), text.size()) < 0) _exit(1);
    for (;;) pause();
  }
  close(pids[1]);
  std::string text;
  for (char c = 0; read(pids[0], &c, 1) == 1 && c != '\n';) text += c;
  close(pids[0]);
  kill(owner, SIGKILL);
  waitpid(owner, nullptr, 0);
  const std::vector<std::string> words = absl::StrSplit(text, ' ', absl::SkipEmpty());
  ASSERT_EQ(words.size(), 3u);
  for (const std::string& word : words) EXPECT_TRUE(Ends(std::stoi(word))) << word;
}

}  // namespace
}  // namespace halfstep
