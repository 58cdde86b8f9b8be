// SPDX-License-Identifier: Apache-2.0
// How CPU operations use the context's thread pool and its saturation counter.
#pragma once

#include <cstdint>
#include <functional>

#include "kernels/exec_context.h"
#include "kernels/thread_pool.h"

namespace halfstep::cpu {

// Threads that ParallelFor can use; its `thread` argument is below this.
inline int Threads(const ExecContext& ctx) {
  return ctx.threads == nullptr ? 1 : ctx.threads->threads();
}

// Calls body(task, thread) for every task in [0, tasks). A body must compute the same bits
// whichever thread runs it. Allocates nothing.
template <class Body>
void ParallelFor(const ExecContext& ctx, int64_t tasks, const Body& body) {
  if (tasks <= 1 || Threads(ctx) == 1) {
    for (int64_t task = 0; task < tasks; ++task) body(task, 0);
    return;
  }
  ctx.threads->ParallelFor(tasks, std::cref(body));
}

// The same over [0, items) in ranges body(begin, end, thread) of at least `grain` items: choose it
// so that a range takes some ten microseconds, below which waking another thread does not pay.
template <class Body>
void ParallelRanges(const ExecContext& ctx, int64_t items, int64_t grain, const Body& body) {
  if (items <= 0) return;
  const int64_t most = int64_t{4} * Threads(ctx);
  int64_t ranges = items / (grain < 1 ? 1 : grain);
  if (ranges > most) ranges = most;
  if (ranges <= 1 || Threads(ctx) == 1) {
    body(int64_t{0}, items, 0);
    return;
  }
  ParallelFor(ctx, ranges, [&](int64_t range, int thread) {
    body(items * range / ranges, items * (range + 1) / ranges, thread);
  });
}

// Adds FP16 stores that were saturated to the context's counter.
inline void CountSaturated(const ExecContext& ctx, int64_t count) {
  if (count != 0 && ctx.saturated_stores != nullptr) {
    ctx.saturated_stores->fetch_add(count, std::memory_order_relaxed);
  }
}

}  // namespace halfstep::cpu
