// SPDX-License-Identifier: Apache-2.0
// Packing of sequences into micro-batches.
#include "learner_server/data/batcher.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace halfstep {
namespace {

using ::testing::ElementsAre;

TrainSequence Sequence(std::vector<int32_t> tokens, int64_t prompt_tokens) {
  TrainSequence sequence;
  sequence.tokens = std::move(tokens);
  sequence.prompt_tokens = prompt_tokens;
  return sequence;
}

TEST(BatcherTest, ScoresEveryResponseTokenFromTheTokenBefore) {
  const std::vector<TrainSequence> sequences{Sequence({10, 11, 12, 13}, 2), Sequence({20, 21}, 1)};
  const std::vector<int64_t> all{0, 1};
  const std::vector<MicroBatch> packed = PackMicroBatches(sequences, all, 100);
  ASSERT_EQ(packed.size(), 1u);
  const PackedBatch& batch = packed[0].batch;
  EXPECT_THAT(batch.tokens, ElementsAre(10, 11, 12, 20));
  EXPECT_THAT(batch.positions, ElementsAre(0, 1, 2, 0));
  EXPECT_THAT(batch.cu_seqlens, ElementsAre(0, 3, 4));
  EXPECT_THAT(batch.logit_rows, ElementsAre(1, 2, 3));
  EXPECT_THAT(batch.targets, ElementsAre(12, 13, 21));
  ASSERT_EQ(packed[0].sequences.size(), 2u);
  EXPECT_EQ(packed[0].sequences[1].sequence, 1);
  EXPECT_EQ(packed[0].sequences[1].first_row, 2);
  EXPECT_EQ(packed[0].sequences[1].rows, 1);
}

TEST(BatcherTest, KeepsWholeSequencesWithinTheBudget) {
  std::vector<TrainSequence> sequences;
  for (int i = 0; i < 4; ++i) sequences.push_back(Sequence({1, 2, 3, 4, 5}, 1));  // 4 inputs each
  sequences.push_back(Sequence(std::vector<int32_t>(31, 7), 1));                  // longer than all
  sequences.push_back(Sequence({1, 2}, 1));
  const std::vector<int64_t> order{0, 1, 2, 4, 3, 5};
  const std::vector<MicroBatch> packed = PackMicroBatches(sequences, order, 10);
  std::vector<std::vector<int64_t>> members;
  for (const MicroBatch& micro : packed) {
    members.emplace_back();
    for (const PackedSequence& sequence : micro.sequences) {
      members.back().push_back(sequence.sequence);
    }
  }
  EXPECT_THAT(members,
              ElementsAre(ElementsAre(0, 1), ElementsAre(2), ElementsAre(4), ElementsAre(3, 5)));
}

TEST(BatcherTest, NothingPacksIntoNothing) { EXPECT_TRUE(PackMicroBatches({}, {}, 10).empty()); }

}  // namespace
}  // namespace halfstep
