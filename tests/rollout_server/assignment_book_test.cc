// SPDX-License-Identifier: Apache-2.0
#include "rollout_server/assignment_book.h"

#include <gtest/gtest.h>

namespace halfstep {
namespace {

GroupKey Train(uint64_t ordinal) { return {Purpose::kTrain, ordinal}; }

Sample SampleOf(uint32_t index) {
  Sample sample;
  sample.index = index;
  sample.tokens = {1, 2};
  return sample;
}

TEST(AssignmentBookTest, CreditGrowsWhenGroupsAreAcknowledged) {
  AssignmentBook book;
  EXPECT_EQ(book.Credit(4), 4u);
  const Ticket ticket = book.Take(Train(7), 2);
  EXPECT_EQ(book.Credit(4), 4u) << "one taken, one held";
  EXPECT_TRUE(book.Add(ticket, SampleOf(1)));
  EXPECT_TRUE(book.Add(ticket, SampleOf(0)));
  const auto batch = book.NextBatch({});
  ASSERT_TRUE(batch.has_value());
  EXPECT_EQ(batch->sequence_number, 1u);
  ASSERT_EQ(batch->samples.size(), 2u);
  EXPECT_EQ(batch->samples[0].sample.index, 1u);
  EXPECT_EQ(batch->samples[0].key, Train(7));
  EXPECT_EQ(book.Credit(4), 4u) << "sent, but not acknowledged";
  EXPECT_FALSE(book.empty());
  book.Acknowledge(1);
  EXPECT_EQ(book.Credit(4), 5u);
  EXPECT_TRUE(book.empty());
}

TEST(AssignmentBookTest, SendsSamplesInMessagesOfBoundedSize) {
  AssignmentBook book;
  const Ticket ticket = book.Take(Train(0), 5);
  for (uint32_t i = 0; i < 5; ++i) book.Add(ticket, SampleOf(i));
  EXPECT_EQ(book.NextBatch({.samples = 2})->samples.size(), 2u);
  EXPECT_EQ(book.NextBatch({.samples = 2})->samples.size(), 2u);
  const auto last = book.NextBatch({.samples = 2});
  EXPECT_EQ(last->samples.size(), 1u);
  EXPECT_EQ(last->sequence_number, 3u);
  EXPECT_FALSE(book.NextBatch({.samples = 2}).has_value());
  book.Acknowledge(2);
  EXPECT_FALSE(book.empty());
  book.Acknowledge(3);
  EXPECT_TRUE(book.empty());
}

TEST(AssignmentBookTest, BoundsTheTokensOfAMessage) {
  AssignmentBook book;
  const Ticket ticket = book.Take(Train(0), 4);
  for (uint32_t i = 0; i < 4; ++i) book.Add(ticket, SampleOf(i));  // of two tokens each
  EXPECT_EQ(book.NextBatch({.tokens = 5})->samples.size(), 2u);
  EXPECT_EQ(book.NextBatch({.tokens = 1})->samples.size(), 1u) << "at least one";
  EXPECT_EQ(book.NextBatch({.tokens = 4})->samples.size(), 1u);
}

TEST(AssignmentBookTest, TakesEachSampleOnce) {
  AssignmentBook book;
  const Ticket ticket = book.Take(Train(0), 2);
  EXPECT_TRUE(book.Add(ticket, SampleOf(1)));
  EXPECT_FALSE(book.Add(ticket, SampleOf(1)));
  EXPECT_FALSE(book.Add(ticket, SampleOf(2))) << "there are two samples";
  EXPECT_TRUE(book.Missing(ticket));
  EXPECT_TRUE(book.Add(ticket, SampleOf(0)));
  EXPECT_FALSE(book.Missing(ticket));
}

TEST(AssignmentBookTest, DroppingThrowsAwayWhatWasNotSent) {
  AssignmentBook book;
  const Ticket dropped = book.Take(Train(0), 2);
  const Ticket kept = book.Take({Purpose::kEval, 0}, 1);
  book.Add(dropped, SampleOf(0));
  book.Add(kept, SampleOf(0));
  EXPECT_EQ(book.Drop(Train(0)), dropped);
  EXPECT_EQ(book.Drop(Train(0)), std::nullopt);
  EXPECT_FALSE(book.Add(dropped, SampleOf(1)));
  const auto batch = book.NextBatch({});
  ASSERT_EQ(batch->samples.size(), 1u);
  EXPECT_EQ(batch->samples[0].key.purpose, Purpose::kEval);
  EXPECT_EQ(book.Credit(1), 2u);
}

TEST(AssignmentBookTest, AGroupGivenAgainReplacesItself) {
  AssignmentBook book;
  const Ticket first = book.Take(Train(0), 1);
  const Ticket second = book.Take(Train(0), 1);
  EXPECT_FALSE(book.Add(first, SampleOf(0)));
  EXPECT_TRUE(book.Add(second, SampleOf(0)));
  EXPECT_EQ(book.groups_held(), 1u);
  EXPECT_EQ(book.Credit(0), 1u);
}

TEST(AssignmentBookTest, GivingUpCancelsWhatIsMissing) {
  AssignmentBook book;
  const Ticket ticket = book.Take(Train(0), 3);
  book.Add(ticket, SampleOf(1));
  book.GiveUp(ticket);
  const auto batch = book.NextBatch({});
  ASSERT_EQ(batch->samples.size(), 3u);
  EXPECT_EQ(batch->samples[0].sample.finish_reason, FinishReason::kStop);
  EXPECT_EQ(batch->samples[1].sample.finish_reason, FinishReason::kCancelled);
  EXPECT_EQ(batch->samples[2].sample.finish_reason, FinishReason::kCancelled);
}

TEST(AssignmentBookTest, CountsGoOnAfterDroppingAllAndStartAfreshWithAStream) {
  AssignmentBook book;
  const Ticket ticket = book.Take(Train(0), 1);
  book.Add(ticket, SampleOf(0));
  book.NextBatch({.samples = 1});
  book.Take(Train(1), 1);
  book.DropAll();
  EXPECT_TRUE(book.empty());
  EXPECT_EQ(book.Credit(3), 5u);
  book.Acknowledge(1);
  EXPECT_EQ(book.Credit(3), 5u) << "an acknowledgement of what was dropped changes nothing";
  const Ticket next = book.Take(Train(2), 1);
  book.Add(next, SampleOf(0));
  EXPECT_EQ(book.NextBatch({.samples = 1})->sequence_number, 2u);
  book.Reset();
  EXPECT_EQ(book.Credit(3), 3u);
  EXPECT_GT(book.Take(Train(0), 1), next) << "tickets are never used twice";
}

}  // namespace
}  // namespace halfstep
