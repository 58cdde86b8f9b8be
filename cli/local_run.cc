// SPDX-License-Identifier: Apache-2.0
#include "cli/local_run.h"

#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <system_error>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "cli/learner_client.h"
#include "cli/local_cluster.h"
#include "cli/progress_view.h"
#include "cli/watch_until_rest.h"
#include "common/base/error_reason.h"
#include "common/base/shutdown_signal.h"
#include "common/base/status_macros.h"

namespace halfstep {
namespace {

constexpr absl::Duration kCallTimeout = absl::Seconds(60);

// Progress is what is printed, unless a program reads: then it goes where errors go.
class Progress {
 public:
  explicit Progress(CommandContext& context)
      : view_(context.format == OutputFormat::kJson ? &context.err : &context.out,
              isatty(context.format == OutputFormat::kJson ? STDERR_FILENO : STDOUT_FILENO) == 1) {}

  void Line(const std::string& text) {
    absl::MutexLock lock(&mutex_);
    view_.Line(text);
  }
  void OnEvent(const v1::TrainingJobEvent& event) {
    absl::MutexLock lock(&mutex_);
    view_.OnEvent(event);
  }

 private:
  absl::Mutex mutex_;
  ProgressView view_ ABSL_GUARDED_BY(mutex_);
};

absl::StatusOr<LocalClusterOptions> ClusterOptions(const LocalRunOptions& options,
                                                   Progress& progress) {
  std::error_code problem;
  const std::filesystem::path self = std::filesystem::read_symlink("/proc/self/exe", problem);
  if (problem) return absl::NotFoundError("cannot tell where this program is: /proc is missing");
  const int cores = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  LocalClusterOptions cluster;
  cluster.learner_binary = self.parent_path() / "halfstep-learner";
  cluster.rollout_binary = self.parent_path() / "halfstep-rollout";
  cluster.root = options.root;
  cluster.run_directory = options.run_directory;
  cluster.rollouts = options.rollouts;
  // Rollouts generate while the learner waits and the other way round, so each side gets the
  // machine.
  cluster.learner_arguments = {"--threads", absl::StrCat(cores)};
  cluster.rollout_arguments = {"--threads",
                               absl::StrCat(std::max(1, cores / std::max(1, options.rollouts)))};
  cluster.on_notice = [&progress](const std::string& text) { progress.Line(text); };
  return cluster;
}

bool IsOver(v1::TrainingJob::State state) {
  return state == v1::TrainingJob::STATE_SUCCEEDED || state == v1::TrainingJob::STATE_FAILED ||
         state == v1::TrainingJob::STATE_CANCELLED;
}

// Submits, and takes up again a job of the same request that was paused.
absl::StatusOr<v1::TrainingJob> Submit(LearnerClient& client, const LocalRunOptions& options) {
  v1::CreateTrainingJobRequest request;
  *request.mutable_spec() = options.spec;
  for (int attempt = 0;; ++attempt) {
    request.set_request_id(absl::StrCat(options.request_id, "-", attempt));
    HALFSTEP_ASSIGN_OR_RETURN(const v1::TrainingJob job, client.Create(request));
    if (job.state() == v1::TrainingJob::STATE_PAUSED) return client.Resume(job.name());
    if (!IsOver(job.state())) return job;
  }
}

absl::Status Follow(LearnerClient& client, const std::string& name, const LocalCluster& cluster,
                    const CommandContext& context, Progress& progress) {
  WatchOptions options;
  options.on_event = [&](const v1::TrainingJobEvent& event) {
    progress.OnEvent(event);
    return true;
  };
  options.go_on = [&] { return !context.signal->requested() && cluster.Health().ok(); };
  const absl::Status watched = WatchUntilItRests(client, name, options);
  if (context.signal->requested()) return absl::CancelledError("interrupted");
  HALFSTEP_RETURN_IF_ERROR(cluster.Health());
  return watched;
}

}  // namespace

absl::StatusOr<LocalRun> RunHere(const LocalRunOptions& options, CommandContext& context) {
  Progress progress(context);
  LocalRun run;
  HALFSTEP_ASSIGN_OR_RETURN(LocalClusterOptions cluster_options, ClusterOptions(options, progress));
  const absl::Time began = absl::Now();
  HALFSTEP_ASSIGN_OR_RETURN(const auto cluster, LocalCluster::Start(std::move(cluster_options)));
  run.ready_seconds = absl::ToDoubleSeconds(absl::Now() - began);
  for (const ClusterProcess& process : cluster->processes()) {
    progress.Line(
        absl::StrCat(process.name, ": process ", process.pid, ", log ", process.log_file));
  }
  progress.Line(absl::StrCat("learner: jobs at ", cluster->learner_address(),
                             ", metrics at http://", cluster->learner_http_address(), "/metrics"));

  ChannelOptions channel;
  channel.target = cluster->learner_address();
  HALFSTEP_ASSIGN_OR_RETURN(const auto client, LearnerClient::Make(channel, kCallTimeout));
  HALFSTEP_ASSIGN_OR_RETURN(run.job, Submit(*client, options));
  progress.Line(absl::StrCat("job: ", JobIdOf(run.job.name())));
  HALFSTEP_RETURN_IF_ERROR(Follow(*client, run.job.name(), *cluster, context, progress));
  HALFSTEP_ASSIGN_OR_RETURN(run.job, client->Get(run.job.name()));
  run.peak_memory_bytes = cluster->PeakMemoryBytes() + PeakMemoryBytesOf(getpid());
  return run;
}

}  // namespace halfstep
