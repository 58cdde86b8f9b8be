// SPDX-License-Identifier: Apache-2.0
// Prompt data: reading, its errors, and the seeded order.
#include "learner_server/data/prompt_dataset.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <set>

#include "common/base/error_reason.h"
#include "learner_server/data/jsonl.h"
#include "learner_server/data/permutation.h"
#include "tests/testing/temp_dir.h"

namespace halfstep {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// One token per character.
absl::StatusOr<std::vector<int32_t>> EncodeCharacters(const std::string& text, TextRole) {
  return std::vector<int32_t>(text.begin(), text.end());
}

class PromptDatasetTest : public testing::Test {
 protected:
  absl::StatusOr<PromptDataset> Load(const std::string& contents) {
    options_.path = dir_ / "data.jsonl";
    std::ofstream(options_.path) << contents;
    return PromptDataset::Load(options_, EncodeCharacters);
  }
  std::string ErrorOf(const std::string& contents, const std::string& reason) {
    const absl::Status status = Load(contents).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(ReasonOf(status), reason);
    return std::string(status.message());
  }

  TempDir dir_;
  PromptDatasetOptions options_{.path = "", .max_tokens = 16};
};

TEST_F(PromptDatasetTest, ReadsPromptsAndAnswers) {
  const auto dataset =
      Load("{\"prompt\":\"1+1=\",\"answer\":\"2\"}\n\n{\"answer\":4,\"prompt\":\"2+2=\"}");
  ASSERT_TRUE(dataset.ok()) << dataset.status();
  ASSERT_EQ(dataset->size(), 2);
  EXPECT_THAT(dataset->row(0).prompt, ElementsAre('1', '+', '1', '='));
  EXPECT_EQ(dataset->row(0).target, "2");
  EXPECT_EQ(dataset->row(1).line, 3);
  EXPECT_EQ(dataset->row(1).target, "4");
  EXPECT_EQ(dataset->longest_prompt(), 4);
}

TEST_F(PromptDatasetTest, MapsColumns) {
  options_.prompt_column = "question";
  options_.target_column = "solution";
  const auto dataset = Load("{\"question\":\"a\",\"solution\":\"b\",\"other\":[1]}");
  ASSERT_TRUE(dataset.ok()) << dataset.status();
  EXPECT_EQ(dataset->row(0).target, "b");
}

TEST_F(PromptDatasetTest, SupervisedRowsEndWithTheEndToken) {
  options_.encode_response = true;
  options_.end_token = 7;
  const auto dataset = Load("{\"prompt\":\"ab\",\"answer\":\"c\"}");
  ASSERT_TRUE(dataset.ok()) << dataset.status();
  EXPECT_THAT(dataset->row(0).response, ElementsAre('c', 7));
}

TEST_F(PromptDatasetTest, NamesFileAndLineOfBadRows) {
  const std::string good = "{\"prompt\":\"a\",\"answer\":\"b\"}\n";
  EXPECT_THAT(ErrorOf(good + "{\"prompt\":\"a\"", "BAD_DATASET_ROW"),
              HasSubstr("data.jsonl:2: the row is not valid JSON"));
  EXPECT_THAT(ErrorOf(good + good + "[1]", "BAD_DATASET_ROW"),
              HasSubstr("data.jsonl:3: a row must be an object, not array"));
  EXPECT_THAT(ErrorOf(good + "{\"prompt\":\"a\",\"reply\":\"b\"}", "BAD_DATASET_ROW"),
              HasSubstr("data.jsonl:2: no column \"answer\"; the row has prompt, reply; name the "
                        "right one (data.columns of a job"));
  EXPECT_THAT(ErrorOf("{\"prompt\":null,\"answer\":\"b\"}", "BAD_DATASET_ROW"),
              HasSubstr("data.jsonl:1: column \"prompt\" holds null"));
  EXPECT_THAT(ErrorOf("{\"prompt\":\"\",\"answer\":\"b\"}", "BAD_DATASET_ROW"),
              HasSubstr("data.jsonl:1: the prompt is empty"));
}

TEST_F(PromptDatasetTest, RefusesAnEmptyFile) {
  EXPECT_THAT(ErrorOf("\n \n", "EMPTY_DATASET"), HasSubstr("data.jsonl has no rows"));
}

TEST_F(PromptDatasetTest, SaysWhichFileIsMissing) {
  options_.path = dir_ / "absent.jsonl";
  const absl::Status status = PromptDataset::Load(options_, EncodeCharacters).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(ReasonOf(status), "FILE_NOT_FOUND");
  EXPECT_THAT(std::string(status.message()), HasSubstr("absent.jsonl"));
}

TEST_F(PromptDatasetTest, RefusesWhatCannotBeHeldInMemory) {
  const std::string good = "{\"prompt\":\"a\",\"answer\":\"b\"}\n";
  std::string longest = "{\"prompt\":\"a\",\"answer\":\"b\"}";
  longest.resize(16 << 20, ' ');
  EXPECT_EQ(Load(longest + "\n" + good)->size(), 2);
  EXPECT_EQ(Load(good + longest)->size(), 2);
  EXPECT_THAT(ErrorOf(good + longest + " \n" + good, "BAD_DATASET_ROW"),
              HasSubstr("data.jsonl:2: longer than 16 MiB"));
  std::filesystem::resize_file(options_.path, kMaxDatasetBytes + 1);  // a hole, mostly
  absl::Status status = PromptDataset::Load(options_, EncodeCharacters).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ReasonOf(status), "DATASET_TOO_LARGE");
  EXPECT_THAT(std::string(status.message()), HasSubstr("data.jsonl has 1073741825 bytes"));
  options_.path = dir_ / "pipe";
  ASSERT_EQ(mkfifo(options_.path.c_str(), 0600), 0);
  status = PromptDataset::Load(options_, EncodeCharacters).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("is not a regular file"));
}

TEST_F(PromptDatasetTest, RefusesOrSkipsOverlongPrompts) {
  const std::string rows =
      "{\"prompt\":\"0123456789abcde\",\"answer\":\"fits\"}\n"
      "{\"prompt\":\"0123456789abcdef\",\"answer\":\"does not\"}\n";
  EXPECT_THAT(ErrorOf(rows, "PROMPT_TOO_LONG"),
              HasSubstr("data.jsonl:2: a prompt of 16 tokens needs room for 17, the model has 16; "
                        "shorten it or set data.overlong_prompts to skip"));
  options_.overlong = OverlongPolicy::kSkip;
  const auto dataset = Load(rows);
  ASSERT_TRUE(dataset.ok()) << dataset.status();
  EXPECT_EQ(dataset->size(), 1);
  EXPECT_EQ(dataset->skipped(), 1);
  options_.max_tokens = 3;
  EXPECT_THAT(ErrorOf(rows, "EMPTY_DATASET"), HasSubstr("all 2 prompts are longer"));
}

TEST_F(PromptDatasetTest, EveryEpochIsAnotherOrderOfAllRows) {
  std::string rows;
  for (char c = 'a'; c <= 'z'; ++c)
    rows += std::string("{\"prompt\":\"") + c + "\",\"answer\":\"\"}\n";
  auto dataset = Load(rows);
  ASSERT_TRUE(dataset.ok()) << dataset.status();
  std::vector<std::vector<int64_t>> epochs(3);
  for (uint64_t cursor = 0; cursor < 78; ++cursor) {
    epochs[cursor / 26].push_back(dataset->Shuffled(5, cursor).line);
  }
  for (const auto& epoch : epochs) EXPECT_EQ(std::set(epoch.begin(), epoch.end()).size(), 26u);
  EXPECT_NE(epochs[0], epochs[1]);
  EXPECT_NE(epochs[1], epochs[2]);
  // The order depends on seed and cursor, not on what was read before.
  EXPECT_EQ(dataset->Shuffled(5, 30).line, epochs[1][4]);
  EXPECT_EQ(dataset->Shuffled(5, 3).line, epochs[0][3]);
}

TEST(PermutationTest, DependsOnEveryPartOfTheKey) {
  const auto base = Permutation(50, {1, PermutationUse::kDataOrder, 2});
  EXPECT_EQ(base, Permutation(50, {1, PermutationUse::kDataOrder, 2}));
  EXPECT_NE(base, Permutation(50, {1, PermutationUse::kRewards, 2}));
  EXPECT_NE(base, Permutation(50, {1, PermutationUse::kDataOrder, 3}));
  EXPECT_NE(base, Permutation(50, {2, PermutationUse::kDataOrder, 2}));
  EXPECT_NE(base, Permutation(50, {(uint64_t{1} << 40) | 1, PermutationUse::kDataOrder, 2}));
  EXPECT_TRUE(Permutation(0, {}).empty());
  EXPECT_THAT(Permutation(1, {}), ElementsAre(0u));
}

TEST(PermutationTest, EveryPlaceIsEquallyLikely) {
  int counts[5][5] = {};
  for (uint64_t ordinal = 0; ordinal < 5000; ++ordinal) {
    const auto order = Permutation(5, {9, PermutationUse::kRewards, ordinal});
    for (int place = 0; place < 5; ++place) ++counts[place][order[place]];
  }
  for (const auto& place : counts) {
    for (const int count : place) EXPECT_NEAR(count, 1000, 150);  // five standard deviations
  }
}

}  // namespace
}  // namespace halfstep
