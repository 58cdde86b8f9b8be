// SPDX-License-Identifier: Apache-2.0
#include "common/model/batch_indices.h"

#include <algorithm>
#include <initializer_list>

#include "kernels/stream.h"

namespace halfstep {
namespace {

// So that each tensor begins at a multiple of 64 bytes.
constexpr int64_t kAlignment = 16;

struct Placement {
  const std::vector<int32_t>& indices;
  ConstTensor& view;
};

int64_t PaddedCount(const std::vector<int32_t>& indices) {
  return (static_cast<int64_t>(indices.size()) + kAlignment - 1) / kAlignment * kAlignment;
}

void Place(const ExecContext& ctx, Workspace::Scope* scratch,
           std::initializer_list<Placement> placements) {
  if (ctx.device == kCpuDevice) {
    for (const Placement& p : placements) {
      p.view = {p.indices.data(), DType::kInt32, {static_cast<int64_t>(p.indices.size())}};
    }
    return;
  }
  int64_t total = 0;
  for (const Placement& p : placements) total += PaddedCount(p.indices);
  std::vector<int32_t> host(static_cast<size_t>(total));
  const Tensor device = scratch->Take(DType::kInt32, {total});
  int64_t at = 0;
  for (const Placement& p : placements) {
    std::copy(p.indices.begin(), p.indices.end(), host.begin() + at);
    p.view = device.Rows(at, static_cast<int64_t>(p.indices.size()));
    at += PaddedCount(p.indices);
  }
  ctx.stream->Copy(ConstTensor(host.data(), DType::kInt32, {total}), device);
}

}  // namespace

ConstTensor IndicesOf(const ExecContext& ctx, const std::vector<int32_t>& indices,
                      Workspace::Scope* scratch) {
  ConstTensor view;
  Place(ctx, scratch, {{indices, view}});
  return view;
}

PackedIndices IndicesOf(const ExecContext& ctx, const PackedBatch& batch,
                        Workspace::Scope* scratch) {
  PackedIndices out;
  Place(ctx, scratch,
        {{batch.tokens, out.tokens},
         {batch.positions, out.positions},
         {batch.cu_seqlens, out.cu_seqlens},
         {batch.logit_rows, out.logit_rows}});
  return out;
}

StepIndices IndicesOf(const ExecContext& ctx, const StepBatch& batch, Workspace::Scope* scratch) {
  StepIndices out;
  Place(ctx, scratch,
        {{batch.tokens, out.tokens},
         {batch.positions, out.positions},
         {batch.slots, out.slots},
         {batch.query_start, out.query_start},
         {batch.context, out.context},
         {batch.block_tables, out.block_tables},
         {batch.logit_rows, out.logit_rows}});
  out.block_tables =
      out.block_tables.Reshape({static_cast<int64_t>(batch.context.size()), batch.max_blocks});
  return out;
}

}  // namespace halfstep
