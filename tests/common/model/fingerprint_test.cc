// SPDX-License-Identifier: Apache-2.0
#include "common/model/fingerprint.h"

#include <gtest/gtest.h>

#include "kernels/thread_pool.h"
#include "kernels/workspace.h"

namespace halfstep {
namespace {

std::string FingerprintWith(int threads) {
  Workspace workspace;
  ThreadPool pool(threads);
  ExecContext ctx;
  ctx.workspace = &workspace;
  ctx.threads = &pool;
  return NumericsFingerprint(ctx);
}

TEST(NumericsFingerprintTest, IsADigestThatRepeats) {
  const std::string fingerprint = FingerprintWith(1);
  EXPECT_EQ(fingerprint.size(), 32u);
  EXPECT_EQ(FingerprintWith(1), fingerprint);
}

TEST(NumericsFingerprintTest, DoesNotDependOnThreads) {
  EXPECT_EQ(FingerprintWith(3), FingerprintWith(1));
}

}  // namespace
}  // namespace halfstep
