// SPDX-License-Identifier: Apache-2.0
#include "kernels/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <thread>
#include <vector>

namespace halfstep {
namespace {

TEST(ThreadPoolTest, RunsEveryTaskOnceWithAThreadInRange) {
  for (const int threads : {1, 2, 3, 5}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.threads(), threads);
    for (const int64_t tasks : {0, 1, 2, 7, 1000}) {
      std::vector<std::atomic<int>> runs(tasks);
      pool.ParallelFor(tasks, [&](int64_t task, int thread) {
        ASSERT_GE(thread, 0);
        ASSERT_LT(thread, threads);
        runs[task].fetch_add(1);
      });
      for (int64_t task = 0; task < tasks; ++task) EXPECT_EQ(runs[task].load(), 1) << task;
    }
  }
}

TEST(ThreadPoolTest, WritesOfTasksAreVisibleToTheCaller) {
  ThreadPool pool(3);
  std::vector<int64_t> values(64);
  for (int64_t round = 1; round <= 20000; ++round) {
    const int64_t tasks = round % 5;
    pool.ParallelFor(tasks, [&](int64_t task, int) { values[task] = round; });
    for (int64_t task = 0; task < tasks; ++task) ASSERT_EQ(values[task], round);
  }
}

TEST(ThreadPoolTest, TwoThreadsWorkAtTheSameTime) {
  ThreadPool pool(2);
  // Each task waits for the other: this ends only if both run at once.
  std::atomic<int> arrived{0};
  pool.ParallelFor(2, [&](int64_t, int) {
    arrived.fetch_add(1);
    arrived.notify_all();
    for (int seen; (seen = arrived.load()) < 2;) arrived.wait(seen);
  });
  EXPECT_EQ(arrived.load(), 2);
}

TEST(ThreadPoolTest, StopsWhileWorkersSpinOrSleep) {
  for (int i = 0; i < 200; ++i) {
    ThreadPool pool(3);
    if (i % 2 == 0) pool.ParallelFor(3, [](int64_t, int) {});
  }
}

TEST(ThreadPoolTest, MorePoolsThanCoresMakeProgress) {
  std::vector<std::unique_ptr<ThreadPool>> pools;
  for (int i = 0; i < 3; ++i) pools.push_back(std::make_unique<ThreadPool>(2));
  std::vector<std::thread> callers;
  std::atomic<int64_t> total{0};
  for (auto& pool : pools) {
    callers.emplace_back([&total, pool = pool.get()] {
      for (int round = 0; round < 500; ++round) {
        pool->ParallelFor(4, [&](int64_t, int) { total.fetch_add(1); });
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(total.load(), 3 * 500 * 4);
}

}  // namespace
}  // namespace halfstep
