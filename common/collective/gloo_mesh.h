// SPDX-License-Identifier: Apache-2.0
// The seam to gloo: a TCP connection between every two ranks, and transfers over them that end at a
// deadline, when a peer is gone, or when they are told to. Exceptions of gloo end here.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/collective/operation.h"
#include "common/collective/rendezvous_store.h"
#include "gloo/transport/context.h"
#include "gloo/transport/tcp/device.h"
#include "gloo/transport/unbound_buffer.h"

namespace halfstep {

struct GlooOptions {
  Membership membership;
  std::shared_ptr<RendezvousStore> store;  // the same to all ranks
  // Begins every key in the store. With the epoch, never used before there.
  std::string name = "halfstep";
  // Which address of this machine peers connect to: that of a network interface ("eth0"), or, when
  // that is empty, this host name or address. Connections are neither encrypted nor authenticated:
  // an address that strangers reach is a mistake.
  std::string interface;
  std::string host = "127.0.0.1";
};

// Writing to a connection that the peer has closed raises SIGPIPE, which gloo does not prevent.
// While one of these lives, its thread and those that it starts take an error instead.
class SigpipeBlock {
 public:
  SigpipeBlock();
  ~SigpipeBlock();
  SigpipeBlock(const SigpipeBlock&) = delete;
  SigpipeBlock& operator=(const SigpipeBlock&) = delete;

 private:
  bool was_blocked_ = false;
};

struct TransferFailure {
  enum class Kind { kTimeout, kLost, kAborted };
  Kind kind = Kind::kLost;
  std::vector<int> peers;  // whom it was waited for; at least one, but for kAborted
  std::string detail;      // gloo's words
};

// Owns one thread (gloo's), an epoll descriptor, a timer and a socket for each peer.
//
// Gloo's waits have two gaps. When a connection breaks, a wait for a message that is half sent or
// half received is not told; and a wait that times out breaks all connections. So no wait here
// times out: the timer wakes it many times a second to look at the deadline, and at the peers it
// needs. That a peer is gone shows in a message from it that is expected for ever.
class GlooMesh {
 public:
  // Connects this rank with all others, which do the same. The errors are those of CollectiveError
  // for `form`, whose deadline counts.
  static absl::StatusOr<std::unique_ptr<GlooMesh>> Connect(const GlooOptions& options,
                                                           const Operation& form);
  ~GlooMesh();

  // Transfers in progress end with kAborted, and so do all later ones. From any thread.
  void Abort();

 private:
  friend class GlooTransfers;
  class Ticker;
  using Buffer = gloo::transport::UnboundBuffer;
  GlooMesh();

  // After all pairs are connected.
  absl::Status StartWatching();
  // Its connection is broken.
  bool IsGone(int peer);
  // What Wake interrupts: the buffer that is being waited for, or null.
  void SetAwaited(Buffer* buffer);
  void Wake();
  bool aborted();

  // Destroyed last to first: the pairs before the device, whose thread serves them.
  std::shared_ptr<gloo::transport::tcp::Device> device_;
  std::shared_ptr<gloo::transport::Context> context_;
  std::vector<std::unique_ptr<Buffer>> never_sent_;  // by peer; null for this rank
  char nothing_ = 0;                                 // where those would go
  std::unique_ptr<Ticker> ticker_;

  absl::Mutex mutex_;
  bool aborted_ ABSL_GUARDED_BY(mutex_) = false;
  Buffer* awaited_ ABSL_GUARDED_BY(mutex_) = nullptr;
};

// A set of messages to and from peers that are waited for together. Memory given to it is in use
// until Wait returns, or until it is destroyed. Not thread-safe.
class GlooTransfers {
 public:
  explicit GlooTransfers(GlooMesh* mesh) : mesh_(mesh) {}
  GlooTransfers(const GlooTransfers&) = delete;
  GlooTransfers& operator=(const GlooTransfers&) = delete;

  // `tag` tells messages between the same two ranks apart. Nothing is done for 0 bytes, on either
  // side.
  void Send(int peer, uint64_t tag, const void* data, size_t bytes);
  void Receive(int peer, uint64_t tag, void* data, size_t bytes);

  // Waits for all of them. After a failure the mesh is of no more use: its connections may be
  // closed.
  std::optional<TransferFailure> Wait(absl::Time deadline);

 private:
  struct Pending {
    int peer = 0;
    bool receives = false;
    bool done = false;
    std::unique_ptr<gloo::transport::UnboundBuffer> buffer;
  };

  // Starts one; a failure is kept for Wait.
  void Start(Pending pending, uint64_t tag);
  // Whether it is done; false when the wait was interrupted. Throws gloo's exceptions.
  static bool Await(Pending* pending, std::chrono::milliseconds timeout);
  // The same, without waiting. When it is not, all connections are broken.
  static bool IsDone(Pending* pending);
  std::optional<TransferFailure> WaitForAll(absl::Time deadline);
  // A peer that is gone and whose messages are not all done.
  std::optional<TransferFailure> FindLost();
  // The peers whose messages are not all done at the deadline; nothing if there are none.
  std::optional<TransferFailure> TimedOut();

  GlooMesh* const mesh_;
  std::vector<Pending> pending_;
  std::optional<TransferFailure> failure_;
};

}  // namespace halfstep
