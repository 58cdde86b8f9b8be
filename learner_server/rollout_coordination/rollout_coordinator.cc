// SPDX-License-Identifier: Apache-2.0
#include "learner_server/rollout_coordination/rollout_coordinator.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/base/error_reason.h"
#include "common/base/logging.h"
#include "common/weight_sync/model_files.h"
#include "halfstep/v1/rollout_coordination.pb.h"
#include "kernels/check.h"

namespace halfstep {
namespace {

v1::Precision ToProto(DType dtype) {
  switch (dtype) {
    case DType::kFloat16:
      return v1::PRECISION_FP16;
    case DType::kBFloat16:
      return v1::PRECISION_BF16;
    default:
      return v1::PRECISION_FP32;
  }
}

}  // namespace

RolloutCoordinator::RolloutCoordinator(CoordinatorOptions options, const Clock* clock,
                                       LearnerMetrics* metrics)
    : options_(std::move(options)), clock_(*clock), metrics_(*metrics) {
  drop_logged_.fill(absl::InfinitePast());
}

RolloutCoordinator::~RolloutCoordinator() = default;

// ---- RolloutPool

void RolloutCoordinator::BeginJob(const RolloutJob& job, SampleSink* sink) {
  absl::MutexLock lock(&mutex_);
  HALFSTEP_CHECK(job_ == nullptr);
  HALFSTEP_CHECK_GT(job.epoch, 0u);
  job_ = std::make_unique<Job>();
  job_->spec = std::make_shared<const RolloutJob>(job);
  job_->sink = sink;
  ModelFilesDigester digester;
  for (const ModelFile& file : job.files) digester.Add(file.name, file.bytes);
  job_->model_digest = digester.Finish();
  for (auto& [id, session] : sessions_) {
    if (!session.greeted || !session.doomed.ok()) continue;
    if (FingerprintFits(session)) SendLoadJob(session);
  }
  Schedule();
}

void RolloutCoordinator::EndJob() {
  absl::MutexLock lock(&mutex_);
  if (job_ == nullptr) return;
  for (auto& [id, session] : sessions_) {
    if (session.job_epoch != job_->spec->epoch) continue;
    v1::LearnerMessage message;
    message.mutable_unload_job()->set_job_epoch(session.job_epoch);
    Send(session, std::move(message));
    Apply(session, RolloutEvent::kUnloadJob);
    session.job_epoch = 0;
    session.job_loaded = false;
    session.preparing = session.staged = session.committing = session.serving = std::nullopt;
    session.failures = 0;
  }
  for (const auto& [key, group] : job_->groups.groups()) {
    CountDropped(key, DropReason::kAbandoned, group.kept.size());
  }
  job_.reset();
  pending_.clear();
  Schedule();
  mutex_.Await(absl::Condition(
      +[](bool* delivering) { return !*delivering; }, &delivering_));
}

void RolloutCoordinator::Publish(std::shared_ptr<const WeightSet> weights) {
  absl::MutexLock lock(&mutex_);
  HALFSTEP_CHECK(job_ != nullptr);
  const uint64_t version = weights->manifest().version;
  job_->published[version] = std::move(weights);
  job_->versions.insert(version);
  Schedule();
}

void RolloutCoordinator::ReleaseWeightsBelow(uint64_t version) {
  absl::MutexLock lock(&mutex_);
  if (job_ == nullptr) return;
  job_->released_below = std::max(job_->released_below, version);
  job_->published.erase(job_->published.begin(), job_->published.lower_bound(version));
  Schedule();
}

void RolloutCoordinator::Assign(std::vector<GroupAssignment> groups) {
  absl::MutexLock lock(&mutex_);
  HALFSTEP_CHECK(job_ != nullptr);
  const absl::Time now = clock_.Now();
  for (GroupAssignment& group : groups) {
    HALFSTEP_CHECK_EQ(group.job_epoch, job_->spec->epoch);
    HALFSTEP_CHECK_GT(group.samples, 0u);
    HALFSTEP_CHECK(job_->groups.Add(std::move(group), now));
  }
  Schedule();
}

RolloutPoolStatus RolloutCoordinator::Status() const {
  absl::MutexLock lock(&mutex_);
  RolloutPoolStatus status;
  for (const auto& [id, session] : sessions_) {
    const bool switches = session.state == RolloutState::kReady && session.committing;
    if (switches || session.state == RolloutState::kServing) ++status.rollouts_serving;
  }
  if (job_ != nullptr) status.groups_reassigned = job_->groups_reassigned;
  status.waiting_for = WaitingFor();
  return status;
}

// ---- Streams

SessionId RolloutCoordinator::Attach(std::shared_ptr<RolloutOutbox> outbox) {
  absl::MutexLock lock(&mutex_);
  const SessionId id = next_session_++;
  const auto ungreeted = std::count_if(sessions_.begin(), sessions_.end(),
                                       [](const auto& entry) { return !entry.second.greeted; });
  if (ungreeted >= options_.max_ungreeted) {
    outbox->Close(Error(absl::StatusCode::kResourceExhausted, "TOO_MANY_STREAMS",
                        absl::StrCat(ungreeted,
                                     " streams are open whose Hello has not come; "
                                     "attach again later")));
    return id;
  }
  RolloutSession& session = sessions_[id];
  session.id = id;
  session.outbox = std::move(outbox);
  session.attached = session.last_heard = session.last_heartbeat_sent = clock_.Now();
  return id;
}

void RolloutCoordinator::OnClosed(SessionId id) {
  {
    absl::MutexLock lock(&mutex_);
    if (RolloutSession* session = FindSession(id)) {
      session->doomed = absl::UnavailableError("its stream ended");
      Schedule();
    }
    ended_.erase(id);
  }
  DeliverPending();
}

void RolloutCoordinator::Drain() {
  absl::MutexLock lock(&mutex_);
  draining_ = true;
  for (auto& [id, session] : sessions_) {
    v1::LearnerMessage message;
    message.mutable_drain();
    Send(session, std::move(message));
    session.doomed =
        Error(absl::StatusCode::kUnavailable, "LEARNER_STOPPING", "the learner is stopping");
  }
  Schedule();
}

std::shared_ptr<const WeightSet> RolloutCoordinator::FindWeights(
    uint64_t job_epoch, const WeightIdentity& identity) const {
  absl::MutexLock lock(&mutex_);
  if (job_ == nullptr || job_->spec->epoch != job_epoch) return nullptr;
  const auto it = job_->published.find(identity.version);
  if (it == job_->published.end() || it->second->manifest().identity() != identity) return nullptr;
  return it->second;
}

std::shared_ptr<const RolloutJob> RolloutCoordinator::FindJob(uint64_t job_epoch) const {
  absl::MutexLock lock(&mutex_);
  if (job_ == nullptr || job_->spec->epoch != job_epoch) return nullptr;
  return job_->spec;
}

// ---- Sessions

RolloutSession* RolloutCoordinator::FindSession(SessionId id) {
  const auto it = sessions_.find(id);
  return it == sessions_.end() || !it->second.doomed.ok() ? nullptr : &it->second;
}

void RolloutCoordinator::Send(RolloutSession& session, v1::LearnerMessage message) {
  if (!session.doomed.ok() || session.outbox->Send(std::move(message))) return;
  session.doomed = Error(absl::StatusCode::kResourceExhausted, "OUTBOX_FULL",
                         "it does not read what the learner sends");
}

void RolloutCoordinator::Apply(RolloutSession& session, RolloutEvent event) {
  const std::optional<RolloutState> next = Next(session.state, event);
  HALFSTEP_CHECK(next.has_value());
  if (*next == session.state) return;
  LogInfo("rollout changed state",
          {{"rollout", session.rollout_id}, {"from", Name(session.state)}, {"to", Name(*next)}});
  session.state = *next;
}

bool RolloutCoordinator::FingerprintFits(RolloutSession& session) const {
  if (job_ == nullptr || job_->spec->profile != Profile::kBitwise ||
      session.fingerprint == options_.numerics_fingerprint) {
    return true;
  }
  session.doomed = Error(
      absl::StatusCode::kFailedPrecondition, "NUMERICS_FINGERPRINT_MISMATCH",
      absl::StrCat("the job runs in profile bitwise, and rollout '", session.rollout_id,
                   "' computes other bits (fingerprint ", session.fingerprint,
                   ") than the learner (", options_.numerics_fingerprint,
                   "): run both on the same build and kind of processor, or choose profile fast"));
  return false;
}

void RolloutCoordinator::SendLoadJob(RolloutSession& session) {
  const RolloutJob& spec = *job_->spec;
  v1::LearnerMessage message;
  v1::LoadJob* load = message.mutable_load_job();
  load->set_job_epoch(spec.epoch);
  load->set_model_digest(job_->model_digest);
  load->set_precision(ToProto(spec.precision));
  load->set_fp32_residual(spec.fp32.residual);
  load->set_fp32_head(spec.fp32.head);
  load->set_profile(spec.profile == Profile::kBitwise ? v1::PROFILE_BITWISE : v1::PROFILE_FAST);
  load->set_max_sequence_tokens(spec.max_sequence_tokens);
  load->set_max_sequences(spec.max_sequences);
  session.job_epoch = spec.epoch;
  session.job_loaded = false;
  session.preparing = session.staged = session.committing = session.serving = std::nullopt;
  session.phase_since = clock_.Now();
  Apply(session, RolloutEvent::kLoadJob);
  Send(session, std::move(message));
}

void RolloutCoordinator::SendAbandon(RolloutSession& session, const std::vector<GroupKey>& keys) {
  for (const Purpose purpose : {Purpose::kTrain, Purpose::kEval}) {
    v1::LearnerMessage message;
    v1::Abandon* abandon = message.mutable_abandon();
    abandon->set_job_epoch(session.job_epoch);
    abandon->set_purpose(purpose == Purpose::kTrain ? v1::PURPOSE_TRAIN : v1::PURPOSE_EVAL);
    for (const GroupKey& key : keys) {
      if (key.purpose == purpose) abandon->add_groups(key.ordinal);
    }
    if (abandon->groups_size() > 0) Send(session, std::move(message));
  }
}

void RolloutCoordinator::GiveBackAll(RolloutSession& session, const std::string& why) {
  if (job_ == nullptr) return;
  const std::vector<GroupKey> keys = job_->groups.HeldBy(session.id);
  for (const GroupKey& key : keys) GiveBack(key, session, why, /*avoid=*/false);
  SendAbandon(session, keys);
}

void RolloutCoordinator::GiveBack(const GroupKey& key, RolloutSession& session,
                                  const std::string& why, bool avoid) {
  job_->groups.Release(key, session.id);
  const Group& group = *job_->groups.Find(key);
  if (!group.holds.empty()) return;
  CountDropped(key, DropReason::kAbandoned, group.kept.size());
  if (group.reassignments >= options_.max_reassignments) {
    Delivery news{
        group.assignment, session.rollout_id, std::nullopt,
        Error(
            absl::StatusCode::kUnavailable, "GROUP_LOST",
            absl::StrCat(key.purpose == Purpose::kTrain ? "training" : "evaluation", " group ",
                         key.ordinal, " was given out ", group.reassignments + 1,
                         " times and never completed; last by '", session.rollout_id, "': ", why))};
    job_->groups.Erase(key);
    pending_.push_back(std::move(news));
    return;
  }
  if (avoid) {
    job_->groups.Requeue(key, session.rollout_id, clock_.Now() + options_.avoid_time);
  } else {
    job_->groups.Requeue(key, "", absl::InfinitePast());
  }
  ++job_->groups_reassigned;
  metrics_.groups_reassigned.Increment();
}

void RolloutCoordinator::Remove(RolloutSession& session) {
  const std::string reason = ReasonOf(session.doomed);
  const bool refused = !reason.empty() && reason != "REPLACED" && reason != "LEARNER_STOPPING";
  if (session.greeted && refused) {
    refusal_ = {session.rollout_id, absl::StrCat(reason, ": ", session.doomed.message()),
                clock_.Now()};
  }
  GiveBackAll(session, std::string(session.doomed.message()));
  Apply(session, RolloutEvent::kLost);
  LogInfo("rollout is gone", {{"rollout", session.rollout_id},
                              {"incarnation", session.incarnation},
                              {"why", std::string(session.doomed.message())}});
  session.outbox->Close(session.doomed);
}

void RolloutCoordinator::DeliverPending() {
  absl::MutexLock lock(&mutex_);
  if (delivering_) return;
  while (job_ != nullptr && !pending_.empty()) {
    delivering_ = true;
    std::vector<Delivery> deliveries = std::exchange(pending_, {});
    SampleSink* const sink = job_->sink;
    mutex_.Unlock();
    for (Delivery& delivery : deliveries) {
      if (delivery.sample) {
        sink->OnSample(*delivery.assignment, delivery.rollout_id, *std::move(delivery.sample));
      } else {
        sink->OnGroupLost(*delivery.assignment, delivery.lost);
      }
    }
    mutex_.Lock();
    delivering_ = false;
  }
}

}  // namespace halfstep
