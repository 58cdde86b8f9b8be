// SPDX-License-Identifier: Apache-2.0
#include "cli/local_cluster.h"

#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/base/error_reason.h"
#include "common/base/file.h"
#include "common/base/status_macros.h"

namespace halfstep {
namespace {

// How often files and deadlines are looked at; the end of a process is seen at once.
constexpr int kPollMs = 20;
constexpr size_t kMaxLogBytes = 256 << 20;
constexpr size_t kLogTailBytes = 2000;
constexpr double kDrainShare = 0.75;

std::string LogTail(const std::string& path) {
  const auto log = ReadFile(path, kMaxLogBytes);
  if (!log.ok() || log->empty()) return "(its log is empty)";
  return log->size() <= kLogTailBytes ? *log : "..." + log->substr(log->size() - kLogTailBytes);
}

// Sleeps until one of `fds` is readable or kPollMs have passed.
void WaitForAny(const std::vector<int>& fds) {
  std::vector<pollfd> waiting;
  for (const int fd : fds) waiting.push_back({fd, POLLIN, 0});
  poll(waiting.data(), waiting.size(), kPollMs);
}

}  // namespace

LocalCluster::LocalCluster(LocalClusterOptions options) : options_(std::move(options)) {}

absl::StatusOr<std::unique_ptr<LocalCluster>> LocalCluster::Start(LocalClusterOptions options) {
  std::unique_ptr<LocalCluster> cluster(new LocalCluster(std::move(options)));
  const std::string logs = cluster->options_.run_directory + "/logs";
  std::error_code problem;
  std::filesystem::create_directories(logs, problem);
  if (problem) return FileError(problem.value(), "create", logs);
  cluster->wake_fd_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  cluster->supervisor_ = std::thread(&LocalCluster::Supervise, cluster.get());
  cluster->started_.WaitForNotification();
  if (!cluster->start_status_.ok()) return cluster->start_status_;
  return cluster;
}

LocalCluster::~LocalCluster() {
  Stop();
  if (wake_fd_ >= 0) close(wake_fd_);
}

void LocalCluster::Stop() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  if (!supervisor_.joinable()) return;
  eventfd_write(wake_fd_, 1);
  supervisor_.join();
}

bool LocalCluster::stopping() const {
  absl::MutexLock lock(&mutex_);
  return stopping_;
}

void LocalCluster::Supervise() {
  start_status_ = StartAll();
  const bool started = start_status_.ok();
  started_.Notify();
  while (started && !stopping()) {
    std::vector<int> fds = {wake_fd_};
    for (const Member& member : members_) {
      if (member.process != nullptr) fds.push_back(member.process->pidfd());
    }
    WaitForAny(fds);
    absl::MutexLock lock(&mutex_);
    for (Member& member : members_) Tend(member);
  }
  StopAll();
}

absl::Status LocalCluster::StartAll() {
  const auto add = [this](const std::string& name, std::vector<std::string> arguments) {
    Member member;
    member.name = name;
    member.log_file = absl::StrCat(options_.run_directory, "/logs/", name, ".log");
    member.port_file = absl::StrCat(options_.run_directory, "/logs/", name, ".ports");
    member.arguments = std::move(arguments);
    member.arguments.insert(member.arguments.end(), {"--port-file", member.port_file});
    absl::MutexLock lock(&mutex_);
    members_.push_back(std::move(member));
  };
  // Most of the grace is the learner's, to bring its job to a stop; the rest is for its calls to
  // end and for the rollouts.
  std::vector<std::string> learner = {
      options_.learner_binary, "--root", options_.root, "--drain-seconds",
      absl::StrCat(absl::ToDoubleSeconds(options_.stop_grace * kDrainShare))};
  learner.insert(learner.end(), options_.learner_arguments.begin(),
                 options_.learner_arguments.end());
  add("learner", learner);
  members_[0].arguments.insert(members_[0].arguments.end(),
                               {"--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"});
  HALFSTEP_RETURN_IF_ERROR(StartMember(members_[0]));
  HALFSTEP_ASSIGN_OR_RETURN(const ServerPorts ports, WaitForPorts(members_[0]));
  learner_address_ = ports.grpc;
  learner_http_address_ = ports.http;
  // A restarted learner must be found where it was.
  std::replace(members_[0].arguments.begin(), members_[0].arguments.end(),
               std::string("127.0.0.1:0"), learner_address_);
  members_[0].arguments.back() = learner_http_address_;

  for (int i = 0; i < options_.rollouts; ++i) {
    const std::string name = absl::StrCat("rollout-", i);
    std::vector<std::string> rollout = {
        options_.rollout_binary, "--learner", learner_address_, "--id", name, "--listen",
        "127.0.0.1:0",           "--http",    "127.0.0.1:0"};
    rollout.insert(rollout.end(), options_.rollout_arguments.begin(),
                   options_.rollout_arguments.end());
    add(name, rollout);
  }
  for (size_t i = 1; i < members_.size(); ++i) HALFSTEP_RETURN_IF_ERROR(StartMember(members_[i]));
  for (size_t i = 1; i < members_.size(); ++i) {
    HALFSTEP_RETURN_IF_ERROR(WaitForPorts(members_[i]).status());
  }
  return absl::OkStatus();
}

absl::Status LocalCluster::StartMember(Member& member) {
  HALFSTEP_ASSIGN_OR_RETURN(ChildProcess process,
                            ChildProcess::Start(member.arguments, member.log_file));
  absl::MutexLock lock(&mutex_);
  member.process = std::make_unique<ChildProcess>(std::move(process));
  return absl::OkStatus();
}

absl::StatusOr<ServerPorts> LocalCluster::WaitForPorts(Member& member) {
  const absl::Time deadline = absl::Now() + options_.ready_timeout;
  for (;;) {
    // One of an earlier server may be there, or of a server that another cluster runs in the same
    // folder: that cluster waits for it, so it must not be removed.
    auto ports = ReadPortFile(member.port_file);
    if (ports.ok() && ports->pid == member.process->pid()) return ports;
    if (member.process->Ended()) return Died(member, member.process->how());
    if (stopping()) return absl::CancelledError("stopped while starting");
    if (absl::Now() >= deadline) {
      return Error(absl::StatusCode::kDeadlineExceeded, "PROCESS_NOT_READY",
                   absl::StrCat(member.name, " was not ready within ",
                                absl::FormatDuration(options_.ready_timeout), "; its log ",
                                member.log_file, " ends with:\n", LogTail(member.log_file)));
    }
    WaitForAny({wake_fd_, member.process->pidfd()});
  }
}

absl::Status LocalCluster::Died(const Member& member, const std::string& how) const {
  return Error(absl::StatusCode::kUnavailable, "PROCESS_DIED",
               absl::StrCat(member.name, " ended with ", how, "; its log ", member.log_file,
                            " ends with:\n", LogTail(member.log_file)));
}

void LocalCluster::Tend(Member& member) {
  if (!health_.ok()) return;
  if (member.process != nullptr) {
    member.peak_memory = std::max(member.peak_memory, member.process->PeakMemoryBytes());
    if (!member.process->Ended()) return;
    const std::string how = member.process->how();
    member.process.reset();
    if (member.restarts >= options_.max_restarts) {
      health_ = WithContext(Died(member, how),
                            absl::StrCat("given up after ", member.restarts, " restarts"));
      return;
    }
    member.restart_at = absl::Now() + options_.restart_delay * (1 << std::min(member.restarts, 10));
    ++member.restarts;
    options_.on_notice(absl::StrCat(member.name, " ended with ", how, "; restarting it"));
  }
  if (absl::Now() < member.restart_at) return;
  auto process = ChildProcess::Start(member.arguments, member.log_file);
  if (!process.ok()) {
    health_ = process.status();
    return;
  }
  member.process = std::make_unique<ChildProcess>(*std::move(process));
  options_.on_notice(
      absl::StrCat(member.name, " is running again with process id ", member.process->pid()));
}

void LocalCluster::StopAll() {
  // The learner first: it takes its work back, so that rollouts have nothing to finish.
  const absl::Time deadline = absl::Now() + options_.stop_grace;
  StopMembers(0, std::min<size_t>(1, members_.size()), deadline);
  StopMembers(1, members_.size(), deadline);
}

void LocalCluster::StopMembers(size_t begin, size_t end, absl::Time deadline) {
  for (size_t i = begin; i < end; ++i) {
    if (members_[i].process != nullptr) members_[i].process->Signal(SIGTERM);
  }
  for (size_t i = begin; i < end; ++i) {
    Member& member = members_[i];
    if (member.process == nullptr) continue;
    member.process->WaitUntil(deadline);
    absl::MutexLock lock(&mutex_);
    member.process.reset();
  }
}

std::vector<ClusterProcess> LocalCluster::processes() const {
  absl::MutexLock lock(&mutex_);
  std::vector<ClusterProcess> result;
  for (const Member& member : members_) {
    result.push_back({member.name, member.process == nullptr ? -1 : member.process->pid(),
                      member.log_file, member.restarts});
  }
  return result;
}

absl::Status LocalCluster::Health() const {
  absl::MutexLock lock(&mutex_);
  return health_;
}

int64_t LocalCluster::PeakMemoryBytes() const {
  absl::MutexLock lock(&mutex_);
  int64_t bytes = 0;
  for (const Member& member : members_) {
    bytes += std::max(member.peak_memory,
                      member.process == nullptr ? 0 : member.process->PeakMemoryBytes());
  }
  return bytes;
}

}  // namespace halfstep
