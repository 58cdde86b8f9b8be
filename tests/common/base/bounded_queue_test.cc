// SPDX-License-Identifier: Apache-2.0
#include "common/base/bounded_queue.h"

#include <memory>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace halfstep {
namespace {

using ::testing::HasSubstr;

TEST(BoundedQueueTest, GivesItemsInTheOrderTheyCame) {
  BoundedQueue<int> queue("q", {.items = 3});
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(queue.Push(i, absl::InfiniteFuture()).ok());
  for (int i = 0; i < 3; ++i) EXPECT_EQ(queue.Pop(absl::InfiniteFuture()).value(), i);
  EXPECT_EQ(queue.TryPop(), std::nullopt);
}

TEST(BoundedQueueTest, PushGivesUpAtItsDeadlineAndNamesTheQueue) {
  BoundedQueue<int> queue("intake", {.items = 1});
  ASSERT_TRUE(queue.Push(1, absl::InfiniteFuture()).ok());
  const absl::Status status = queue.Push(2, absl::Now());
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(status.message()), HasSubstr("'intake'"));
  EXPECT_EQ(queue.size(), 1u);
}

TEST(BoundedQueueTest, PopGivesUpAtItsDeadline) {
  BoundedQueue<int> queue("intake", {.items = 1});
  EXPECT_EQ(queue.Pop(absl::Now()).status().code(), absl::StatusCode::kDeadlineExceeded);
}

TEST(BoundedQueueTest, CountsBytes) {
  BoundedQueue<int> queue("q", {.items = 10, .bytes = 100});
  int item = 1;
  EXPECT_TRUE(queue.TryPush(item, 60));
  EXPECT_FALSE(queue.TryPush(item, 41));
  EXPECT_TRUE(queue.TryPush(item, 40));
  EXPECT_EQ(queue.bytes(), 100u);
  queue.TryPop();
  EXPECT_EQ(queue.bytes(), 40u);
}

TEST(BoundedQueueTest, TakesAnOversizedItemOnlyWhenEmpty) {
  BoundedQueue<int> queue("q", {.items = 10, .bytes = 100});
  int item = 1;
  EXPECT_TRUE(queue.TryPush(item, 1000));
  EXPECT_FALSE(queue.TryPush(item, 1));
  queue.TryPop();
  EXPECT_TRUE(queue.TryPush(item, 1));
  EXPECT_FALSE(queue.TryPush(item, 1000));
}

TEST(BoundedQueueTest, FailedTryPushLeavesTheItem) {
  BoundedQueue<std::unique_ptr<int>> queue("q", {.items = 1});
  auto first = std::make_unique<int>(1), second = std::make_unique<int>(2);
  EXPECT_TRUE(queue.TryPush(first));
  EXPECT_EQ(first, nullptr);
  EXPECT_FALSE(queue.TryPush(second));
  EXPECT_NE(second, nullptr);
}

TEST(BoundedQueueTest, CloseWakesAWaitingConsumer) {
  BoundedQueue<int> queue("q", {.items = 1});
  absl::Status status;
  std::thread consumer([&] { status = queue.Pop(absl::InfiniteFuture()).status(); });
  queue.Close();
  consumer.join();
  EXPECT_EQ(status.code(), absl::StatusCode::kCancelled);
}

TEST(BoundedQueueTest, CloseRefusesItemsButKeepsThoseInside) {
  BoundedQueue<int> queue("q", {.items = 2});
  ASSERT_TRUE(queue.Push(7, absl::InfiniteFuture()).ok());
  queue.Close();
  EXPECT_EQ(queue.Push(8, absl::InfiniteFuture()).code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(queue.Pop(absl::InfiniteFuture()).value(), 7);
  EXPECT_EQ(queue.Pop(absl::InfiniteFuture()).status().code(), absl::StatusCode::kCancelled);
}

TEST(BoundedQueueTest, LosesNothingBetweenManyThreads) {
  BoundedQueue<int> queue("q", {.items = 4});
  std::vector<std::thread> producers;
  for (int p = 0; p < 3; ++p) {
    producers.emplace_back([&queue] {
      for (int i = 1; i <= 200; ++i) ASSERT_TRUE(queue.Push(i, absl::InfiniteFuture()).ok());
    });
  }
  int64_t sums[2] = {0, 0};
  std::vector<std::thread> consumers;
  for (int64_t& sum : sums) {
    consumers.emplace_back([&queue, &sum] {
      while (true) {
        const absl::StatusOr<int> item = queue.Pop(absl::InfiniteFuture());
        if (!item.ok()) return;
        sum += *item;
      }
    });
  }
  for (std::thread& thread : producers) thread.join();
  queue.Close();
  for (std::thread& thread : consumers) thread.join();
  EXPECT_EQ(sums[0] + sums[1], 3 * 200 * 201 / 2);
}

}  // namespace
}  // namespace halfstep
