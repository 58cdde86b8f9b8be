// SPDX-License-Identifier: Apache-2.0
// A stack of chunks: chunks never move, so that what a scope handed out stays valid while it grows.
#include "kernels/workspace.h"

#include <algorithm>

#include "kernels/buffer.h"

namespace halfstep {
namespace {

constexpr size_t kAlignment = 64;

}  // namespace

struct Workspace::Chunk {
  explicit Chunk(size_t size, Device device) : buffer("workspace", size, device) {}
  Buffer buffer;
};

Workspace::Workspace(Device device, size_t chunk_bytes)
    : device_(device), chunk_bytes_(chunk_bytes) {}

Workspace::~Workspace() = default;

Workspace::Scope::Scope(Workspace* workspace)
    : workspace_(workspace), chunk_(workspace->current_), used_(workspace->used_) {}

Workspace::Scope::~Scope() {
  workspace_->current_ = chunk_;
  workspace_->used_ = used_;
}

void* Workspace::Scope::Bytes(size_t bytes) {
  Workspace& w = *workspace_;
  const size_t wanted = std::max((bytes + kAlignment - 1) / kAlignment * kAlignment, kAlignment);
  // What is left of a chunk that is too small stays unused until the scope ends.
  while (w.current_ < w.chunks_.size() &&
         w.chunks_[w.current_]->buffer.bytes() - w.used_ < wanted) {
    ++w.current_;
    w.used_ = 0;
  }
  if (w.current_ == w.chunks_.size()) {
    w.chunks_.push_back(std::make_unique<Chunk>(std::max(wanted, w.chunk_bytes_), w.device_));
  }
  char* const data = static_cast<char*>(w.chunks_[w.current_]->buffer.data()) + w.used_;
  w.used_ += wanted;

  size_t in_use = w.used_;
  for (size_t i = 0; i < w.current_; ++i) in_use += w.chunks_[i]->buffer.bytes();
  w.high_water_ = std::max(w.high_water_, in_use);
  return data;
}

Tensor Workspace::Scope::Take(DType dtype, Shape shape) {
  return Tensor(Bytes(static_cast<size_t>(shape.elements()) * SizeOf(dtype)), dtype, shape,
                workspace_->device_);
}

}  // namespace halfstep
