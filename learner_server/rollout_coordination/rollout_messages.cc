// SPDX-License-Identifier: Apache-2.0
// RolloutCoordinator: what each message of a rollout does.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/base/error_reason.h"
#include "common/base/logging.h"
#include "common/trajectory/proto_convert.h"
#include "common/weight_sync/weight_proto.h"
#include "halfstep/v1/rollout_coordination.pb.h"
#include "learner_server/rollout_coordination/rollout_coordinator.h"

namespace halfstep {
namespace {

constexpr size_t kMaxNameBytes = 128;
constexpr size_t kMaxFailureBytes = 1024;
constexpr size_t kRetiredRemembered = 1024;
constexpr absl::Duration kDropLogInterval = absl::Seconds(10);
// Weight of one group in the moving mean of group times.
constexpr double kMeanWeight = 0.1;

absl::Status ProtocolError(const std::string& what) {
  return Error(absl::StatusCode::kInvalidArgument, "PROTOCOL_ERROR", what);
}

std::string Describe(const std::string& reason, const std::string& message) {
  return absl::StrCat(reason, ": ", message).substr(0, kMaxFailureBytes);
}

}  // namespace

void RolloutCoordinator::OnMessage(SessionId id, v1::RolloutMessage message) {
  std::vector<Arrival> arrivals;
  if (message.has_samples()) arrivals = Convert(message.samples());
  {
    absl::MutexLock lock(&mutex_);
    RolloutSession* session = FindSession(id);
    if (session == nullptr) {
      const auto ended = ended_.find(id);
      for (const Arrival& arrival : arrivals) {
        Drop(ended == ended_.end() ? "" : ended->second, arrival.key, DropReason::kStaleIncarnation,
             "the learner has ended its stream");
      }
      return;
    }
    if (Handle(*session, message, std::move(arrivals))) Schedule();
  }
  DeliverPending();
}

std::vector<RolloutCoordinator::Arrival> RolloutCoordinator::Convert(const v1::Samples& samples) {
  std::vector<Arrival> arrivals;
  arrivals.reserve(samples.samples_size());
  for (const v1::Sample& in : samples.samples()) {
    Arrival& arrival = arrivals.emplace_back();
    absl::StatusOr<KeyedSample> sample = FromProto(in);
    if (sample.ok()) {
      arrival.key = sample->key;
      arrival.sample = std::move(sample->sample);
    } else {
      arrival.key.purpose = in.purpose() == v1::PURPOSE_EVAL ? Purpose::kEval : Purpose::kTrain;
      arrival.key.ordinal = in.group();
      arrival.sample.index = in.index();
      arrival.malformed = sample.status();
    }
  }
  return arrivals;
}

bool RolloutCoordinator::Handle(RolloutSession& session, const v1::RolloutMessage& message,
                                std::vector<Arrival> arrivals) {
  if (message.has_hello() == session.greeted) {
    session.doomed = ProtocolError(session.greeted ? "Hello came twice on one stream"
                                                   : "the first message must be Hello");
    return true;
  }
  Heard(session);
  switch (message.message_case()) {
    case v1::RolloutMessage::kHello:
      On(session, message.hello());
      return true;
    case v1::RolloutMessage::kJobLoaded:
      On(session, message.job_loaded());
      return true;
    case v1::RolloutMessage::kWeightsReady:
      On(session, message.weights_ready());
      return true;
    case v1::RolloutMessage::kServing:
      On(session, message.serving());
      return true;
    case v1::RolloutMessage::kCredit:
      On(session, message.credit());
      return true;
    case v1::RolloutMessage::kSamples:
      return OnSamples(session, message.samples().job_epoch(), message.samples().sequence_number(),
                       std::move(arrivals));
    case v1::RolloutMessage::kHeartbeat:
      On(session, message.heartbeat());
      return true;
    case v1::RolloutMessage::kFailure:
      On(session, message.failure());
      return true;
    case v1::RolloutMessage::kLeaving:
      On(session, message.leaving());
      return true;
    case v1::RolloutMessage::MESSAGE_NOT_SET:
      // A kind of message that this build does not know.
      return false;
  }
  return false;
}

void RolloutCoordinator::Heard(RolloutSession& session) {
  session.last_heard = clock_.Now();
  if (!session.stuck) Recover(session);
}

void RolloutCoordinator::Recover(RolloutSession& session) {
  session.stuck = false;
  if (session.state != RolloutState::kSuspect) return;
  if (session.serving) {
    Apply(session, RolloutEvent::kHeardWhileServing);
    return;
  }
  Apply(session, RolloutEvent::kHeard);
  if (session.job_epoch == 0) {
    Apply(session, RolloutEvent::kUnloadJob);
  } else if (session.staged || session.committing) {
    Apply(session, RolloutEvent::kWeightsVerified);
  }
}

void RolloutCoordinator::On(RolloutSession& session, const v1::Hello& hello) {
  if (hello.rollout_id().empty() || hello.rollout_id().size() > kMaxNameBytes ||
      hello.incarnation().empty() || hello.incarnation().size() > kMaxNameBytes) {
    session.doomed = ProtocolError(absl::StrCat(
        "Hello must name a rollout id and an incarnation of 1 to ", kMaxNameBytes, " bytes"));
    return;
  }
  session.greeted = true;
  session.rollout_id = hello.rollout_id();
  session.incarnation = hello.incarnation();
  session.fingerprint = hello.numerics_fingerprint();
  if (draining_) {
    session.doomed =
        Error(absl::StatusCode::kUnavailable, "LEARNER_STOPPING", "the learner is stopping");
    return;
  }
  if (!ReplaceOlder(session) || !FingerprintFits(session)) return;
  LogInfo("rollout attached", {{"rollout", session.rollout_id},
                               {"incarnation", session.incarnation},
                               {"backend", hello.backend()},
                               {"kv_cache_bytes", hello.kv_cache_bytes()},
                               {"address", hello.address()},
                               {"build", hello.build()}});
  v1::LearnerMessage message;
  v1::Welcome* welcome = message.mutable_welcome();
  welcome->set_learner_incarnation(options_.incarnation);
  welcome->set_heartbeat_seconds(
      static_cast<int32_t>(absl::ToInt64Seconds(options_.heartbeat_interval)));
  welcome->set_timeout_seconds(static_cast<int32_t>(absl::ToInt64Seconds(options_.lost_after)));
  Send(session, std::move(message));
  if (job_ != nullptr) SendLoadJob(session);
}

bool RolloutCoordinator::ReplaceOlder(RolloutSession& session) {
  const std::pair<std::string, std::string> self(session.rollout_id, session.incarnation);
  if (std::find(retired_.begin(), retired_.end(), self) != retired_.end()) {
    session.doomed =
        Error(absl::StatusCode::kFailedPrecondition, "STALE_INCARNATION",
              absl::StrCat("another server attached as rollout '", session.rollout_id,
                           "' after this one: give every server an id of its own (--id)"));
    return false;
  }
  for (auto& [id, other] : sessions_) {
    if (id == session.id || other.rollout_id != session.rollout_id || !other.doomed.ok()) continue;
    other.doomed = Error(absl::StatusCode::kAborted, "REPLACED",
                         absl::StrCat("incarnation ", session.incarnation, " of rollout '",
                                      session.rollout_id, "' took its place"));
    if (other.incarnation == session.incarnation) continue;
    retired_.emplace_back(other.rollout_id, other.incarnation);
    if (retired_.size() > kRetiredRemembered) retired_.erase(retired_.begin());
  }
  return true;
}

void RolloutCoordinator::On(RolloutSession& session, const v1::JobLoaded& loaded) {
  if (session.job_epoch == 0 || loaded.job_epoch() != session.job_epoch) return;
  session.job_loaded = true;
  session.failures = 0;
}

bool RolloutCoordinator::IsOurs(const WeightIdentity& identity) const {
  if (job_ == nullptr) return false;
  const auto it = job_->published.find(identity.version);
  if (it != job_->published.end()) return it->second->manifest().identity() == identity;
  return identity.version < job_->released_below;
}

void RolloutCoordinator::On(RolloutSession& session, const v1::WeightsReady& ready) {
  if (session.job_epoch == 0 || ready.job_epoch() != session.job_epoch) return;
  const WeightIdentity identity = FromProto(ready.weights());
  if (session.preparing != identity) {
    if (session.preparing && !IsOurs(identity)) {
      LoadFailed(
          session, RolloutEvent::kWeightsRefused, "WEIGHTS_DIGEST_MISMATCH",
          absl::StrCat("staged version ", identity.version, " with digest ",
                       identity.manifest_digest, " instead of version ", session.preparing->version,
                       " with digest ", session.preparing->manifest_digest));
    }
    return;
  }
  session.staged = std::exchange(session.preparing, std::nullopt);
  session.failures = 0;
  // Otherwise it is remembered until the suspect recovers.
  if (session.state != RolloutState::kSuspect) Apply(session, RolloutEvent::kWeightsVerified);
}

void RolloutCoordinator::On(RolloutSession& session, const v1::Serving& serving) {
  if (session.job_epoch == 0 || serving.job_epoch() != session.job_epoch) return;
  const WeightIdentity identity = FromProto(serving.weights());
  if (session.committing == identity) {
    // The engine switched between two steps, so it goes on.
    Recover(session);
    session.serving = std::exchange(session.committing, std::nullopt);
    session.failures = 0;
    if (refusal_ && refusal_->rollout_id == session.rollout_id) refusal_ = std::nullopt;
    Apply(session, RolloutEvent::kServing);
    return;
  }
  if (session.serving == identity || IsOurs(identity)) return;
  GiveBackAll(session, "it serves other weights than it was told to");
  LoadFailed(session, RolloutEvent::kServesOther, "WEIGHTS_DIGEST_MISMATCH",
             absl::StrCat("serves version ", identity.version, " with digest ",
                          identity.manifest_digest, ", which this job never published"));
}

void RolloutCoordinator::On(RolloutSession& session, const v1::Credit& credit) {
  if (session.job_epoch == 0 || credit.job_epoch() != session.job_epoch) return;
  session.credit = std::max<uint64_t>(session.credit, credit.total_groups());
}

void RolloutCoordinator::On(RolloutSession& session, const v1::RolloutFailure& failure) {
  if (session.job_epoch == 0 || failure.job_epoch() != session.job_epoch) return;
  const bool of_weights = failure.subject() == v1::RolloutFailure::SUBJECT_WEIGHTS;
  const WeightIdentity weights = FromProto(failure.weights());
  if (failure.subject() == v1::RolloutFailure::SUBJECT_LOAD_JOB && !session.job_loaded) {
    LoadFailed(session, RolloutEvent::kWeightsRefused, failure.reason(), failure.message());
  } else if (of_weights && session.preparing == weights) {
    LoadFailed(session, RolloutEvent::kWeightsRefused, failure.reason(), failure.message());
  } else if (of_weights && session.committing == weights) {
    LoadFailed(session, RolloutEvent::kServesOther, failure.reason(), failure.message());
  } else {
    // A group comes back by its cancelled samples, and an order that stands no more is nobody's.
    LogWarning("rollout reports a failure",
               {{"rollout", session.rollout_id},
                {"subject", v1::RolloutFailure::Subject_Name(failure.subject())},
                {"group", failure.group()},
                {"reason", failure.reason()},
                {"message", failure.message()}});
    session.last_report = Describe(failure.reason(), failure.message());
  }
}

void RolloutCoordinator::On(RolloutSession& session, const v1::Leaving&) {
  LogInfo("rollout is leaving", {{"rollout", session.rollout_id}});
  session.leaving = true;
  v1::LearnerMessage message;
  message.mutable_released();
  Send(session, std::move(message));
}

void RolloutCoordinator::On(RolloutSession& session, const v1::RolloutHeartbeat& heartbeat) {
  if (!heartbeat.has_last_progress()) return;
  const absl::Time now = clock_.Now();
  // Only whether it changes counts: the clocks of two machines differ.
  const absl::Time progress = absl::FromUnixSeconds(heartbeat.last_progress().seconds()) +
                              absl::Nanoseconds(heartbeat.last_progress().nanos());
  const bool busy = job_ != nullptr && job_->groups.LoadOf(session.id).groups > 0;
  if (progress != session.progress || (!busy && !session.stuck)) {
    session.progress = progress;
    session.progress_since = now;
    Recover(session);
    return;
  }
  const absl::Duration still = now - session.progress_since;
  if (session.stuck || still < options_.stuck_after) return;
  session.stuck = true;
  Apply(session, RolloutEvent::kStuck);
  GiveBackAll(session,
              absl::StrCat("its engine made no progress for ", absl::FormatDuration(still)));
}

void RolloutCoordinator::LoadFailed(RolloutSession& session, RolloutEvent event,
                                    const std::string& reason, const std::string& message) {
  ++session.failures;
  session.last_failure = Describe(reason, message);
  LogWarning("rollout cannot load what it was told to", {{"rollout", session.rollout_id},
                                                         {"reason", reason},
                                                         {"message", message},
                                                         {"attempt", session.failures}});
  if (session.failures >= options_.max_load_attempts) {
    session.doomed =
        Error(absl::StatusCode::kFailedPrecondition, "ROLLOUT_CANNOT_LOAD",
              absl::StrCat("failed ", session.failures, " times; last: ", session.last_failure));
    return;
  }
  session.preparing = session.staged = session.committing = std::nullopt;
  if (event == RolloutEvent::kServesOther) session.serving = std::nullopt;
  if (!session.job_loaded) {
    SendLoadJob(session);
    return;
  }
  // The scheduling pass has it prepare again.
  if (Next(session.state, event)) Apply(session, event);
}

// ---- Samples

bool RolloutCoordinator::OnSamples(RolloutSession& session, uint64_t job_epoch,
                                   uint64_t sequence_number, std::vector<Arrival> arrivals) {
  const bool repeated = sequence_number <= session.last_sequence;
  const bool stale =
      job_ == nullptr || job_epoch != job_->spec->epoch || job_epoch != session.job_epoch;
  bool due = false;
  for (Arrival& arrival : arrivals) {
    if (repeated || stale) {
      Drop(session.rollout_id, arrival.key,
           repeated ? DropReason::kRepeated : DropReason::kStaleJob,
           absl::StrCat("message ", sequence_number, " of job epoch ", job_epoch));
    } else {
      due |= OnSample(session, std::move(arrival));
    }
  }
  session.last_sequence = std::max(session.last_sequence, sequence_number);
  v1::LearnerMessage message;
  message.mutable_ack()->set_sequence_number(session.last_sequence);
  Send(session, std::move(message));
  return due || !session.doomed.ok();
}

bool RolloutCoordinator::OnSample(RolloutSession& session, Arrival arrival) {
  const GroupKey key = arrival.key;
  const Group* group = job_->groups.Find(key);
  if (group == nullptr) {
    if (job_->groups.ErasedLately(key)) {
      Drop(session.rollout_id, key, DropReason::kLate, "it is complete or was taken back");
    } else {
      Drop(session.rollout_id, key, DropReason::kUnknownGroup, "this job never gave it out");
    }
    return false;
  }
  if (!group->holds.contains(session.id)) {
    Drop(session.rollout_id, key, DropReason::kNotAssigned, "this rollout does not hold it");
    return false;
  }
  SampleVerdict verdict;
  if (!arrival.malformed.ok()) {
    verdict = {false, DropReason::kMalformed, std::string(arrival.malformed.message())};
  } else {
    const SampleLimits limits{job_->spec->vocab_size, job_->spec->max_sequence_tokens,
                              &job_->versions};
    verdict = CheckSample(*group->assignment, limits, arrival.sample);
  }
  const uint32_t index = arrival.sample.index;
  if (!verdict.ok) {
    Drop(session.rollout_id, key, verdict.reason,
         absl::StrCat("sample ", index, ": ", verdict.detail));
    if (index >= group->assignment->samples) return false;
  }
  const GroupTable::Receipt receipt =
      job_->groups.Deliver(key, session.id, index, WhyRefused(session, verdict));
  if (verdict.ok && receipt == GroupTable::Receipt::kDuplicate) {
    Drop(session.rollout_id, key, DropReason::kDuplicate, absl::StrCat("sample ", index));
  } else if (verdict.ok && group->assignment->free) {
    job_->groups.Keep(key, std::move(arrival.sample));
  } else if (verdict.ok) {
    pending_.push_back({group->assignment, session.rollout_id, std::move(arrival.sample), {}});
  }
  return SettleGroup(key, session);
}

std::string RolloutCoordinator::WhyRefused(const RolloutSession& session,
                                           const SampleVerdict& verdict) {
  if (verdict.ok) return "";
  if (verdict.reason != DropReason::kCancelled) {
    return absl::StrCat("a sample was refused, ", Name(verdict.reason), ": ", verdict.detail);
  }
  if (session.last_report.empty()) return "it handed the group back";
  return absl::StrCat("it handed the group back, and reported ", session.last_report);
}

bool RolloutCoordinator::SettleGroup(const GroupKey& key, RolloutSession& session) {
  const Group& group = *job_->groups.Find(key);
  const GroupHold& hold = group.holds.at(session.id);
  if (group.missing == 0) {
    for (Sample& sample : job_->groups.TakeComplete(key)) {
      pending_.push_back({group.assignment, session.rollout_id, std::move(sample), {}});
    }
    const absl::Duration took = clock_.Now() - hold.since;
    absl::Duration& mean = job_->mean_group_time;
    mean = mean == absl::ZeroDuration() ? took : mean + (took - mean) * kMeanWeight;
    std::vector<SessionId> slower;
    for (const auto& [id, other] : group.holds) {
      if (other.left > 0) slower.push_back(id);
    }
    job_->groups.Erase(key);
    for (const SessionId id : slower) {
      if (RolloutSession* other = FindSession(id)) SendAbandon(*other, {key});
    }
    return true;
  }
  if (hold.left > 0) return false;
  // It delivered everything, and not everything was good; or another one delivers the rest.
  GiveBack(key, session, std::string(hold.refused), /*avoid=*/true);
  return true;
}

void RolloutCoordinator::Drop(const std::string& rollout_id, const GroupKey& key, DropReason reason,
                              const std::string& detail) {
  CountDropped(key, reason, 1);
  absl::Time& logged = drop_logged_[static_cast<size_t>(reason)];
  const absl::Time now = clock_.Now();
  if (now - logged < kDropLogInterval) return;
  logged = now;
  LogWarning("sample dropped (further ones of this reason are not logged for a while)",
             {{"rollout", rollout_id},
              {"reason", Name(reason)},
              {"purpose", key.purpose == Purpose::kTrain ? "train" : "eval"},
              {"group", key.ordinal},
              {"detail", detail}});
}

void RolloutCoordinator::CountDropped(const GroupKey& key, DropReason reason, size_t samples) {
  if (key.purpose != Purpose::kTrain || samples == 0) return;
  // Those that the sink is given are counted by whoever takes them.
  metrics_.samples.Increment(static_cast<double>(samples));
  metrics_.samples_dropped[Name(reason)].Increment(static_cast<double>(samples));
}

}  // namespace halfstep
