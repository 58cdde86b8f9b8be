// SPDX-License-Identifier: Apache-2.0
#include "common/config/parse_spec.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "halfstep/v1/training_job.pb.h"

namespace halfstep {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Pair;
using ::testing::SizeIs;
using ::testing::UnorderedElementsAre;

// The one violation of a text.
FieldViolation Only(const std::string& text) {
  v1::TrainingJobSpec spec;
  const ParseResult result = ParseYaml(text, &spec);
  EXPECT_THAT(result.violations, SizeIs(1)) << text;
  return result.violations.empty() ? FieldViolation{} : result.violations[0];
}

void ExpectOnly(const std::string& text, int line, int column, const std::string& description) {
  const FieldViolation violation = Only(text);
  EXPECT_THAT(violation.description, HasSubstr(description)) << text;
  EXPECT_EQ(violation.line, line) << text;
  EXPECT_EQ(violation.column, column) << text;
}

TEST(ParseSpecTest, ReadsEveryKindOfValue) {
  v1::TrainingJobSpec spec;
  const ParseResult result = ParseYaml(R"(
objective: rl
model: "my model"
seed: 18446744073709551615
steps: 12
profile: bitwise
precision: {rollout: fp16, learner: bf16}
data:
  train: a.jsonl
  columns:
    prompt: question
    answer: 42
reward: {permute: true}
algorithm:
  preset: dr_grpo
  clip: [0.2, 0.28]
sampling:
  stop: ["\n", END]
optimizer:
  learning_rate: 1e-5
  schedule: cosine
batch:
  lag: -1
)",
                                       &spec);
  EXPECT_THAT(result.violations, IsEmpty());
  EXPECT_EQ(spec.objective(), v1::OBJECTIVE_RL);
  EXPECT_EQ(spec.model(), "my model");
  EXPECT_EQ(spec.seed(), 18446744073709551615u);
  EXPECT_EQ(spec.steps(), 12);
  EXPECT_EQ(spec.profile(), v1::PROFILE_BITWISE);
  EXPECT_EQ(spec.precision().learner(), v1::PRECISION_BF16);
  EXPECT_THAT(spec.data().columns(),
              UnorderedElementsAre(Pair("prompt", "question"), Pair("answer", "42")));
  EXPECT_TRUE(spec.reward().permute());
  EXPECT_EQ(spec.algorithm().preset(), v1::ALGORITHM_PRESET_DR_GRPO);
  EXPECT_THAT(spec.algorithm().clip(), ElementsAre(0.2, 0.28));
  EXPECT_THAT(spec.sampling().stop(), ElementsAre("\n", "END"));
  EXPECT_EQ(spec.optimizer().learning_rate(), 1e-5);
  EXPECT_EQ(spec.optimizer().schedule(), v1::SCHEDULE_COSINE);
  EXPECT_EQ(spec.batch().lag(), -1);
}

TEST(ParseSpecTest, RemembersWhereFieldsWereWritten) {
  v1::TrainingJobSpec spec;
  const ParseResult result = ParseYaml("steps: 1\nbatch:\n  prompts: 4\n", &spec);
  EXPECT_EQ(result.places.at("steps").line, 1);
  EXPECT_EQ(result.places.at("batch.prompts").line, 3);
  EXPECT_EQ(result.places.at("batch.prompts").column, 3);
}

TEST(ParseSpecTest, UnknownKeyNamesTheNearestOne) {
  ExpectOnly("stepz: 1\n", 1, 1, "unknown key 'stepz'; did you mean 'steps'?");
  ExpectOnly("batch:\n  promts: 4\n", 2, 3, "unknown key 'batch.promts'; did you mean 'prompts'?");
}

TEST(ParseSpecTest, UnknownKeyLikeNoOtherListsWhatIsAccepted) {
  ExpectOnly("precision:\n  xyzzy: 4\n", 2, 3,
             "unknown key 'precision.xyzzy'; 'precision' takes rollout, learner");
  ExpectOnly("<<: {steps: 1}\n", 1, 1, "unknown key '<<'; accepted are objective, model");
}

TEST(ParseSpecTest, WrongTypesSayWhatIsExpected) {
  ExpectOnly("steps: many\n", 1, 8, "'steps' takes a whole number, not 'many'");
  ExpectOnly("steps: 1.5\n", 1, 8, "'steps' takes a whole number, not '1.5'");
  ExpectOnly("steps: \"3\"\n", 1, 8, "'steps' takes a whole number, not '3'");
  ExpectOnly("steps: [1]\n", 1, 8, "'steps' takes a whole number, not a list");
  ExpectOnly("steps:\n", 1, 1, "'steps' takes a whole number, not nothing");
  ExpectOnly("steps: 1\nbatch:\n\nmodel: a", 2, 1, "'batch' takes keys");
  ExpectOnly("model: [a]\n", 1, 8, "'model' takes a text, not a list");
  ExpectOnly("reward: {permute: yes}\n", 1, 19, "'reward.permute' takes true or false, not 'yes'");
  ExpectOnly("batch: 3\n", 1, 8,
             "'batch' takes keys (prompts, samples, updates, "
             "micro_batch_tokens, lag, max_lag), not '3'");
  ExpectOnly("sampling: {stop: END}\n", 1, 18,
             "'sampling.stop' takes a list, such as [a, b], not 'END'");
  ExpectOnly("data: {columns: prompt}\n", 1, 17,
             "'data.columns' takes a group of 'key: value' lines");
  ExpectOnly("optimizer: {adam: [0.9, x]}\n", 1, 25, "'optimizer.adam' takes a number, not 'x'");
  ExpectOnly("optimizer: {learning_rate: .nan}\n", 1, 28, "takes a number, not '.nan'");
  ExpectOnly("optimizer: {learning_rate: nan}\n", 1, 28, "takes a number, not 'nan'");
  ExpectOnly("- a\n- b\n", 1, 1, "a job takes keys (objective,");
  ExpectOnly("? [a]\n: 1\n", 1, 3, "a key is a word, not a list");
}

TEST(ParseSpecTest, NumbersOutsideTheirTypeAreRefused) {
  ExpectOnly("seed: -1\n", 1, 7, "'seed' takes a whole number from 0 to 18446744073709551615");
  ExpectOnly("seed: 18446744073709551616\n", 1, 7, "from 0 to 18446744073709551615");
  ExpectOnly("steps: 9223372036854775808\n", 1, 8, "'steps' takes a whole number");
  ExpectOnly("optimizer: {learning_rate: 1e999}\n", 1, 28, "takes a number");
}

TEST(ParseSpecTest, UnknownEnumValueListsTheAcceptedOnes) {
  ExpectOnly("precision: {rollout: fp61}\n", 1, 22,
             "'precision.rollout' takes one of fp16, bf16, fp32, not 'fp61'; did you mean 'fp16'?");
  ExpectOnly("objective: unspecified\n", 1, 12, "'objective' takes one of rl, sft");
  ExpectOnly("objective: OBJECTIVE_RL\n", 1, 12, "'objective' takes one of rl, sft");
}

TEST(ParseSpecTest, RepeatedKeyIsRefused) {
  ExpectOnly("steps: 1\nmodel: a\nsteps: 2\n", 3, 1, "key 'steps' is given twice");
  ExpectOnly("data:\n  columns:\n    prompt: a\n    prompt: b\n", 4, 5,
             "key 'data.columns.prompt' is given twice");
}

TEST(ParseSpecTest, TextThatIsNoYamlSaysWhere) {
  ExpectOnly("steps: 1\n bad: [\n", 2, 5, "not YAML");
  ExpectOnly("", 1, 1, "the file is empty");
  ExpectOnly("# nothing\n", 1, 1, "the file is empty");
  ExpectOnly("steps: 1\n---\nsteps: 2\n", 3, 1, "more than one document");
}

TEST(ParseSpecTest, ReportsAllMistakesInTheOrderOfTheText) {
  v1::TrainingJobSpec spec;
  const ParseResult result =
      ParseYaml("stepz: 1\nprofile: fastt\nbatch:\n  prompts: x\n  samples: 4\n", &spec);
  ASSERT_THAT(result.violations, SizeIs(3));
  EXPECT_EQ(result.violations[0].line, 1);
  EXPECT_EQ(result.violations[1].line, 2);
  EXPECT_EQ(result.violations[2].line, 4);
  EXPECT_EQ(spec.batch().samples(), 4) << "what is right is read all the same";
}

TEST(ParseSpecTest, SurvivesHostileText) {
  v1::TrainingJobSpec spec;
  EXPECT_FALSE(ParseYaml(std::string(100000, '['), &spec).violations.empty());
  EXPECT_FALSE(ParseYaml("a: &a [x]\nb: &b [*a,*a]\nc: [*b,*b]\n", &spec).violations.empty());
  EXPECT_FALSE(ParseYaml("a: &a {b: *a}\n", &spec).violations.empty());
  EXPECT_FALSE(ParseYaml(std::string("\0\xff\xfe", 3), &spec).violations.empty());
}

}  // namespace
}  // namespace halfstep
