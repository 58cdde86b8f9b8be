// SPDX-License-Identifier: Apache-2.0
#include "tests/testing/paced_rollout.h"

#include <gtest/gtest.h>

#include <limits>
#include <optional>
#include <utility>

#include "absl/time/clock.h"
#include "common/base/random_id.h"
#include "common/model/fingerprint.h"
#include "common/rpc/channel.h"
#include "common/weight_sync/weight_proto.h"
#include "halfstep/v1/rollout_coordination.pb.h"
#include "kernels/workspace.h"

namespace halfstep {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(60);
constexpr int64_t kAll = std::numeric_limits<int64_t>::max();

// No stream has this number.
constexpr uint64_t kProbe = 0;

}  // namespace

PacedRollout::PacedRollout(const Options& options) : allowed_(options.steps) {
  ChannelOptions channel_options;
  channel_options.target = options.learner;
  auto channel = MakeChannel(channel_options);
  EXPECT_TRUE(channel.ok()) << channel.status();

  Workspace workspace;
  ExecContext ctx;
  ctx.workspace = &workspace;
  AgentOptions agent;
  agent.rollout_id = options.id;
  agent.incarnation = RandomUuid();
  agent.numerics_fingerprint = NumericsFingerprint(ctx);
  agent.on_attached = [this](bool attached) {
    absl::MutexLock lock(&mutex_);
    attached_ = attached;
  };
  agent_ = std::make_unique<RolloutAgent>(std::move(agent));

  JobSessionOptions session;
  session.kv_cache_bytes = options.kv_cache_bytes;
  session.on_step = [this](const StepReport&, const EngineStats& stats) { OnStep(stats.steps); };
  session_ = std::make_unique<JobSession>(std::move(session), *channel, WatchedEvents());

  LinkOptions link;
  link.learner = options.learner;
  link_ = std::make_unique<LearnerLink>(std::move(link), *channel, this);
  agent_->Connect(session_.get(), link_.get(), /*address=*/"");
  link_->Start();
}

PacedRollout::~PacedRollout() {
  link_->Stop(absl::InfinitePast());
  AllowAllSteps();
  session_->Stop();
}

// Orders are carried out one after another: once the second order for the same weights is looked
// at, which finds them gone from where they were staged or served already, the engine has them.
JobSessionEvents PacedRollout::WatchedEvents() {
  JobSessionEvents events = agent_->SessionEvents();
  events.serving = [this, serving = events.serving](uint64_t order, uint64_t epoch,
                                                    const WeightIdentity& weights) {
    if (order != kProbe) return serving(order, epoch, weights);
    absl::MutexLock lock(&mutex_);
    version_given_ = static_cast<int64_t>(weights.version);
  };
  events.failed = [this, failed = events.failed](uint64_t order, uint64_t epoch,
                                                 const std::optional<WeightIdentity>& weights,
                                                 const absl::Status& why) {
    if (order != kProbe) return failed(order, epoch, weights, why);
    absl::MutexLock lock(&mutex_);
    version_given_ = static_cast<int64_t>(weights->version);
  };
  return events;
}

void PacedRollout::OnStep(int64_t steps) {
  absl::MutexLock lock(&mutex_);
  if (steps == steps_) return;
  steps_ = steps;
  auto may_go_on = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return steps_ < allowed_; };
  Await("to be allowed another step", absl::Condition(&may_go_on));
}

void PacedRollout::AllowSteps(int64_t steps) {
  absl::MutexLock lock(&mutex_);
  allowed_ = steps_ + steps;
}

void PacedRollout::AllowAllSteps() {
  absl::MutexLock lock(&mutex_);
  allowed_ = kAll;
}

void PacedRollout::Await(const char* what, const absl::Condition& condition) const {
  EXPECT_TRUE(mutex_.AwaitWithTimeout(condition, kPatience))
      << "waited " << kPatience << " " << what << ", after step " << steps_ << " of the engine";
}

void PacedRollout::AwaitAttached() {
  absl::MutexLock lock(&mutex_);
  Await("to be attached", absl::Condition(&attached_));
}

void PacedRollout::AwaitStill() {
  absl::MutexLock lock(&mutex_);
  auto still = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return steps_ >= allowed_; };
  Await("for the last step allowed", absl::Condition(&still));
}

void PacedRollout::AwaitWeights(uint64_t version) {
  absl::MutexLock lock(&mutex_);
  auto given = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return version_given_ >= static_cast<int64_t>(version);
  };
  Await("for new weights", absl::Condition(&given));
}

// ---- LinkPeer

void PacedRollout::OnOpened(uint64_t stream) { agent_->OnOpened(stream); }

void PacedRollout::OnClosed(uint64_t stream, const absl::Status& why) {
  agent_->OnClosed(stream, why);
}

void PacedRollout::OnMessage(uint64_t stream, const v1::LearnerMessage& message) {
  agent_->OnMessage(stream, message);
  if (message.has_commit_weights()) {
    const v1::CommitWeights& commit = message.commit_weights();
    session_->Commit(kProbe, commit.job_epoch(), FromProto(commit.weights()));
  }
}

bool PacedRollout::NextMessage(uint64_t stream, v1::RolloutMessage* message) {
  return agent_->NextMessage(stream, message);
}

}  // namespace halfstep
