// SPDX-License-Identifier: Apache-2.0
#include "learner_server/learner_server.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <system_error>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/build_info.h"
#include "common/base/clock.h"
#include "common/base/error_reason.h"
#include "common/base/logging.h"
#include "common/base/random_id.h"
#include "common/base/status_macros.h"
#include "common/config/load_spec.h"
#include "common/config/resolve_spec.h"
#include "common/metrics/http_server.h"
#include "common/metrics/learner_metrics.h"
#include "common/model/fingerprint.h"
#include "common/rpc/endpoint.h"
#include "common/rpc/port_file.h"
#include "halfstep/v1/training_job.pb.h"
#include "kernels/exec_context.h"
#include "kernels/workspace.h"
#include "learner_server/job/job_manager.h"
#include "learner_server/job/job_store.h"
#include "learner_server/job_service.h"
#include "learner_server/rollout_coordination/rollout_coordination_service.h"
#include "learner_server/rollout_coordination/rollout_coordinator.h"
#include "learner_server/rollout_coordination/weight_service.h"
#include "learner_server/training/training_job_runner.h"

namespace halfstep {
namespace {

// For calls in progress, once watchers and rollouts have been told.
constexpr absl::Duration kCallGrace = absl::Seconds(2);

std::string Fingerprint() {
  Workspace workspace;
  ExecContext ctx;
  ctx.workspace = &workspace;
  return NumericsFingerprint(ctx);
}

absl::StatusOr<std::string> RealFolder(const std::string& path) {
  std::error_code problem;
  const std::filesystem::path real = std::filesystem::canonical(path, problem);
  if (!problem && std::filesystem::is_directory(real, problem)) return real.string();
  return WithReason(
      absl::NotFoundError(absl::StrCat("--root ", path, " is not a folder; create it first")),
      {"BAD_ROOT", {{"root", path}}});
}

absl::StatusOr<v1::TrainingJobSpec> Resolve(const std::string& job_id, v1::TrainingJobSpec spec) {
  ResolveSpec(job_id, &spec);
  HALFSTEP_RETURN_IF_ERROR(CheckSpec(spec));
  return spec;
}

}  // namespace

// In the order of construction; destroyed from the end.
struct LearnerServer::Impl {
  LearnerServerOptions options;
  std::string incarnation = RandomUuid();
  Registry registry;
  LearnerMetrics metrics{registry};
  std::unique_ptr<JobStore> store;
  std::unique_ptr<RolloutCoordinator> coordinator;
  std::unique_ptr<TrainingJobRunner> runner;
  std::unique_ptr<JobManager> manager;
  std::unique_ptr<RolloutCoordinationService> rollout_service;
  std::unique_ptr<WeightService> weight_service;
  std::unique_ptr<JobService> job_service;
  std::unique_ptr<RpcServer> rpc;
  std::unique_ptr<HttpServer> http;
  std::string http_address;
  std::atomic<bool> serving{false};
  std::atomic<bool> stopped{false};

  absl::Status OpenStore();
  void MakeParts();
  absl::Status Listen();
  absl::Status WritePortFile() const;
};

absl::Status LearnerServer::Impl::OpenStore() {
  HALFSTEP_ASSIGN_OR_RETURN(options.root, RealFolder(options.root));
  if (options.state.empty()) options.state = options.root + "/.halfstep";
  HALFSTEP_ASSIGN_OR_RETURN(store, JobStore::Open(options.state));
  return absl::OkStatus();
}

void LearnerServer::Impl::MakeParts() {
  CoordinatorOptions coordinator_options;
  coordinator_options.incarnation = incarnation;
  coordinator_options.numerics_fingerprint = Fingerprint();
  coordinator_options.stuck_after = options.stuck_timeout;
  coordinator = std::make_unique<RolloutCoordinator>(std::move(coordinator_options), &Clock::Real(),
                                                     &metrics);

  TrainingJobRunnerOptions runner_options;
  runner_options.root = options.root;
  runner_options.state = options.state;
  runner_options.incarnation = incarnation;
  runner_options.threads =
      options.threads > 0 ? options.threads
                          : static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  runner_options.recompute = options.recompute_activations ? Recompute::kLayer : Recompute::kNone;
  runner_options.rollouts.no_rollout_timeout = options.no_rollout_timeout;
  runner_options.rollouts.group_timeout = options.group_timeout;
  runner_options.rollouts.batch_timeout = options.batch_timeout;
  runner =
      std::make_unique<TrainingJobRunner>(std::move(runner_options), coordinator.get(), &metrics);

  JobManagerOptions manager_options;
  manager_options.store = store.get();
  manager_options.runner = runner.get();
  manager_options.resolve = Resolve;
  manager_options.metrics = &metrics;
  manager = std::make_unique<JobManager>(std::move(manager_options));

  rollout_service = std::make_unique<RolloutCoordinationService>(coordinator.get());
  weight_service = std::make_unique<WeightService>(coordinator.get());
  job_service = std::make_unique<JobService>(manager.get());
}

absl::Status LearnerServer::Impl::Listen() {
  HALFSTEP_RETURN_IF_ERROR(CheckPlainAddress(options.http, options.server.insecure));
  options.server.metrics = &registry;
  HALFSTEP_ASSIGN_OR_RETURN(
      rpc, RpcServer::Start(
               options.server,
               {job_service->hosted(),
                {rollout_service.get(), v1::RolloutCoordinationService::service_full_name()},
                {weight_service.get(), v1::WeightService::service_full_name()}}));
  HttpServerOptions http_options;
  http_options.address = options.http;
  http_options.metrics = [this] { return registry.Scrape(); };
  // A restart mends no full disk, and would cost the running job its step.
  http_options.live = [this] { return manager->Alive(); };
  http_options.ready = [this] {
    return serving ? manager->Health() : absl::UnavailableError("the learner is not serving");
  };
  HALFSTEP_ASSIGN_OR_RETURN(http, HttpServer::Start(std::move(http_options)));
  HALFSTEP_ASSIGN_OR_RETURN(Endpoint endpoint, ParseEndpoint(options.http));
  endpoint.port = http->port();
  http_address = endpoint.ToString();
  return absl::OkStatus();
}

absl::Status LearnerServer::Impl::WritePortFile() const {
  if (options.port_file.empty()) return absl::OkStatus();
  return halfstep::WritePortFile(options.port_file, {rpc->address(), http_address, getpid()});
}

LearnerServer::LearnerServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

absl::StatusOr<std::unique_ptr<LearnerServer>> LearnerServer::Start(LearnerServerOptions options) {
  std::unique_ptr<LearnerServer> server(new LearnerServer(std::make_unique<Impl>()));
  Impl& impl = *server->impl_;
  impl.options = std::move(options);
  HALFSTEP_RETURN_IF_ERROR(impl.OpenStore());
  impl.MakeParts();
  // Whoever calls must find the jobs as they are.
  HALFSTEP_RETURN_IF_ERROR(impl.manager->Recover());
  HALFSTEP_RETURN_IF_ERROR(impl.Listen());
  impl.manager->Start();
  impl.serving = true;
  impl.rpc->SetServing(true);
  HALFSTEP_RETURN_IF_ERROR(impl.WritePortFile());
  LogInfo("learner is ready", {{"grpc", impl.rpc->address()},
                               {"http", impl.http_address},
                               {"root", impl.options.root},
                               {"state", impl.options.state},
                               {"build", BuildId()}});
  return server;
}

LearnerServer::~LearnerServer() { Stop(absl::InfiniteDuration()).IgnoreError(); }

const std::string& LearnerServer::grpc_address() const { return impl_->rpc->address(); }

const std::string& LearnerServer::http_address() const { return impl_->http_address; }

absl::Status LearnerServer::Stop(absl::Duration grace) {
  if (impl_->stopped.exchange(true)) return absl::OkStatus();
  impl_->serving = false;
  if (impl_->rpc != nullptr) impl_->rpc->SetServing(false);
  if (impl_->job_service != nullptr) impl_->job_service->EndWatches();
  if (impl_->manager != nullptr) HALFSTEP_RETURN_IF_ERROR(impl_->manager->Stop(grace));
  if (impl_->coordinator != nullptr) impl_->coordinator->Drain();
  if (impl_->rpc != nullptr) impl_->rpc->Stop(kCallGrace);
  return absl::OkStatus();
}

}  // namespace halfstep
