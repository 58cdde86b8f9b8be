// SPDX-License-Identifier: Apache-2.0
// A learner and its rollouts as processes of this machine: started in order, restarted when they
// die, stopped in order.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "cli/child_process.h"
#include "common/rpc/port_file.h"

namespace halfstep {

struct LocalClusterOptions {
  std::string learner_binary;
  std::string rollout_binary;
  std::string root;           // of the learner
  std::string run_directory;  // for port files and logs; made if it is not there
  int rollouts = 2;
  std::vector<std::string> learner_arguments;  // beside those that the cluster sets
  std::vector<std::string> rollout_arguments;
  absl::Duration ready_timeout = absl::Seconds(30);
  // Of one process, before the cluster gives up.
  int max_restarts = 5;
  // The first wait before a restart; doubled each time.
  absl::Duration restart_delay = absl::Milliseconds(200);
  // On Stop, before what is left is killed; the learner is told to drain within three quarters of
  // it.
  absl::Duration stop_grace = absl::Seconds(20);
  // Told what a person should know: a process that died and was restarted. On the cluster's thread.
  std::function<void(const std::string&)> on_notice = [](const std::string&) {};
};

// One process as people see it.
struct ClusterProcess {
  std::string name;  // "learner", "rollout-0"
  pid_t pid = -1;    // -1: not running at the moment
  std::string log_file;
  int restarts = 0;
};

// Thread-safe.
class LocalCluster {
 public:
  // Returns once the learner and every rollout listen. Errors name the process, say how it ended
  // and show the end of its log.
  static absl::StatusOr<std::unique_ptr<LocalCluster>> Start(LocalClusterOptions options);
  // Stops.
  ~LocalCluster();

  // What clients dial. Stays the same when the learner is restarted.
  const std::string& learner_address() const { return learner_address_; }
  const std::string& learner_http_address() const { return learner_http_address_; }

  std::vector<ClusterProcess> processes() const;
  // Not OK once a process has died too often; the cluster then restarts nothing any more.
  absl::Status Health() const;
  // Sum of the largest resident memory of each process there is.
  int64_t PeakMemoryBytes() const;

  // The learner first, then the rollouts: SIGTERM, and SIGKILL for what is left after the grace.
  void Stop();

 private:
  struct Member {
    std::string name;
    std::vector<std::string> arguments;
    std::string log_file;
    std::string port_file;
    std::unique_ptr<ChildProcess> process;  // null while it waits for its restart
    int restarts = 0;
    absl::Time restart_at;
    int64_t peak_memory = 0;  // of processes before the present one
  };

  explicit LocalCluster(LocalClusterOptions options);
  // Everything that starts or ends a process happens on one thread, because a child dies with the
  // thread that started it.
  void Supervise();
  absl::Status StartAll();
  absl::Status StartMember(Member& member);
  // The addresses that `member` wrote to its port file.
  absl::StatusOr<ServerPorts> WaitForPorts(Member& member);
  absl::Status Died(const Member& member, const std::string& how) const;
  void Tend(Member& member) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void StopAll();
  void StopMembers(size_t begin, size_t end, absl::Time deadline);
  bool stopping() const;

  const LocalClusterOptions options_;
  std::string learner_address_;
  std::string learner_http_address_;
  absl::Notification started_;
  absl::Status start_status_;
  int wake_fd_ = -1;  // eventfd: wakes the supervisor

  mutable absl::Mutex mutex_;
  std::vector<Member>
      members_;  // the learner is the first; changed by the supervisor under the mutex
  absl::Status health_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread supervisor_;
};

}  // namespace halfstep
