// SPDX-License-Identifier: Apache-2.0
#include "learner_server/data/external_samples.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <string>
#include <vector>

#include "common/base/error_reason.h"
#include "tests/testing/temp_dir.h"

namespace halfstep {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class ExternalSamplesTest : public testing::Test {
 protected:
  absl::StatusOr<std::vector<TrainSequence>> Read(const std::string& text) {
    std::ofstream(dir_ / "e.jsonl") << text;
    return ReadExternalSamples(dir_ / "e.jsonl", {.vocab_size = 10, .max_sequence_tokens = 5});
  }

  TempDir dir_;
};

TEST_F(ExternalSamplesTest, ReadsPromptResponseAndLogProbs) {
  const auto samples =
      Read(R"({"prompt_ids": [1, 2], "response_ids": [9, 0, 3], "log_probs": [-0.5, 0, -2.25e1]})"
           "\n\n"
           R"({"engine": "x", "prompt_ids": [4], "response_ids": [5], "log_probs": [-1]})"
           "\n");
  ASSERT_TRUE(samples.ok()) << samples.status();
  ASSERT_EQ(samples->size(), 2u);
  EXPECT_THAT((*samples)[0].tokens, ElementsAre(1, 2, 9, 0, 3));
  EXPECT_EQ((*samples)[0].prompt_tokens, 2);
  EXPECT_THAT((*samples)[0].behaviour, ElementsAre(-0.5f, 0, -22.5f));
  EXPECT_THAT((*samples)[1].tokens, ElementsAre(4, 5));
  EXPECT_EQ((*samples)[1].prompt_tokens, 1);
}

TEST_F(ExternalSamplesTest, NamesFileLineAndMistake) {
  const auto refused = [&](const std::string& row, const std::string& why) {
    const auto samples =
        Read("{\"prompt_ids\": [1], \"response_ids\": [2], \"log_probs\": [-1]}\n" + row + "\n");
    ASSERT_FALSE(samples.ok()) << row;
    EXPECT_EQ(samples.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(ReasonOf(samples.status()), "BAD_DATASET_ROW");
    EXPECT_THAT(std::string(samples.status().message()), HasSubstr("e.jsonl:2: ")) << row;
    EXPECT_THAT(std::string(samples.status().message()), HasSubstr(why)) << row;
  };
  const auto row = [](const std::string& prompt, const std::string& response,
                      const std::string& log_probs) {
    return "{\"prompt_ids\": " + prompt + ", \"response_ids\": " + response +
           ", \"log_probs\": " + log_probs + "}";
  };
  refused(row("[1]", "[2, 3]", "[-1]"), "log_probs has 1 numbers and response_ids 2; one for each");
  refused(row("[1]", "[2]", "[-1, -1]"), "log_probs has 2 numbers and response_ids 1");
  refused(row("[10]", "[2]", "[-1]"),
          "prompt_ids[0] is 10, not an id below the model's vocabulary");
  refused(row("[1]", "[2, 99999999999]", "[-1, -1]"), "response_ids[1] is 99999999999, not an id");
  refused(row("[1]", "[-2]", "[-1]"), "response_ids[0] is -2, not an id");
  refused(row("[1]", "[2.5]", "[-1]"), "response_ids[0] is 2.5, not an id");
  refused(row("[1]", "[2]", "[0.25]"), "log_probs[0] is 0.25, not a finite number of at most 0");
  refused(row("[1]", "[2, 3]", "[-1, null]"), "log_probs[1] is null, not a finite number");
  refused(row("[1]", "[2]", "[-1e300]"), "log_probs[0] is -1e+300, not a finite number");
  refused(row("[1]", "[2]", "[NaN]"), "not valid JSON");
  refused(row("[]", "[2]", "[-1]"), "\"prompt_ids\" is empty");
  refused(row("[1]", "[]", "[]"), "\"response_ids\" is empty");
  refused(row("[1]", "\"text\"", "[-1]"), "\"response_ids\" holds string, not a list of numbers");
  refused(row("[1, 2, 3]", "[2, 3, 4]", "[-1, -1, -1]"), "6 tokens, and the model positions for 5");
  refused("{\"prompt_ids\": [1], \"response_ids\": [2]}", "no \"log_probs\"; a row is");
  refused("[1, 2]", "a row must be an object, not array");
}

TEST_F(ExternalSamplesTest, AFileWithoutRowsIsRefused) {
  EXPECT_EQ(ReasonOf(Read("\n").status()), "EMPTY_DATASET");
}

}  // namespace
}  // namespace halfstep
