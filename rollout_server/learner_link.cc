// SPDX-License-Identifier: Apache-2.0
#include "rollout_server/learner_link.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/base/logging.h"
#include "common/rpc/status.h"
#include "halfstep/v1/rollout_coordination.grpc.pb.h"

namespace halfstep {

LearnerLink::LearnerLink(LinkOptions options, std::shared_ptr<grpc::Channel> channel,
                         LinkPeer* peer)
    : options_(std::move(options)), channel_(std::move(channel)), peer_(peer) {}

LearnerLink::~LearnerLink() { Stop(absl::InfinitePast()); }

void LearnerLink::Start() {
  {
    absl::MutexLock lock(&mutex_);
    ended_ = false;
  }
  absl::MutexLock lock(&join_mutex_);
  thread_ = std::thread([this] { Run(); });
}

void LearnerLink::Wake() {
  absl::MutexLock lock(&mutex_);
  wake_ = true;
}

void LearnerLink::Reset() {
  absl::MutexLock lock(&mutex_);
  if (context_ != nullptr) context_->TryCancel();
}

void LearnerLink::Stop(absl::Time deadline) {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
    if (!open_ && context_ != nullptr) context_->TryCancel();
    if (!mutex_.AwaitWithDeadline(absl::Condition(&ended_), deadline) && context_ != nullptr) {
      context_->TryCancel();
    }
  }
  absl::MutexLock lock(&join_mutex_);
  if (thread_.joinable()) thread_.join();
}

bool LearnerLink::stopping() const {
  absl::MutexLock lock(&mutex_);
  return stopping_;
}

void LearnerLink::Run() {
  absl::Duration backoff = options_.first_backoff;
  for (uint64_t stream = 1; !stopping(); ++stream) {
    const absl::Time start = absl::Now();
    const absl::Status why = RunStream(stream);
    // A stream that lasted starts the waits afresh.
    if (absl::Now() - start > 2 * options_.longest_backoff) backoff = options_.first_backoff;
    absl::MutexLock lock(&mutex_);
    if (stopping_) break;
    LogWarning("not attached to the learner", {{"learner", options_.learner},
                                               {"code", absl::StatusCodeToString(why.code())},
                                               {"why", std::string(why.message())},
                                               {"retry_seconds", absl::ToDoubleSeconds(backoff)}});
    mutex_.AwaitWithTimeout(absl::Condition(&stopping_), backoff);
    backoff = std::min(2 * backoff, options_.longest_backoff);
  }
  absl::MutexLock lock(&mutex_);
  ended_ = true;
}

bool LearnerLink::Connect() {
  const absl::Time deadline = absl::Now() + options_.connect_timeout;
  while (!stopping() && absl::Now() < deadline) {
    if (channel_->WaitForConnected(absl::ToChronoTime(absl::Now() + options_.tick))) return true;
  }
  return false;
}

absl::Status LearnerLink::RunStream(uint64_t number) {
  if (!Connect()) {
    return absl::UnavailableError(absl::StrCat("no connection to ", options_.learner, " within ",
                                               absl::FormatDuration(options_.connect_timeout)));
  }
  // No deadline: the stream lasts as long as both sides do. Silence is the peer's to notice, and
  // keepalive ends a connection whose other end is gone.
  grpc::ClientContext context;
  {
    absl::MutexLock lock(&mutex_);
    if (stopping_) return absl::CancelledError("stopping");
    context_ = &context;
  }
  auto stub = v1::RolloutCoordinationService::NewStub(channel_);
  auto stream = stub->Attach(&context);
  peer_->OnOpened(number);
  {
    absl::MutexLock lock(&mutex_);
    open_ = true;
  }
  std::thread writer([&] { Write(number, stream.get()); });
  v1::LearnerMessage message;
  while (stream->Read(&message)) peer_->OnMessage(number, message);
  {
    absl::MutexLock lock(&mutex_);
    open_ = false;
  }
  // First the learner's reason, which a cancellation would hide; then a write that waits for a
  // learner that does not read any more must end too.
  absl::Status status = FromGrpcStatus(stream->Finish());
  context.TryCancel();
  writer.join();
  {
    absl::MutexLock lock(&mutex_);
    context_ = nullptr;
  }
  peer_->OnClosed(number, status);
  return status;
}

template <class Stream>
void LearnerLink::Write(uint64_t number, Stream* stream) {
  while (true) {
    bool last = false;
    {
      absl::MutexLock lock(&mutex_);
      auto ready = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
        return wake_ || stopping_ || !open_;
      };
      mutex_.AwaitWithTimeout(absl::Condition(&ready), options_.tick);
      if (!open_) return;
      wake_ = false;
      last = stopping_;
    }
    v1::RolloutMessage message;
    while (peer_->NextMessage(number, &message)) {
      if (!stream->Write(message)) return;
      message.Clear();
    }
    if (last) {
      stream->WritesDone();
      return;
    }
  }
}

}  // namespace halfstep
