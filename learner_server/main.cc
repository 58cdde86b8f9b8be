// SPDX-License-Identifier: Apache-2.0
// halfstep-learner: runs training jobs, and serves the rollouts that generate for them.
#include <CLI/CLI.hpp>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "common/base/build_info.h"
#include "common/base/logging.h"
#include "common/base/shutdown_signal.h"
#include "common/rpc/flags.h"
#include "learner_server/learner_server.h"

namespace {

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "halfstep-learner: %s\n", std::string(status.message()).c_str());
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  halfstep::ShutdownSignal signal;
  halfstep::LearnerServerOptions options;
  options.server.listen = "127.0.0.1:5005";
  options.http = "127.0.0.1:5006";
  std::string log_level = "info";
  std::string recompute = "none";
  double no_rollout_seconds = absl::ToDoubleSeconds(options.no_rollout_timeout);
  double group_seconds = absl::ToDoubleSeconds(options.group_timeout);
  double stuck_seconds = absl::ToDoubleSeconds(options.stuck_timeout);
  double batch_seconds = absl::ToDoubleSeconds(options.batch_timeout);
  double drain_seconds = 60;

  CLI::App app("Runs Halfstep training jobs.");
  app.set_version_flag("--version", halfstep::BuildId());
  halfstep::AddServerFlags(app, options.server);
  app.add_option("--http", options.http, "Address of metrics and probes, host:port")
      ->capture_default_str();
  app.add_option("--root", options.root, "Folder that every path of a job is below, links followed")
      ->capture_default_str();
  app.add_option("--state", options.state,
                 "Folder of the job store (default: .halfstep in the root)");
  app.add_option("--threads", options.threads, "Threads of the trainer (default: one per core)")
      ->check(CLI::Range(1, 1024));
  app.add_option("--recompute", recompute,
                 "Activations to compute again in the backward pass, to save memory: none or layer")
      ->check(CLI::IsMember({"none", "layer"}))
      ->capture_default_str();
  app.add_option("--no-rollout-timeout", no_rollout_seconds,
                 "Seconds without any rollout after which a job pauses")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--group-timeout", group_seconds,
                 "Seconds that one rollout may take for a group before another gets it")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--stuck-timeout", stuck_seconds,
                 "Seconds that a rollout may hold groups without progress before others get them")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--batch-timeout", batch_seconds,
                 "Seconds that the groups of a batch or evaluation may take before a job pauses")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--port-file", options.port_file,
                 "Write the addresses that were chosen to this file, as JSON");
  app.add_option("--drain-seconds", drain_seconds,
                 "On SIGTERM, time for the running job to come to a stop")
      ->check(CLI::Range(0.0, 3600.0))
      ->capture_default_str();
  app.add_option("--log-level", log_level, "debug, info, warning or error")->capture_default_str();
  CLI11_PARSE(app, argc, argv);

  if (const absl::Status status = halfstep::InitLogging("halfstep-learner", log_level);
      !status.ok()) {
    return Fail(status);
  }
  options.recompute_activations = recompute == "layer";
  options.no_rollout_timeout = absl::Seconds(no_rollout_seconds);
  options.group_timeout = absl::Seconds(group_seconds);
  options.stuck_timeout = absl::Seconds(stuck_seconds);
  options.batch_timeout = absl::Seconds(batch_seconds);
  auto server = halfstep::LearnerServer::Start(std::move(options));
  if (!server.ok()) return Fail(server.status());
  signal.WaitUntil(absl::InfiniteFuture());
  const absl::Status stopped = (*server)->Stop(absl::Seconds(drain_seconds));
  if (!stopped.ok()) {
    // The trainer still works on objects that a destructor would take from under it.
    Fail(stopped);
    std::fflush(nullptr);
    std::_Exit(1);
  }
  return 0;
}
