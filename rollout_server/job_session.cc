// SPDX-License-Identifier: Apache-2.0
#include "rollout_server/job_session.h"

#include <new>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/base/error_reason.h"
#include "common/base/logging.h"
#include "common/base/status_macros.h"
#include "kernels/workspace.h"

namespace halfstep {
namespace {

// More can never be waiting by the protocol.
constexpr size_t kMaxOrders = 64;

// Samples that an engine accepts.
constexpr int64_t kMaxOutstanding = int64_t{1} << 20;

bool SameModel(const JobSpec& a, const JobSpec& b) {
  JobSpec other = b;
  other.epoch = a.epoch;
  return a == other;
}

absl::Status CheckSpec(const JobSpec& spec, const ModelConfig& config) {
  if (spec.max_sequence_tokens < 2 || spec.max_sequences < 1 ||
      spec.max_sequence_tokens > config.max_positions) {
    return Error(absl::StatusCode::kInvalidArgument, "BAD_JOB",
                 absl::StrCat("the job wants ", spec.max_sequences, " sequences of up to ",
                              spec.max_sequence_tokens, " tokens; the model has ",
                              config.max_positions, " positions"));
  }
  return absl::OkStatus();
}

absl::StatusOr<int64_t> RopePositions(const WeightManifest& manifest, const JobSpec& spec,
                                      const ModelConfig& config) {
  const bool named = !manifest.tensors.empty() && manifest.tensors.back().name == kRopeTableName &&
                     manifest.tensors.back().shape.size() == 3;
  const int64_t positions = named ? manifest.tensors.back().shape[0] : 0;
  if (positions < spec.max_sequence_tokens || positions > config.max_positions) {
    return Error(absl::StatusCode::kInvalidArgument, "WEIGHTS_LAYOUT_MISMATCH",
                 absl::StrCat("version ", manifest.version, " has ",
                              named ? absl::StrCat("a rope_table of ", positions, " positions")
                                    : std::string("no rope_table at its end"),
                              "; expected ", spec.max_sequence_tokens, " to ", config.max_positions,
                              " positions"));
  }
  return positions;
}

}  // namespace

JobSession::JobSession(JobSessionOptions options, std::shared_ptr<grpc::Channel> channel,
                       JobSessionEvents events)
    : options_(std::move(options)),
      events_(std::move(events)),
      client_(std::move(channel), options_.fetch) {
  absl::MutexLock lock(&join_mutex_);
  thread_ = std::thread([this] { Run(); });
}

JobSession::~JobSession() { Stop(); }

void JobSession::Load(uint64_t order, const JobSpec& spec) {
  {
    absl::MutexLock lock(&mutex_);
    epoch_ = spec.epoch;
    // Whatever is being fetched is for an order that this one overrides.
    client_.Cancel();
  }
  Order load;
  load.kind = Order::Kind::kLoad;
  load.number = order;
  load.epoch = spec.epoch;
  load.spec = spec;
  Enqueue(std::move(load));
}

void JobSession::Unload(uint64_t epoch) {
  absl::MutexLock lock(&mutex_);
  if (epoch != epoch_) return;
  epoch_ = 0;
  client_.Cancel();
}

void JobSession::Prepare(uint64_t order, uint64_t epoch, WeightManifest manifest) {
  {
    absl::MutexLock lock(&mutex_);
    if (epoch == epoch_) client_.Cancel();
  }
  Order prepare;
  prepare.kind = Order::Kind::kPrepare;
  prepare.number = order;
  prepare.epoch = epoch;
  prepare.weights = manifest.identity();
  prepare.manifest = std::move(manifest);
  Enqueue(std::move(prepare));
}

void JobSession::Commit(uint64_t order, uint64_t epoch, const WeightIdentity& weights) {
  Order commit;
  commit.kind = Order::Kind::kCommit;
  commit.number = order;
  commit.epoch = epoch;
  commit.weights = weights;
  Enqueue(std::move(commit));
}

void JobSession::Enqueue(Order order) {
  absl::MutexLock lock(&mutex_);
  if (stopping_) return;
  if (orders_.size() >= kMaxOrders) {
    LogError("too many orders of the learner are waiting; the oldest is dropped",
             {{"epoch", orders_.front().epoch}});
    orders_.pop_front();
  }
  orders_.push_back(std::move(order));
}

LoadedJob JobSession::loaded() const {
  absl::MutexLock lock(&mutex_);
  return loaded_;
}

void JobSession::Stop() {
  std::shared_ptr<Engine> engine;
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
    client_.Cancel();
    engine = loaded_.engine;
  }
  {
    absl::MutexLock lock(&join_mutex_);
    if (thread_.joinable()) thread_.join();
  }
  StopEngine(engine.get());
}

void JobSession::StopEngine(Engine* engine) {
  if (engine == nullptr) return;
  engine->Stop();
  if (options_.on_engine_stopped) options_.on_engine_stopped();
}

void JobSession::Run() {
  while (true) {
    Order order;
    {
      absl::MutexLock lock(&mutex_);
      auto ready = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
        return stopping_ || !orders_.empty();
      };
      mutex_.Await(absl::Condition(&ready));
      if (stopping_) return;
      order = std::move(orders_.front());
      orders_.pop_front();
    }
    if (!Begin(order)) continue;
    absl::Status status;
    switch (order.kind) {
      case Order::Kind::kLoad:
        status = LoadJob(order.spec);
        if (status.ok()) events_.job_loaded(order.number, order.epoch);
        break;
      case Order::Kind::kPrepare:
        status = PrepareWeights(order.epoch, order.manifest);
        if (status.ok()) {
          events_.weights_ready(order.number, order.epoch, order.weights);
        }
        break;
      case Order::Kind::kCommit:
        status = CommitWeights(order);
        break;
    }
    // What was overridden is nobody's failure.
    if (!status.ok() && !absl::IsCancelled(status)) {
      LogWarning("an order of the learner failed",
                 {{"epoch", order.epoch},
                  {"code", absl::StatusCodeToString(status.code())},
                  {"reason", ReasonOf(status)},
                  {"message", std::string(status.message())}});
      const bool of_weights = order.kind != Order::Kind::kLoad;
      events_.failed(order.number, order.epoch,
                     of_weights ? std::optional(order.weights) : std::nullopt, status);
    }
  }
}

bool JobSession::Begin(const Order& order) {
  absl::MutexLock lock(&mutex_);
  if (stopping_ || order.epoch != epoch_) return false;
  client_.Allow();
  return true;
}

absl::Status JobSession::LoadJob(const JobSpec& spec) {
  std::shared_ptr<Engine> old;
  {
    absl::MutexLock lock(&mutex_);
    if (loaded_.engine != nullptr && spec_ && SameModel(*spec_, spec)) {
      loaded_.epoch = spec.epoch;
      spec_ = spec;
      return absl::OkStatus();
    }
    old = std::move(loaded_.engine);
    loaded_ = LoadedJob();
    serving_weights_ = spare_weights_ = nullptr;
  }
  // The memory of the last model comes back before the next one takes its own.
  StopEngine(old.get());
  old = nullptr;
  spec_ = std::nullopt;
  staging_ = nullptr;
  staged_weights_ = nullptr;
  staged_ = std::nullopt;

  HALFSTEP_ASSIGN_OR_RETURN(const std::vector<BundleFile> files,
                            client_.FetchModel(spec.epoch, spec.model_digest));
  HALFSTEP_ASSIGN_OR_RETURN(const auto bundle, ParseModelBundle(files));
  HALFSTEP_RETURN_IF_ERROR(CheckSpec(spec, bundle->config));
  HALFSTEP_ASSIGN_OR_RETURN(std::shared_ptr<Engine> engine, MakeEngine(spec, *bundle));
  LogInfo("model loaded", {{"epoch", spec.epoch},
                           {"digest", bundle->digest},
                           {"precision", Name(spec.precision)},
                           {"parameters", bundle->layout->parameter_count()},
                           {"kv_blocks", engine->stats().kv_blocks_total}});
  spec_ = spec;
  absl::MutexLock lock(&mutex_);
  loaded_.epoch = spec.epoch;
  loaded_.engine = std::move(engine);
  loaded_.bundle = bundle;
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<Engine>> JobSession::MakeEngine(const JobSpec& spec,
                                                               const ModelBundle& bundle) {
  EngineOptions options;
  options.config = bundle.config;
  options.dtype = spec.precision;
  options.fp32 = spec.fp32;
  options.profile = spec.profile;
  options.max_sequence_tokens = spec.max_sequence_tokens;
  options.max_sequences = spec.max_sequences;
  // Credit bounds the learner's groups, and calls bound what people ask for.
  options.max_outstanding = kMaxOutstanding;
  options.kv_cache_bytes = options_.kv_cache_bytes;
  options.threads = options_.threads;
  options.token_bytes = [tokenizer = bundle.tokenizer](int32_t token) -> std::string_view {
    return tokenizer->BytesOf(token);
  };
  options.on_step = options_.on_step;
  HALFSTEP_ASSIGN_OR_RETURN(std::unique_ptr<Engine> engine, Engine::Create(std::move(options)));
  return std::shared_ptr<Engine>(std::move(engine));
}

absl::Status JobSession::PrepareWeights(uint64_t epoch, const WeightManifest& manifest) {
  const WeightIdentity identity = manifest.identity();
  const JobSpec* const spec = spec_ ? &*spec_ : nullptr;
  if (spec == nullptr) {
    return absl::FailedPreconditionError("weights cannot be prepared before their job is loaded");
  }
  if (staged_ == identity) return absl::OkStatus();
  {
    absl::MutexLock lock(&mutex_);
    if (loaded_.serving == identity) return absl::OkStatus();
  }
  const absl::Time start = absl::Now();
  std::shared_ptr<ModelWeights> weights;
  try {
    HALFSTEP_ASSIGN_OR_RETURN(weights, TakeSpareWeights(manifest));
    const int64_t positions = weights->rope_table().dim(0);
    if (staging_ == nullptr || staging_positions_ != positions) {
      staging_ = nullptr;
      staging_ = std::make_unique<StagingArea>(*weights);
      staging_positions_ = positions;
    }
  } catch (const std::bad_alloc&) {
    return Error(absl::StatusCode::kResourceExhausted, "OUT_OF_MEMORY",
                 absl::StrCat("no memory for ", manifest.total_bytes, " bytes of weights"));
  }
  if (const absl::Status fetched = Fetch(epoch, manifest); !fetched.ok()) {
    absl::MutexLock lock(&mutex_);
    spare_weights_ = std::move(weights);
    return fetched;
  }
  HALFSTEP_RETURN_IF_ERROR(staging_->CopyTo(weights.get()));
  Workspace workspace;
  ExecContext ctx;
  ctx.workspace = &workspace;
  weights->Pack(ctx);
  staged_weights_ = std::move(weights);
  staged_ = identity;
  const absl::Duration took = absl::Now() - start;
  if (options_.on_weights_prepared) options_.on_weights_prepared(took);
  LogDebug("weights staged", {{"version", identity.version},
                              {"digest", identity.manifest_digest},
                              {"seconds", absl::ToDoubleSeconds(took)}});
  absl::MutexLock lock(&mutex_);
  loaded_.staged = true;
  return absl::OkStatus();
}

absl::Status JobSession::Fetch(uint64_t epoch, const WeightManifest& manifest) {
  HALFSTEP_RETURN_IF_ERROR(staging_->Begin(manifest));
  return client_.FetchWeights(epoch, staging_.get());
}

absl::StatusOr<std::shared_ptr<ModelWeights>> JobSession::TakeSpareWeights(
    const WeightManifest& manifest) {
  std::shared_ptr<const ModelBundle> bundle;
  std::shared_ptr<ModelWeights> spare;
  {
    absl::MutexLock lock(&mutex_);
    bundle = loaded_.bundle;
    spare = std::exchange(spare_weights_, nullptr);
    loaded_.staged = false;
  }
  HALFSTEP_ASSIGN_OR_RETURN(const int64_t positions,
                            RopePositions(manifest, *spec_, bundle->config));
  // A set that was staged and never committed is overwritten.
  if (staged_weights_ != nullptr) spare = std::exchange(staged_weights_, nullptr);
  staged_ = std::nullopt;
  if (spare != nullptr && spare->rope_table().dim(0) == positions) return spare;
  return std::make_shared<ModelWeights>(bundle->config, bundle->layout, spec_->precision,
                                        positions);
}

absl::Status JobSession::CommitWeights(const Order& order) {
  std::shared_ptr<Engine> engine;
  bool already = false;
  {
    absl::MutexLock lock(&mutex_);
    engine = loaded_.engine;
    already = loaded_.serving == order.weights;
  }
  if (already) {
    events_.serving(order.number, order.epoch, order.weights);
    return absl::OkStatus();
  }
  if (engine == nullptr || staged_ != order.weights) {
    return Error(absl::StatusCode::kFailedPrecondition, "WEIGHTS_NOT_STAGED",
                 absl::StrCat("version ", order.weights.version, " with digest ",
                              order.weights.manifest_digest, " is not staged"));
  }
  std::shared_ptr<ModelWeights> weights = std::exchange(staged_weights_, nullptr);
  staged_ = std::nullopt;
  auto done = [this, weights, number = order.number, epoch = order.epoch,
               identity = order.weights](const absl::Status& status) mutable {
    if (!status.ok()) return;  // overridden, or the engine stops
    {
      absl::MutexLock lock(&mutex_);
      loaded_.serving = identity;
      loaded_.staged = false;
      spare_weights_ = std::exchange(serving_weights_, std::move(weights));
    }
    events_.serving(number, epoch, identity);
  };
  engine->SetWeights(std::move(weights), order.weights.version, std::move(done));
  return absl::OkStatus();
}

}  // namespace halfstep
