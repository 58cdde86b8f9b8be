// SPDX-License-Identifier: Apache-2.0
// Gloo's own rendezvous (Context::connectFullMesh) waits up to five times its timeout for each peer
// in turn and cannot say who is missing. Here ranks first announce themselves, so that the absent
// are known, and then make one connection at a time, in the order of pairs of ranks, each with the
// time that is left.
#include "common/collective/gloo_mesh.h"

#include <signal.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <exception>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/base/error_reason.h"
#include "common/base/status_macros.h"
#include "gloo/transport/address.h"

namespace halfstep {
namespace {

// Gloo waits for a connection this many times the timeout of its pair.
constexpr int kConnectTimeouts = 5;

// How often a wait looks at its deadline and at the peers it needs.
constexpr int64_t kTickNanoseconds = 20'000'000;
// Longer than any deadline is away.
constexpr std::chrono::milliseconds kNever = std::chrono::hours(24 * 365);

// No message has this tag.
constexpr uint64_t kNeverSent = ~uint64_t{0};

// What is left until `deadline`, at least 1 ms (0 and -1 have meanings of their own for gloo), at
// most a day.
std::chrono::milliseconds Remaining(absl::Time deadline) {
  const absl::Duration left =
      std::clamp(deadline - absl::Now(), absl::Milliseconds(1), absl::Hours(24));
  return std::chrono::milliseconds(absl::ToInt64Milliseconds(left + absl::Microseconds(999)));
}

absl::Status TransportError(const std::string& who, const std::string& detail) {
  return Error(absl::StatusCode::kInternal, "COLLECTIVE_TRANSPORT",
               absl::StrCat(who, " failed: ", detail));
}

// One rank on its way into the mesh. Methods return what CollectiveError says it of `peers`.
struct Joining {
  const GlooOptions& options;
  const absl::Time deadline;
  gloo::transport::Context* const context;
  std::vector<int> peers;  // whom it waits for

  std::string Key(const std::string& name) const {
    return absl::StrCat(options.name, "/", options.membership.epoch, "/", name);
  }
  absl::Status Set(const std::string& name, const std::string& value) const;
  absl::StatusOr<std::string> Get(const std::string& name) const;
  // Announces this rank and waits for all others to have done so.
  absl::Status MeetAll();
  // Connects with all others. Both ends of a pair come to it at the same time, since every rank
  // takes its peers in ascending order: of the pairs of ranks that are not connected yet, the
  // first by (lower, higher) always can be.
  absl::Status ConnectAll();
  absl::Status ConnectTo(int peer) const;
};

absl::Status Joining::Set(const std::string& name, const std::string& value) const {
  const absl::Status status = options.store->Set(Key(name), value);
  if (status.ok()) return status;
  return TransportError("the rendezvous store", std::string(status.message()));
}

absl::StatusOr<std::string> Joining::Get(const std::string& name) const {
  absl::StatusOr<std::string> value = options.store->Get(Key(name), deadline);
  if (value.ok() || absl::IsDeadlineExceeded(value.status())) return value;
  return TransportError("the rendezvous store", std::string(value.status().message()));
}

absl::Status Joining::MeetAll() {
  HALFSTEP_RETURN_IF_ERROR(Set(absl::StrCat("here/", options.membership.rank), "here"));
  for (int peer = 0; peer < options.membership.size; ++peer) {
    // Once the deadline has come, the rest are only looked up.
    const absl::Status status = Get(absl::StrCat("here/", peer)).status();
    if (absl::IsDeadlineExceeded(status)) {
      peers.push_back(peer);
    } else if (!status.ok()) {
      return status;
    }
  }
  return peers.empty() ? absl::OkStatus() : TimeoutOf(peers);
}

absl::Status Joining::ConnectAll() {
  for (int peer = 0; peer < options.membership.size; ++peer) {
    if (peer == options.membership.rank) continue;
    peers = {peer};
    // Rounded up, so that gloo does not give up before the deadline.
    context->setTimeout((Remaining(deadline) + std::chrono::milliseconds(kConnectTimeouts - 1)) /
                        kConnectTimeouts);
    try {
      HALFSTEP_RETURN_IF_ERROR(ConnectTo(peer));
    } catch (const std::exception& error) {
      return absl::Now() >= deadline ? TimeoutOf(peers) : LostPeer(peer, error.what());
    }
  }
  return absl::OkStatus();
}

absl::Status Joining::ConnectTo(int peer) const {
  const int rank = options.membership.rank;
  const auto& pair = context->createPair(peer);
  const std::vector<char> mine = pair->address().bytes();
  HALFSTEP_RETURN_IF_ERROR(
      Set(absl::StrCat("address/", rank, "/", peer), std::string(mine.begin(), mine.end())));
  const absl::StatusOr<std::string> theirs = Get(absl::StrCat("address/", peer, "/", rank));
  if (absl::IsDeadlineExceeded(theirs.status())) return TimeoutOf(peers);
  if (!theirs.ok()) return theirs.status();
  pair->connect(std::vector<char>(theirs->begin(), theirs->end()));
  return absl::OkStatus();
}

}  // namespace

SigpipeBlock::SigpipeBlock() {
  sigset_t pipe, old;
  sigemptyset(&pipe);
  sigaddset(&pipe, SIGPIPE);
  pthread_sigmask(SIG_BLOCK, &pipe, &old);
  was_blocked_ = sigismember(&old, SIGPIPE) == 1;
}

SigpipeBlock::~SigpipeBlock() {
  if (was_blocked_) return;
  sigset_t pipe;
  sigemptyset(&pipe);
  sigaddset(&pipe, SIGPIPE);
  const timespec no_wait{};
  while (sigtimedwait(&pipe, nullptr, &no_wait) == SIGPIPE) {
  }
  pthread_sigmask(SIG_UNBLOCK, &pipe, nullptr);
}

absl::StatusOr<std::unique_ptr<GlooMesh>> GlooMesh::Connect(const GlooOptions& options,
                                                            const Operation& form) {
  const SigpipeBlock no_sigpipe;
  const Membership& me = options.membership;
  std::unique_ptr<GlooMesh> mesh(new GlooMesh());
  gloo::transport::tcp::attr attributes;
  attributes.iface = options.interface;
  attributes.hostname = options.host;
  try {
    mesh->device_ = std::dynamic_pointer_cast<gloo::transport::tcp::Device>(
        gloo::transport::tcp::CreateDevice(attributes));
    mesh->context_ = mesh->device_->createContext(me.rank, me.size);
  } catch (const std::exception& error) {
    return CollectiveError(
        form, me,
        TransportError(
            "gloo",
            absl::StrCat(error.what(), ": give an interface or address of this ",
                         "machine instead of \"",
                         options.interface.empty() ? options.host : options.interface, "\"")),
        {});
  }
  Joining joining{options, form.call->deadline, mesh->context_.get(), {}};
  absl::Status status = joining.MeetAll();
  if (status.ok()) status = joining.ConnectAll();
  if (status.ok()) status = mesh->StartWatching();
  if (!status.ok()) return CollectiveError(form, me, status, joining.peers);
  return mesh;
}

// Runs on gloo's thread, beside the sockets.
class GlooMesh::Ticker : public gloo::transport::tcp::Handler {
 public:
  Ticker(GlooMesh* mesh, int timer) : mesh_(mesh), timer_(timer) {
    mesh_->device_->registerDescriptor(timer_, EPOLLIN, this);
  }
  ~Ticker() override {
    mesh_->device_->unregisterDescriptor(timer_, this);
    close(timer_);
  }

  void handleEvents(int) override {
    uint64_t ticks = 0;
    if (read(timer_, &ticks, sizeof(ticks)) > 0) mesh_->Wake();
  }

 private:
  GlooMesh* const mesh_;
  const int timer_;
};

GlooMesh::GlooMesh() = default;

GlooMesh::~GlooMesh() { ticker_.reset(); }

absl::Status GlooMesh::StartWatching() {
  try {
    never_sent_.resize(context_->size);
    for (int peer = 0; peer < context_->size; ++peer) {
      if (peer == context_->rank) continue;
      never_sent_[peer] = context_->createUnboundBuffer(&nothing_, 1);
      never_sent_[peer]->recv(peer, kNeverSent);
    }
  } catch (const std::exception& error) {
    return TransportError("gloo", error.what());
  }
  const int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
  if (timer < 0) return TransportError("timerfd_create", std::strerror(errno));
  const itimerspec period{{0, kTickNanoseconds}, {0, kTickNanoseconds}};
  timerfd_settime(timer, 0, &period, nullptr);
  ticker_ = std::make_unique<Ticker>(this, timer);
  return absl::OkStatus();
}

bool GlooMesh::IsGone(int peer) {
  try {
    // Interrupted beforehand: returns at once, or throws what has become of the connection.
    never_sent_[peer]->abortWaitRecv();
    never_sent_[peer]->waitRecv(nullptr, std::chrono::milliseconds(1));
    return false;
  } catch (const std::exception&) {
    return true;
  }
}

void GlooMesh::SetAwaited(Buffer* buffer) {
  absl::MutexLock lock(&mutex_);
  awaited_ = buffer;
}

void GlooMesh::Wake() {
  absl::MutexLock lock(&mutex_);
  if (awaited_ == nullptr) return;
  awaited_->abortWaitRecv();
  awaited_->abortWaitSend();
}

bool GlooMesh::aborted() {
  absl::MutexLock lock(&mutex_);
  return aborted_;
}

void GlooMesh::Abort() {
  {
    absl::MutexLock lock(&mutex_);
    aborted_ = true;
  }
  Wake();
}

void GlooTransfers::Send(int peer, uint64_t tag, const void* data, size_t bytes) {
  if (bytes == 0 || failure_) return;
  // Gloo has one type of buffer for both directions; it only reads one that is sent.
  Start({peer, false, false, mesh_->context_->createUnboundBuffer(const_cast<void*>(data), bytes)},
        tag);
}

void GlooTransfers::Receive(int peer, uint64_t tag, void* data, size_t bytes) {
  if (bytes == 0 || failure_) return;
  Start({peer, true, false, mesh_->context_->createUnboundBuffer(data, bytes)}, tag);
}

void GlooTransfers::Start(Pending pending, uint64_t tag) {
  try {
    if (pending.receives) {
      pending.buffer->recv(pending.peer, tag);
    } else {
      pending.buffer->send(pending.peer, tag);
    }
  } catch (const std::exception& error) {
    failure_ =
        TransferFailure{TransferFailure::Kind::kLost, {pending.peer}, std::string(error.what())};
  }
  pending_.push_back(std::move(pending));
}

std::optional<TransferFailure> GlooTransfers::Wait(absl::Time deadline) {
  if (!failure_) failure_ = WaitForAll(deadline);
  mesh_->SetAwaited(nullptr);
  pending_.clear();
  if (failure_ && mesh_->aborted()) failure_->kind = TransferFailure::Kind::kAborted;
  return failure_;
}

std::optional<TransferFailure> GlooTransfers::WaitForAll(absl::Time deadline) {
  for (Pending& pending : pending_) {
    mesh_->SetAwaited(pending.buffer.get());
    while (!pending.done) {
      if (mesh_->aborted()) return TransferFailure{TransferFailure::Kind::kAborted, {}, ""};
      try {
        pending.done = Await(&pending, kNever);
      } catch (const std::exception& error) {
        return TransferFailure{TransferFailure::Kind::kLost, {pending.peer}, error.what()};
      }
      if (pending.done) break;
      if (auto lost = FindLost()) return lost;
      if (absl::Now() >= deadline) return TimedOut();  // or done in the last moment
    }
  }
  return std::nullopt;
}

bool GlooTransfers::Await(Pending* pending, std::chrono::milliseconds timeout) {
  return pending->receives ? pending->buffer->waitRecv(nullptr, timeout)
                           : pending->buffer->waitSend(nullptr, timeout);
}

bool GlooTransfers::IsDone(Pending* pending) {
  // A second time, for the first may only find that it was to be interrupted.
  for (int attempt = 0; attempt < 2 && !pending->done; ++attempt) {
    try {
      pending->done = Await(pending, std::chrono::milliseconds(1));
    } catch (const std::exception&) {
      return false;
    }
  }
  return pending->done;
}

std::optional<TransferFailure> GlooTransfers::FindLost() {
  for (Pending& pending : pending_) {
    if (pending.done || !mesh_->IsGone(pending.peer) || IsDone(&pending)) continue;
    return TransferFailure{
        TransferFailure::Kind::kLost, {pending.peer}, "its connection was closed"};
  }
  return std::nullopt;
}

std::optional<TransferFailure> GlooTransfers::TimedOut() {
  TransferFailure failure{TransferFailure::Kind::kTimeout, {}, "the deadline has come"};
  for (Pending& pending : pending_) {
    if (!IsDone(&pending)) failure.peers.push_back(pending.peer);
  }
  if (failure.peers.empty()) return std::nullopt;
  std::sort(failure.peers.begin(), failure.peers.end());
  failure.peers.erase(std::unique(failure.peers.begin(), failure.peers.end()), failure.peers.end());
  return failure;
}

}  // namespace halfstep
