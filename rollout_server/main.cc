// SPDX-License-Identifier: Apache-2.0
// halfstep-rollout: generates for a learner.
#include <CLI/CLI.hpp>

#include <cstdio>
#include <string>

#include "absl/time/clock.h"
#include "common/base/build_info.h"
#include "common/base/logging.h"
#include "common/base/shutdown_signal.h"
#include "common/rpc/flags.h"
#include "rollout_server/rollout_server.h"

namespace {

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "halfstep-rollout: %s\n", std::string(status.message()).c_str());
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  halfstep::ShutdownSignal signal;
  halfstep::RolloutServerOptions options;
  std::string log_level = "info";
  double drain_seconds = 20;

  CLI::App app("Generates for a Halfstep learner; needs nothing but its address.");
  app.set_version_flag("--version", halfstep::BuildId());
  app.add_option("--learner", options.learner.target, "Address of the learner, host:port")
      ->required();
  app.add_option(
      "--id", options.id,
      "Name of this server for the learner (default: host name, and the port if it is fixed)");
  halfstep::AddServerFlags(app, options.server);
  halfstep::AddChannelFlags(app, options.learner);
  app.add_option("--http", options.http, "Address of metrics and probes, host:port")
      ->capture_default_str();
  app.add_option("--threads", options.threads, "Threads of the engine (default: one per core)")
      ->check(CLI::Range(1, 1024));
  app.add_option("--kv-cache-bytes", options.kv_cache_bytes,
                 "Most memory of the key-value cache (default: what the job needs, within half of "
                 "what is free)")
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/false));
  app.add_option("--port-file", options.port_file,
                 "Write the addresses that were chosen to this file, as JSON");
  app.add_option("--drain-seconds", drain_seconds,
                 "On SIGTERM, time to finish what the learner gave")
      ->check(CLI::Range(0.0, 3600.0))
      ->capture_default_str();
  app.add_option("--log-level", log_level, "debug, info, warning or error")->capture_default_str();
  CLI11_PARSE(app, argc, argv);

  if (const absl::Status status = halfstep::InitLogging("halfstep-rollout", log_level);
      !status.ok()) {
    return Fail(status);
  }
  auto server = halfstep::RolloutServer::Start(std::move(options));
  if (!server.ok()) return Fail(server.status());
  signal.WaitUntil(absl::InfiniteFuture());
  (*server)->Stop(absl::Now() + absl::Seconds(drain_seconds));
  return 0;
}
