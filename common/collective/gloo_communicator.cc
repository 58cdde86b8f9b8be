// SPDX-License-Identifier: Apache-2.0
#include "common/collective/gloo_communicator.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "common/base/error_reason.h"
#include "common/base/status_macros.h"
#include "kernels/check.h"

namespace halfstep {
namespace {

// Of each peer's shard that is held at a time: bounds the scratch memory.
constexpr int64_t kSliceBytes = int64_t{1} << 20;

// How long a peer that this rank waited for in vain is given to have said why. One that died or
// stopped never does.
constexpr absl::Duration kLastWords = absl::Milliseconds(500);

const CollectiveCall kNoCall{"between calls", 0, absl::InfinitePast()};

int64_t BytesOf(const Operation& operation, int64_t elements) {
  return elements * static_cast<int64_t>(SizeOf(operation.dtype));
}

}  // namespace

absl::StatusOr<std::unique_ptr<GlooCommunicator>> GlooCommunicator::Form(
    const GlooOptions& options, const CollectiveCall& call) {
  const Operation form{.kind = OperationKind::kForm, .call = &call};
  std::shared_ptr<GlooMesh> mesh;
  if (options.membership.size > 1) {
    HALFSTEP_ASSIGN_OR_RETURN(mesh, GlooMesh::Connect(options, form));
  }
  std::unique_ptr<GlooCommunicator> communicator(new GlooCommunicator(options, std::move(mesh)));
  // The others have connected with each other too, and mean the same set of ranks.
  const absl::Status status = communicator->Run(form);
  if (!status.ok()) {
    communicator->Discard(status);
    return status;
  }
  return communicator;
}

GlooCommunicator::GlooCommunicator(const GlooOptions& options, std::shared_ptr<GlooMesh> mesh)
    : Communicator(options.membership, DeviceType::kCpu),
      options_(options),
      mesh_(std::move(mesh)) {}

std::string GlooCommunicator::GaveUpKey(int rank) const {
  return absl::StrCat(options_.name, "/", epoch(), "/gave_up/", rank);
}

absl::Status GlooCommunicator::Run(const Operation& operation) {
  const SigpipeBlock no_sigpipe;
  std::shared_ptr<GlooMesh> mesh;
  {
    absl::MutexLock lock(&mutex_);
    if (size() > 1 && mesh_ == nullptr) return AbortedError(operation);
    running_ = true;
    mesh = mesh_;
  }
  running_mesh_ = mesh.get();
  exchange_ = 0;
  absl::Status status = Meet(operation);
  if (status.ok()) status = Move(operation);
  absl::MutexLock lock(&mutex_);
  running_ = false;
  return status;
}

absl::Status GlooCommunicator::Move(const Operation& operation) {
  const int64_t total = TotalElements(operation, size());
  char* const data = static_cast<char*>(operation.receive);
  switch (operation.kind) {
    case OperationKind::kForm:
    case OperationKind::kBarrier:
      break;
    case OperationKind::kBroadcast:
      return SendFromRoot(operation);
    case OperationKind::kAllReduce: {
      char* const mine = data + BytesOf(operation, ChunkOf(total, size(), rank()).begin);
      HALFSTEP_RETURN_IF_ERROR(ReduceChunks(operation, total, mine));
      return GatherChunks(operation, total);
    }
    case OperationKind::kReduceScatter:
      return ReduceChunks(operation, total, operation.receive);
    case OperationKind::kAllGather: {
      const int64_t bytes = BytesOf(operation, operation.count);
      char* const mine = data + rank() * bytes;
      if (bytes > 0 && mine != operation.send) std::memcpy(mine, operation.send, bytes);
      return GatherChunks(operation, total);
    }
  }
  return absl::OkStatus();
}

absl::Status GlooCommunicator::Meet(const Operation& operation) {
  std::vector<CallRecord> records(size());
  records[rank()] = RecordOf(operation, membership());
  const uint64_t tag = NextTag(operation);
  GlooTransfers transfers(running_mesh_);
  for (int peer = 0; peer < size(); ++peer) {
    if (peer == rank()) continue;
    transfers.Receive(peer, tag, &records[peer], sizeof(CallRecord));
    transfers.Send(peer, tag, &records[rank()], sizeof(CallRecord));
  }
  HALFSTEP_RETURN_IF_ERROR(Finish(operation, &transfers));
  const std::optional<int> other = FindMismatch(records, rank());
  if (!other) return absl::OkStatus();
  return CollectiveError(operation, membership(), MismatchOf(records, rank(), *other), {*other});
}

absl::Status GlooCommunicator::SendFromRoot(const Operation& operation) {
  const int64_t bytes = BytesOf(operation, operation.count);
  const uint64_t tag = NextTag(operation);
  GlooTransfers transfers(running_mesh_);
  if (rank() != operation.root) {
    transfers.Receive(operation.root, tag, operation.receive, bytes);
  } else {
    for (int peer = 0; peer < size(); ++peer) {
      if (peer != rank()) transfers.Send(peer, tag, operation.send, bytes);
    }
  }
  return Finish(operation, &transfers);
}

absl::Status GlooCommunicator::ReduceChunks(const Operation& operation, int64_t total, void* out) {
  const int64_t slice = kSliceBytes / static_cast<int64_t>(SizeOf(operation.dtype));
  const Chunk mine = ChunkOf(total, size(), rank());
  const int64_t longest = LongestChunk(total, size());
  scratch_.resize(BytesOf(operation, std::min(slice, mine.count())) * (size() - 1));
  const char* const data = static_cast<const char*>(operation.send);
  for (int64_t begin = 0; begin < longest; begin += slice) {
    const Chunk here = SliceOf(mine, begin, slice);
    const uint64_t tag = NextTag(operation);
    GlooTransfers transfers(running_mesh_);
    std::vector<const void*> shards;
    char* next = scratch_.data();
    for (int peer = 0; peer < size(); ++peer) {
      if (peer == rank()) {
        shards.push_back(data + BytesOf(operation, here.begin));
        continue;
      }
      const Chunk there = SliceOf(ChunkOf(total, size(), peer), begin, slice);
      transfers.Receive(peer, tag, next, BytesOf(operation, here.count()));
      transfers.Send(peer, tag, data + BytesOf(operation, there.begin),
                     BytesOf(operation, there.count()));
      shards.push_back(next);
      next += BytesOf(operation, here.count());
    }
    HALFSTEP_RETURN_IF_ERROR(Finish(operation, &transfers));
    if (here.count() > 0) {
      ReduceShards({shards, here.count(), operation.dtype}, operation.reduce,
                   static_cast<char*>(out) + BytesOf(operation, here.begin - mine.begin));
    }
  }
  return absl::OkStatus();
}

absl::Status GlooCommunicator::GatherChunks(const Operation& operation, int64_t total) {
  const uint64_t tag = NextTag(operation);
  GlooTransfers transfers(running_mesh_);
  const auto at = [&](const Chunk& chunk) {
    return static_cast<char*>(operation.receive) + BytesOf(operation, chunk.begin);
  };
  const Chunk mine = ChunkOf(total, size(), rank());
  for (int peer = 0; peer < size(); ++peer) {
    if (peer == rank()) continue;
    const Chunk theirs = ChunkOf(total, size(), peer);
    transfers.Receive(peer, tag, at(theirs), BytesOf(operation, theirs.count()));
    transfers.Send(peer, tag, at(mine), BytesOf(operation, mine.count()));
  }
  return Finish(operation, &transfers);
}

absl::Status GlooCommunicator::Finish(const Operation& operation, GlooTransfers* transfers) {
  if (size() == 1) return absl::OkStatus();
  const auto failure = transfers->Wait(operation.call->deadline);
  return failure ? Failed(operation, *failure) : absl::OkStatus();
}

absl::Status GlooCommunicator::Failed(const Operation& operation, const TransferFailure& failure) {
  if (failure.kind == TransferFailure::Kind::kAborted) return AbortedError(operation);
  const bool lost = failure.kind == TransferFailure::Kind::kLost;
  const int peer = failure.peers.front();
  absl::Status what = lost ? LostPeer(peer, failure.detail) : TimeoutOf(failure.peers);
  // Before looking at the others' words, which may look at these.
  Say(what, failure.peers);
  const absl::Time deadline = absl::Now() + kLastWords;
  const std::vector<int> to_blame = FindSilent(failure.peers, deadline);
  if (!lost) {
    what = TimeoutOf(to_blame);
  } else if (const auto words = WordsOf(peer, deadline)) {
    what = WithContext(words->what, absl::StrCat("rank ", peer, " gave up"));
  }
  return CollectiveError(operation, membership(), what, to_blame);
}

std::vector<int> GlooCommunicator::FindSilent(const std::vector<int>& waited_for,
                                              absl::Time deadline) const {
  std::vector<int> silent;
  std::vector<bool> seen(size());
  seen[rank()] = true;
  std::vector<int> next = waited_for;
  while (!next.empty()) {
    const int peer = next.back();
    next.pop_back();
    if (peer < 0 || peer >= size() || seen[peer]) continue;
    seen[peer] = true;
    const std::optional<LastWords> words = WordsOf(peer, deadline);
    if (!words || words->peers.empty()) {
      silent.push_back(peer);
    } else {
      next.insert(next.end(), words->peers.begin(), words->peers.end());
    }
  }
  std::sort(silent.begin(), silent.end());
  return silent.empty() ? waited_for : silent;
}

void GlooCommunicator::Say(const absl::Status& what, const std::vector<int>& peers) {
  if (said_.exchange(true)) return;
  // If the store fails too, peers say PEER_LOST of this rank.
  static_cast<void>(options_.store->Set(
      GaveUpKey(rank()), absl::StrCat(ReasonOf(what), "|", static_cast<int>(what.code()), "|",
                                      absl::StrJoin(peers, ","), "|", what.message())));
}

std::optional<GlooCommunicator::LastWords> GlooCommunicator::WordsOf(int peer,
                                                                     absl::Time deadline) const {
  const absl::StatusOr<std::string> said = options_.store->Get(GaveUpKey(peer), deadline);
  if (!said.ok()) return std::nullopt;
  const std::vector<std::string> fields = absl::StrSplit(*said, absl::MaxSplits('|', 3));
  int code = 0;
  if (fields.size() != 4 || !absl::SimpleAtoi(fields[1], &code)) return std::nullopt;
  LastWords words{Error(static_cast<absl::StatusCode>(code), fields[0], fields[3]), {}};
  for (const auto field : absl::StrSplit(fields[2], ',', absl::SkipEmpty())) {
    int blamed = 0;
    if (absl::SimpleAtoi(field, &blamed)) words.peers.push_back(blamed);
  }
  return words;
}

void GlooCommunicator::Discard(const absl::Status& failure) {
  std::shared_ptr<GlooMesh> mesh;
  {
    absl::MutexLock lock(&mutex_);
    mesh = std::exchange(mesh_, nullptr);
  }
  if (mesh != nullptr) Say(failure, {});
}

void GlooCommunicator::Wake() {
  std::shared_ptr<GlooMesh> mesh;
  {
    absl::MutexLock lock(&mutex_);
    if (running_) {
      if (mesh_ != nullptr) mesh_->Abort();  // The owner wakes and discards.
      return;
    }
    mesh = std::exchange(mesh_, nullptr);
  }
  if (mesh != nullptr) Say(AbortedError(Operation{.call = &kNoCall}), {});
}

}  // namespace halfstep
