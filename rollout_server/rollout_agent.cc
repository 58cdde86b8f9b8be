// SPDX-License-Identifier: Apache-2.0
#include "rollout_server/rollout_agent.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/base/build_info.h"
#include "common/base/error_reason.h"
#include "common/base/logging.h"
#include "common/trajectory/proto_convert.h"
#include "common/weight_sync/weight_proto.h"
#include "halfstep/v1/rollout_coordination.pb.h"

namespace halfstep {
namespace {

// Credit beyond this many groups at once would only take work from other servers.
constexpr int64_t kMaxGroups = 4096;

absl::StatusOr<DType> FromProto(v1::Precision precision) {
  switch (precision) {
    case v1::PRECISION_FP16:
      return DType::kFloat16;
    case v1::PRECISION_BF16:
      return DType::kBFloat16;
    case v1::PRECISION_FP32:
      return DType::kFloat32;
    default:
      return Error(absl::StatusCode::kInvalidArgument, "BAD_JOB",
                   absl::StrCat("unknown precision ", static_cast<int>(precision)));
  }
}

google::protobuf::Timestamp ToTimestamp(absl::Time time) {
  google::protobuf::Timestamp timestamp;
  const int64_t nanos = absl::ToUnixNanos(time);
  timestamp.set_seconds(nanos / 1'000'000'000);
  timestamp.set_nanos(static_cast<int32_t>(nanos % 1'000'000'000));
  return timestamp;
}

}  // namespace

// Bounded by the protocol: at most one answer per order of the learner, and failures of groups,
// which credit bounds.
struct RolloutAgent::MessageQueue {
  std::deque<v1::RolloutMessage> messages;
};

RolloutAgent::RolloutAgent(AgentOptions options)
    : options_(std::move(options)),
      detached_(absl::UnavailableError("not attached yet")),
      control_(std::make_unique<MessageQueue>()) {}

RolloutAgent::~RolloutAgent() = default;

void RolloutAgent::Connect(JobSession* session, LearnerLink* link, std::string address) {
  session_ = session;
  link_ = link;
  address_ = std::move(address);
}

JobSessionEvents RolloutAgent::SessionEvents() {
  JobSessionEvents events;
  events.job_loaded = [this](uint64_t order, uint64_t epoch) {
    OnEvent(order, [&](v1::RolloutMessage* message) {
      stream_->job_loaded = true;
      message->mutable_job_loaded()->set_job_epoch(epoch);
    });
  };
  events.weights_ready = [this](uint64_t order, uint64_t epoch, const WeightIdentity& weights) {
    OnEvent(order, [&](v1::RolloutMessage* message) {
      message->mutable_weights_ready()->set_job_epoch(epoch);
      ToProto(weights, message->mutable_weights_ready()->mutable_weights());
    });
  };
  events.serving = [this](uint64_t order, uint64_t epoch, const WeightIdentity& weights) {
    OnEvent(order, [&](v1::RolloutMessage* message) {
      message->mutable_serving()->set_job_epoch(epoch);
      ToProto(weights, message->mutable_serving()->mutable_weights());
    });
  };
  events.failed = [this](uint64_t order, uint64_t epoch,
                         const std::optional<WeightIdentity>& weights, const absl::Status& why) {
    absl::MutexLock lock(&mutex_);
    if (!stream_ || stream_->number != order) return;
    v1::RolloutFailure* failure = QueueFailure(epoch, why);
    failure->set_subject(weights ? v1::RolloutFailure::SUBJECT_WEIGHTS
                                 : v1::RolloutFailure::SUBJECT_LOAD_JOB);
    if (weights) ToProto(*weights, failure->mutable_weights());
    link_->Wake();
  };
  return events;
}

void RolloutAgent::OnEvent(uint64_t order, const std::function<void(v1::RolloutMessage*)>& fill) {
  absl::MutexLock lock(&mutex_);
  if (!stream_ || stream_->number != order) return;
  fill(&control_->messages.emplace_back());
  link_->Wake();
}

v1::RolloutFailure* RolloutAgent::QueueFailure(uint64_t epoch, const absl::Status& why) {
  v1::RolloutFailure* failure = control_->messages.emplace_back().mutable_failure();
  failure->set_job_epoch(epoch);
  const std::string reason = ReasonOf(why);
  failure->set_reason(reason.empty() ? absl::StatusCodeToString(why.code()) : reason);
  failure->set_message(std::string(why.message()));
  return failure;
}

absl::Status RolloutAgent::attached() const {
  absl::MutexLock lock(&mutex_);
  if (!stream_) return detached_;
  if (!stream_->welcomed) return absl::UnavailableError("the learner has not answered yet");
  return absl::OkStatus();
}

bool RolloutAgent::Leave(absl::Time deadline) {
  absl::MutexLock lock(&mutex_);
  leaving_ = true;
  link_->Wake();
  auto done = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return !stream_ || !stream_->welcomed ||
           (stream_->released && book_.empty() && control_->messages.empty());
  };
  return mutex_.AwaitWithDeadline(absl::Condition(&done), deadline);
}

// ---- The stream

void RolloutAgent::OnOpened(uint64_t number) {
  absl::MutexLock lock(&mutex_);
  Stream& stream = stream_.emplace();
  stream.number = number;
  stream.opened = stream.last_heard = stream.last_heartbeat = absl::Now();
  book_.Reset();
  control_->messages.clear();
  FillHello(&control_->messages.emplace_back());
}

void RolloutAgent::OnClosed(uint64_t, const absl::Status& why) {
  absl::MutexLock lock(&mutex_);
  DropEverything();
  if (stream_ && stream_->welcomed) options_.on_attached(false);
  stream_ = std::nullopt;
  detached_ = why.ok() ? absl::UnavailableError("the learner ended the stream") : why;
}

void RolloutAgent::DropEverything() {
  std::map<Ticket, Running> running = std::exchange(running_, {});
  for (const auto& [ticket, group] : running) {
    if (const auto engine = group.engine.lock()) engine->Cancel(group.handle);
  }
  const size_t held = book_.groups_held();
  book_.DropAll();
  if (held > 0) LogInfo("groups dropped with their stream", {{"groups", held}});
}

void RolloutAgent::CancelTicket(Ticket ticket) {
  const auto it = running_.find(ticket);
  if (it == running_.end()) return;
  if (const auto engine = it->second.engine.lock()) engine->Cancel(it->second.handle);
  running_.erase(it);
}

bool RolloutAgent::NextMessage(uint64_t number, v1::RolloutMessage* message) {
  absl::MutexLock lock(&mutex_);
  if (!stream_ || stream_->number != number) return false;
  const absl::Time now = absl::Now();
  const absl::Duration patience = stream_->welcomed ? stream_->timeout : options_.welcome_timeout;
  if (now - stream_->last_heard > patience) {
    LogWarning("the learner is silent, attaching anew",
               {{"seconds", absl::ToDoubleSeconds(now - stream_->last_heard)}});
    link_->Reset();
    return false;
  }
  if (!control_->messages.empty()) {
    *message = std::move(control_->messages.front());
    control_->messages.pop_front();
    return true;
  }
  if (!stream_->welcomed) return false;
  if (leaving_ && !stream_->leaving_sent) {
    message->mutable_leaving();
    stream_->leaving_sent = true;
    return true;
  }
  const uint64_t credit = book_.Credit(stream_->capacity);
  if (stream_->job_loaded && !leaving_ && credit > stream_->credit_sent) {
    message->mutable_credit()->set_job_epoch(stream_->epoch);
    message->mutable_credit()->set_total_groups(credit);
    stream_->credit_sent = credit;
    return true;
  }
  if (const auto batch = book_.NextBatch({})) {
    message->mutable_samples()->set_job_epoch(stream_->epoch);
    message->mutable_samples()->set_sequence_number(batch->sequence_number);
    for (const KeyedSample& sample : batch->samples) {
      ToProto(sample, message->mutable_samples()->add_samples());
    }
    return true;
  }
  if (now - stream_->last_heartbeat >= stream_->heartbeat_interval) {
    FillHeartbeat(message);
    stream_->last_heartbeat = now;
    return true;
  }
  return false;
}

void RolloutAgent::FillHello(v1::RolloutMessage* message) const {
  v1::Hello* hello = message->mutable_hello();
  hello->set_rollout_id(options_.rollout_id);
  hello->set_incarnation(options_.incarnation);
  hello->set_backend("cpu");
  hello->set_kv_cache_bytes(options_.kv_cache_bytes);
  hello->set_numerics_fingerprint(options_.numerics_fingerprint);
  hello->set_build(BuildId());
  hello->set_address(address_);
}

void RolloutAgent::FillHeartbeat(v1::RolloutMessage* message) const {
  v1::RolloutHeartbeat* heartbeat = message->mutable_heartbeat();
  const LoadedJob job = session_->loaded();
  if (stream_->epoch == 0) {
    heartbeat->set_state(v1::RolloutHeartbeat::STATE_JOINING);
  } else if (job.serving) {
    heartbeat->set_state(v1::RolloutHeartbeat::STATE_SERVING);
  } else {
    heartbeat->set_state(job.staged ? v1::RolloutHeartbeat::STATE_READY
                                    : v1::RolloutHeartbeat::STATE_LOADING);
  }
  if (job.engine == nullptr) return;
  const EngineStats stats = job.engine->stats();
  heartbeat->set_sequences_running(stats.sequences_running);
  heartbeat->set_sequences_waiting(stats.sequences_waiting);
  heartbeat->set_tokens_generated(stats.tokens_generated);
  *heartbeat->mutable_last_progress() = ToTimestamp(stats.last_progress);
}

// ---- What the learner says

void RolloutAgent::OnMessage(uint64_t number, const v1::LearnerMessage& message) {
  if (message.has_assign()) {
    On(message.assign());
    return;
  }
  absl::MutexLock lock(&mutex_);
  if (!stream_ || stream_->number != number) return;
  stream_->last_heard = absl::Now();
  switch (message.message_case()) {
    case v1::LearnerMessage::kWelcome: {
      const v1::Welcome& welcome = message.welcome();
      stream_->welcomed = true;
      options_.on_attached(true);
      stream_->heartbeat_interval = absl::Seconds(std::max(1, welcome.heartbeat_seconds()));
      stream_->timeout = absl::Seconds(std::max(2, welcome.timeout_seconds()));
      LogInfo("attached to the learner", {{"learner_incarnation", welcome.learner_incarnation()}});
      break;
    }
    case v1::LearnerMessage::kLoadJob:
      On(message.load_job());
      break;
    case v1::LearnerMessage::kUnloadJob:
      if (message.unload_job().job_epoch() != stream_->epoch) break;
      DropEverything();
      session_->Unload(stream_->epoch);
      stream_->epoch = 0;
      stream_->job_loaded = false;
      break;
    case v1::LearnerMessage::kPrepareWeights:
      On(message.prepare_weights());
      break;
    case v1::LearnerMessage::kCommitWeights:
      session_->Commit(number, message.commit_weights().job_epoch(),
                       halfstep::FromProto(message.commit_weights().weights()));
      break;
    case v1::LearnerMessage::kAck:
      book_.Acknowledge(message.ack().sequence_number());
      break;
    case v1::LearnerMessage::kAbandon:
      On(message.abandon());
      break;
    case v1::LearnerMessage::kReleased:
      stream_->released = true;
      break;
    case v1::LearnerMessage::kDrain:
      LogInfo("the learner is stopping");
      break;
    default:
      // Heartbeats, and what this build does not know.
      break;
  }
  link_->Wake();
}

void RolloutAgent::On(const v1::LoadJob& load) {
  DropEverything();
  stream_->epoch = load.job_epoch();
  stream_->job_loaded = false;
  stream_->credit_sent = 0;
  stream_->capacity =
      static_cast<uint64_t>(std::clamp<int64_t>(load.max_sequences(), 1, kMaxGroups));
  const absl::StatusOr<DType> precision = FromProto(load.precision());
  if (!precision.ok()) {
    QueueFailure(load.job_epoch(), precision.status())
        ->set_subject(v1::RolloutFailure::SUBJECT_LOAD_JOB);
    return;
  }
  JobSpec spec;
  spec.epoch = load.job_epoch();
  spec.model_digest = load.model_digest();
  spec.precision = *precision;
  spec.fp32 = {.residual = load.fp32_residual(), .head = load.fp32_head()};
  spec.profile = load.profile() == v1::PROFILE_FAST ? Profile::kFast : Profile::kBitwise;
  spec.max_sequence_tokens = load.max_sequence_tokens();
  spec.max_sequences = load.max_sequences();
  session_->Load(stream_->number, spec);
}

void RolloutAgent::On(const v1::PrepareWeights& prepare) {
  absl::StatusOr<WeightManifest> manifest = halfstep::FromProto(prepare.manifest());
  if (!manifest.ok()) {
    v1::RolloutFailure* failure = QueueFailure(prepare.job_epoch(), manifest.status());
    failure->set_subject(v1::RolloutFailure::SUBJECT_WEIGHTS);
    failure->mutable_weights()->set_version(prepare.manifest().version());
    failure->mutable_weights()->set_manifest_digest(prepare.manifest().manifest_digest());
    return;
  }
  session_->Prepare(stream_->number, prepare.job_epoch(), *std::move(manifest));
}

void RolloutAgent::On(const v1::Assign& assign) {
  absl::StatusOr<GroupAssignment> assignment = halfstep::FromProto(assign);
  const LoadedJob job = session_->loaded();
  absl::MutexLock lock(&mutex_);
  if (!stream_ || assign.job_epoch() != stream_->epoch) return;
  stream_->last_heard = absl::Now();
  if (!assignment.ok()) {
    // The learner gives it to somebody else when its time is over.
    LogWarning("a group cannot be read", {{"group", assign.group()},
                                          {"message", std::string(assignment.status().message())}});
    return;
  }
  if (const auto replaced = book_.Drop(assignment->key)) CancelTicket(*replaced);
  const GroupKey key = assignment->key;
  const Ticket ticket = book_.Take(key, assignment->samples);

  GroupCallbacks callbacks;
  callbacks.on_sample = [this, ticket](Sample sample) { OnSample(ticket, std::move(sample)); };
  callbacks.on_failure = [this, ticket, key](const absl::Status& why) {
    OnGroupFailed(ticket, key, why);
  };
  absl::StatusOr<GroupHandle> handle = absl::FailedPreconditionError("no model is loaded");
  if (job.engine != nullptr && job.epoch == assign.job_epoch()) {
    handle = job.engine->Submit(RequestOf(*std::move(assignment)), std::move(callbacks));
  }
  if (handle.ok()) {
    running_[ticket] = {job.engine, *handle};
  } else {
    HandBack(ticket, key, handle.status());
  }
}

void RolloutAgent::On(const v1::Abandon& abandon) {
  if (abandon.job_epoch() != stream_->epoch) return;
  const Purpose purpose = abandon.purpose() == v1::PURPOSE_EVAL ? Purpose::kEval : Purpose::kTrain;
  for (const uint64_t group : abandon.groups()) {
    if (const auto ticket = book_.Drop({purpose, group})) CancelTicket(*ticket);
  }
}

// ---- What the engine says

void RolloutAgent::OnSample(Ticket ticket, Sample sample) {
  absl::MutexLock lock(&mutex_);
  if (!book_.Add(ticket, std::move(sample))) return;
  if (!book_.Missing(ticket)) running_.erase(ticket);
  link_->Wake();
}

void RolloutAgent::OnGroupFailed(Ticket ticket, const GroupKey& key, const absl::Status& why) {
  absl::MutexLock lock(&mutex_);
  // Groups that were cancelled from here are not held any more.
  if (running_.erase(ticket) == 0 || !stream_) return;
  HandBack(ticket, key, why);
}

void RolloutAgent::HandBack(Ticket ticket, const GroupKey& key, const absl::Status& why) {
  LogWarning(
      "a group failed",
      {{"group", key.ordinal}, {"reason", ReasonOf(why)}, {"message", std::string(why.message())}});
  v1::RolloutFailure* failure = QueueFailure(stream_->epoch, why);
  failure->set_subject(v1::RolloutFailure::SUBJECT_GROUP);
  failure->set_purpose(key.purpose == Purpose::kTrain ? v1::PURPOSE_TRAIN : v1::PURPOSE_EVAL);
  failure->set_group(key.ordinal);
  book_.GiveUp(ticket);
  link_->Wake();
}

}  // namespace halfstep
