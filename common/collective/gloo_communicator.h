// SPDX-License-Identifier: Apache-2.0
// GlooCommunicator: ranks are processes (or threads) that are connected by TCP; memory is the
// CPU's.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "common/collective/communicator.h"
#include "common/collective/gloo_mesh.h"
#include "common/collective/rank_tree.h"

namespace halfstep {

// Each call begins with an exchange of records between all ranks: it finds those who do not come or
// call something else before data moves. Shards then go straight from rank to rank, n - 1 messages
// out and in, and are added here; a broadcast is n - 1 copies from the root.
//
// A peer that dies or aborts is noticed at once by those that wait for it, one that stops at the
// deadline. Who gives up writes why into the rendezvous store, so that all blame the same ranks, as
// long as their deadlines are less than half a second apart; looking there takes up to that long.
//
// Gloo ends the process when bytes that are not its own arrive on its sockets.
class GlooCommunicator : public Communicator {
 public:
  // Collective: every rank of the epoch calls this, on the thread that will own the communicator.
  // Returns when all are connected. `call.deadline` counts, and the errors are Communicator's, with
  // COLLECTIVE_TRANSPORT for an interface or address that this machine has not.
  static absl::StatusOr<std::unique_ptr<GlooCommunicator>> Form(const GlooOptions& options,
                                                                const CollectiveCall& call);
  ~GlooCommunicator() override = default;

 private:
  GlooCommunicator(const GlooOptions& options, std::shared_ptr<GlooMesh> mesh);

  absl::Status Run(const Operation& operation) override;
  void Discard(const absl::Status& failure) override;
  void Wake() override;

  absl::Status Move(const Operation& operation);
  // Every rank has come and calls the same.
  absl::Status Meet(const Operation& operation);
  absl::Status SendFromRoot(const Operation& operation);
  // `out` = this rank's chunk of `total` elements, reduced over the ranks' operation.send.
  absl::Status ReduceChunks(const Operation& operation, int64_t total, void* out);
  // Every rank's chunk of the `total` elements at operation.receive, where this rank's lies.
  absl::Status GatherChunks(const Operation& operation, int64_t total);
  absl::Status Finish(const Operation& operation, GlooTransfers* transfers);
  absl::Status Failed(const Operation& operation, const TransferFailure& failure);

  // Why a rank gave up, and on whom: nobody when the cause is its own.
  struct LastWords {
    absl::Status what;
    std::vector<int> peers;
  };
  // Into the store, for those who wait for this rank in vain. Once. From any thread.
  void Say(const absl::Status& what, const std::vector<int>& peers);
  std::optional<LastWords> WordsOf(int peer, absl::Time deadline) const;
  // Who is to blame: of the ranks that this rank waited for, those that said nothing, and in place
  // of one that gave up on others those others, and so on.
  std::vector<int> FindSilent(const std::vector<int>& waited_for, absl::Time deadline) const;

  // Of the next exchange in this operation.
  uint64_t NextTag(const Operation& operation) { return operation.sequence << 20 | ++exchange_; }
  std::string GaveUpKey(int rank) const;

  const GlooOptions options_;
  GlooMesh* running_mesh_ = nullptr;  // while an operation runs: mesh_, which Abort lets be then
  uint64_t exchange_ = 0;
  std::atomic<bool> said_{false};
  std::vector<char> scratch_;  // shards of the other ranks

  absl::Mutex mutex_;
  bool running_ ABSL_GUARDED_BY(mutex_) = false;
  std::shared_ptr<GlooMesh> mesh_ ABSL_GUARDED_BY(mutex_);  // null: one rank, or discarded
};

}  // namespace halfstep
