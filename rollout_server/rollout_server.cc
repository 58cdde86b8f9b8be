// SPDX-License-Identifier: Apache-2.0
#include "rollout_server/rollout_server.h"

#include <grpcpp/impl/service_type.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/base/build_info.h"
#include "common/base/logging.h"
#include "common/base/memory.h"
#include "common/base/random_id.h"
#include "common/base/status_macros.h"
#include "common/metrics/http_server.h"
#include "common/model/fingerprint.h"
#include "common/rpc/endpoint.h"
#include "common/rpc/port_file.h"
#include "kernels/thread_pool.h"
#include "kernels/workspace.h"
#include "rollout_server/generation_service.h"
#include "rollout_server/job_session.h"
#include "rollout_server/learner_link.h"
#include "rollout_server/metrics_exporter.h"
#include "rollout_server/rollout_agent.h"

namespace halfstep {
namespace {

// An engine that has work and makes no step for so long is stuck.
constexpr absl::Duration kStuck = absl::Seconds(120);
// After the groups are done: for calls of people, and for the learner to end the stream.
constexpr absl::Duration kGrace = absl::Seconds(2);

// From host and port when the port is fixed, and so stable across restarts; else unique.
std::string DefaultId(const Endpoint& listen, const std::string& incarnation) {
  char host[256] = "rollout";
  gethostname(host, sizeof(host) - 1);
  if (listen.port != 0) return absl::StrCat(host, ":", listen.port);
  return absl::StrCat(host, "-", incarnation.substr(0, 8));
}

std::string Fingerprint() {
  Workspace workspace;
  ExecContext ctx;
  ctx.workspace = &workspace;
  return NumericsFingerprint(ctx);
}

absl::Status Alive(const JobSession& session) {
  const LoadedJob job = session.loaded();
  if (job.engine == nullptr) return absl::OkStatus();
  const EngineStats stats = job.engine->stats();
  const absl::Duration still = absl::Now() - stats.last_progress;
  if (stats.sequences_running == 0 || still < kStuck) return absl::OkStatus();
  return absl::InternalError(absl::StrCat(stats.sequences_running,
                                          " sequences are running and no step was made for ",
                                          absl::FormatDuration(still)));
}

}  // namespace

// In the order of construction; destroyed from the end.
struct RolloutServer::Impl {
  RolloutServerOptions options;
  std::string incarnation;
  Registry registry;
  MetricsExporter exporter{&registry};
  std::shared_ptr<grpc::Channel> channel;
  std::unique_ptr<RolloutAgent> agent;
  std::unique_ptr<JobSession> session;
  std::unique_ptr<grpc::Service> generation;
  std::unique_ptr<RpcServer> rpc;
  std::unique_ptr<HttpServer> http;
  std::string http_address;
  std::unique_ptr<LearnerLink> link;
  std::atomic<bool> stopped{false};

  void MakeSession();
  absl::Status Listen();
  absl::Status WritePortFile() const;
  void Attach();
};

void RolloutServer::Impl::MakeSession() {
  AgentOptions agent_options;
  agent_options.incarnation = incarnation;
  agent_options.numerics_fingerprint = Fingerprint();
  agent_options.kv_cache_bytes =
      options.kv_cache_bytes > 0 ? options.kv_cache_bytes : FreeMemoryBytes() / 2;
  agent_options.rollout_id = options.id;
  agent_options.on_attached = [this](bool attached) { rpc->SetServing(attached); };
  agent = std::make_unique<RolloutAgent>(std::move(agent_options));

  JobSessionOptions session_options;
  session_options.threads =
      options.threads > 0 ? options.threads
                          : static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  session_options.kv_cache_bytes = options.kv_cache_bytes;
  session_options.on_step = [this](const StepReport& report, const EngineStats& stats) {
    exporter.OnStep(report, stats);
  };
  session_options.on_engine_stopped = [this] { exporter.OnEngineStopped(); };
  session_options.on_weights_prepared = [this](absl::Duration took) {
    exporter.OnWeightsPrepared(took);
  };
  session =
      std::make_unique<JobSession>(std::move(session_options), channel, agent->SessionEvents());
}

absl::Status RolloutServer::Impl::Listen() {
  HALFSTEP_RETURN_IF_ERROR(CheckPlainAddress(options.http, options.server.insecure));
  generation = MakeGenerationService(options.id, session.get());
  options.server.metrics = &registry;
  HALFSTEP_ASSIGN_OR_RETURN(
      rpc, RpcServer::Start(options.server, {{generation.get(), "halfstep.v1.GenerationService"}}));
  HttpServerOptions http_options;
  http_options.address = options.http;
  http_options.metrics = [this] { return registry.Scrape(); };
  http_options.live = [this] { return Alive(*session); };
  http_options.ready = [this] { return agent->attached(); };
  HALFSTEP_ASSIGN_OR_RETURN(http, HttpServer::Start(std::move(http_options)));
  HALFSTEP_ASSIGN_OR_RETURN(Endpoint endpoint, ParseEndpoint(options.http));
  endpoint.port = http->port();
  http_address = endpoint.ToString();
  return absl::OkStatus();
}

absl::Status RolloutServer::Impl::WritePortFile() const {
  if (options.port_file.empty()) return absl::OkStatus();
  return halfstep::WritePortFile(options.port_file, {rpc->address(), http_address, getpid()});
}

void RolloutServer::Impl::Attach() {
  LinkOptions link_options;
  link_options.learner = options.learner.target;
  link = std::make_unique<LearnerLink>(std::move(link_options), channel, agent.get());
  agent->Connect(session.get(), link.get(), rpc->address());
  link->Start();
}

RolloutServer::RolloutServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

RolloutServer::~RolloutServer() { Stop(absl::InfinitePast()); }

absl::StatusOr<std::unique_ptr<RolloutServer>> RolloutServer::Start(RolloutServerOptions options) {
  auto impl = std::make_unique<Impl>();
  impl->options = std::move(options);
  impl->incarnation = RandomUuid();
  if (impl->options.id.empty()) {
    HALFSTEP_ASSIGN_OR_RETURN(const Endpoint listen, ParseEndpoint(impl->options.server.listen));
    impl->options.id = DefaultId(listen, impl->incarnation);
  }
  HALFSTEP_ASSIGN_OR_RETURN(impl->channel, MakeChannel(impl->options.learner));
  impl->MakeSession();
  HALFSTEP_RETURN_IF_ERROR(impl->Listen());
  HALFSTEP_RETURN_IF_ERROR(impl->WritePortFile());
  impl->Attach();
  std::unique_ptr<RolloutServer> server(new RolloutServer(std::move(impl)));
  LogInfo("rollout server started", {{"id", server->id()},
                                     {"grpc", server->grpc_address()},
                                     {"http", server->http_address()},
                                     {"learner", server->impl_->options.learner.target},
                                     {"build", BuildId()}});
  return server;
}

const std::string& RolloutServer::id() const { return impl_->options.id; }
const std::string& RolloutServer::grpc_address() const { return impl_->rpc->address(); }
const std::string& RolloutServer::http_address() const { return impl_->http_address; }
absl::Status RolloutServer::ready() const { return impl_->agent->attached(); }

void RolloutServer::Stop(absl::Time drain_deadline) {
  if (impl_->stopped.exchange(true)) return;
  impl_->rpc->SetServing(false);
  const bool drained = impl_->agent->Leave(drain_deadline);
  if (!drained) LogWarning("stopping before everything held was finished");
  impl_->link->Stop(std::min(drain_deadline, absl::Now() + kGrace));
  impl_->rpc->Stop(drain_deadline > absl::Now() ? kGrace : absl::ZeroDuration());
  impl_->session->Stop();
  impl_->http = nullptr;
  LogInfo("rollout server stopped", {{"id", id()}});
}

}  // namespace halfstep
