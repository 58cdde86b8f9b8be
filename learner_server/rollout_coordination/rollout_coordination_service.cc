// SPDX-License-Identifier: Apache-2.0
#include "learner_server/rollout_coordination/rollout_coordination_service.h"

#include <utility>

#include "absl/time/clock.h"
#include "common/rpc/status.h"

namespace halfstep {
namespace {

constexpr absl::Duration kTick = absl::Milliseconds(100);
// What a closed stream may take to write what is queued.
constexpr absl::Duration kCloseGrace = absl::Seconds(5);

// Deletes itself when gRPC is done with it.
class AttachReactor final : public grpc::ServerBidiReactor<v1::RolloutMessage, v1::LearnerMessage>,
                            public StreamWriter {
 public:
  AttachReactor(RolloutCoordinator* coordinator, grpc::CallbackServerContext* context)
      : coordinator_(coordinator),
        context_(context),
        outbox_(std::make_shared<StreamOutbox>(this, StreamOutbox::Limits())),
        session_(coordinator->Attach(outbox_)) {
    if (!outbox_->closed()) StartRead(&incoming_);
  }

  const std::shared_ptr<StreamOutbox>& outbox() const { return outbox_; }

  // The next message is read once this one was taken in: what a rollout sends too fast waits in its
  // own flow-control window.
  void OnReadDone(bool ok) override {
    if (!ok) {
      coordinator_->OnClosed(session_);
      outbox_->Close(absl::OkStatus());
      return;
    }
    coordinator_->OnMessage(session_, std::move(incoming_));
    if (outbox_->closed()) return;
    incoming_.Clear();
    StartRead(&incoming_);
  }
  void OnWriteDone(bool ok) override { outbox_->Written(ok); }
  void OnDone() override {
    coordinator_->OnClosed(session_);
    outbox_->Detach();
    delete this;
  }

  void Write(const v1::LearnerMessage* message) override { StartWrite(message); }
  void End(const absl::Status& why) override { Finish(ToGrpcStatus(why)); }
  void Cancel() override { context_->TryCancel(); }

 private:
  RolloutCoordinator* const coordinator_;
  grpc::CallbackServerContext* const context_;
  const std::shared_ptr<StreamOutbox> outbox_;
  const SessionId session_;
  v1::RolloutMessage incoming_;
};

}  // namespace

RolloutCoordinationService::RolloutCoordinationService(RolloutCoordinator* coordinator)
    : coordinator_(coordinator), ticker_([this] { TickUntilStopped(); }) {}

RolloutCoordinationService::~RolloutCoordinationService() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  ticker_.join();
}

grpc::ServerBidiReactor<v1::RolloutMessage, v1::LearnerMessage>* RolloutCoordinationService::Attach(
    grpc::CallbackServerContext* context) {
  auto* reactor = new AttachReactor(coordinator_, context);
  absl::MutexLock lock(&mutex_);
  outboxes_.push_back(reactor->outbox());
  return reactor;
}

void RolloutCoordinationService::TickUntilStopped() {
  while (true) {
    std::vector<std::shared_ptr<StreamOutbox>> outboxes;
    {
      absl::MutexLock lock(&mutex_);
      if (mutex_.AwaitWithTimeout(absl::Condition(&stopping_), kTick)) return;
      std::erase_if(outboxes_, [](const auto& outbox) { return outbox.expired(); });
      for (const auto& weak : outboxes_) {
        if (auto outbox = weak.lock()) outboxes.push_back(std::move(outbox));
      }
    }
    coordinator_->Tick();
    for (const auto& outbox : outboxes) outbox->CancelIfStuck(absl::Now(), kCloseGrace);
  }
}

}  // namespace halfstep
