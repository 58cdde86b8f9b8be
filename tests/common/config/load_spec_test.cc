// SPDX-License-Identifier: Apache-2.0
#include "common/config/load_spec.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/util/message_differencer.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>

#include "common/base/file.h"
#include "common/config/enum_names.h"
#include "common/config/resolve_spec.h"
#include "common/config/spec_text.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "halfstep/v1/training_job.pb.h"
#include "tests/common/config/spec_for_tests.h"
#include "tests/testing/temp_dir.h"

namespace halfstep {
namespace {

using google::protobuf::util::MessageDifferencer;
using ::testing::HasSubstr;

std::string SourceDir() {
  const char* source = std::getenv("HALFSTEP_SOURCE_DIR");
  EXPECT_NE(source, nullptr) << "run by ctest";
  return source == nullptr ? "." : source;
}

absl::Status Load(const std::string& text) {
  v1::TrainingJobSpec spec;
  return LoadSpec(text, "job.yaml", &spec);
}

TEST(LoadSpecTest, LeavesDefaultsToTheServer) {
  v1::TrainingJobSpec spec;
  ASSERT_TRUE(LoadSpec(kValidJob, "job.yaml", &spec).ok());
  EXPECT_FALSE(spec.has_seed());
  EXPECT_EQ(spec.steps(), 10);
}

TEST(LoadSpecTest, ReportsMistakesOfSpellingAndOfSenseAtOnceWithTheirPlaces) {
  const absl::Status status = Load(R"(model: base
stepz: 10
data:
  train: train.jsonl
sampling:
  max_new_tokens: 16
  temperature: 0
batch:
  prompts: 8
  samples: 0
optimizer:
  learning_rate: fast
)");
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ReasonOf(status), "INVALID_SPEC");
  EXPECT_EQ(
      status.message(),
      "job.yaml:2:1: unknown key 'stepz'; did you mean 'steps'?\n"
      "job.yaml:12:18: 'optimizer.learning_rate' takes a number, not 'fast'\n"
      "job.yaml:7:3: 'sampling.temperature' is 0; it must be above 0: greedy responses cannot "
      "teach a policy\n"
      "job.yaml:10:3: 'batch.samples' is 0; accepted are 1 to 65536");
  const std::vector<FieldViolation> violations = GetFieldViolations(status);
  ASSERT_EQ(violations.size(), 4u);
  EXPECT_EQ(violations[3].field, "batch.samples");
  EXPECT_EQ(violations[3].line, 10);
}

TEST(LoadSpecTest, AMissingKeyHasThePlaceOfItsGroup) {
  const absl::Status status = Load(std::string(kValidJob) +
                                   "evaluation: {every_steps: 1}\nloss_scale:\n"
                                   "  preset: static\n");
  EXPECT_EQ(status.message(), "job.yaml:14:1: 'loss_scale.initial' is required");
}

TEST(LoadSpecTest, TextThatIsNoYamlIsOneMistake) {
  EXPECT_EQ(GetFieldViolations(Load("a: [")).size(), 1u);
  EXPECT_EQ(GetFieldViolations(Load("")).size(), 1u);
}

TEST(LoadSpecTest, FilesAreReadWithALimitAndNamed) {
  TempDir dir;
  v1::TrainingJobSpec spec;
  EXPECT_EQ(LoadSpecFile(dir / "absent.yaml", &spec).code(), absl::StatusCode::kNotFound);
  ASSERT_TRUE(WriteFileAtomic(dir / "job.yaml", "stepz: 1\n").ok());
  EXPECT_THAT(std::string(LoadSpecFile(dir / "job.yaml", &spec).message()),
              HasSubstr((dir / "job.yaml") + ":1:1: unknown key"));
  ASSERT_TRUE(WriteFileAtomic(dir / "big.yaml", std::string((1 << 20) + 1, '#')).ok());
  EXPECT_EQ(ReasonOf(LoadSpecFile(dir / "big.yaml", &spec)), "FILE_TOO_LARGE");
}

TEST(LoadSpecTest, CheckOfAResolvedSpecHasNoPlaces) {
  v1::TrainingJobSpec spec;
  ASSERT_TRUE(LoadSpec(kValidJob, "", &spec).ok());
  ResolveSpec("j", &spec);
  EXPECT_TRUE(CheckSpec(spec).ok());
  spec.set_steps(0);
  const absl::Status status = CheckSpec(spec);
  EXPECT_EQ(ReasonOf(status), "INVALID_SPEC");
  EXPECT_THAT(std::string(status.message()), testing::StartsWith("'steps' is 0;"));
}

TEST(LoadSpecTest, ExamplesAreValid) {
  int examples = 0;
  for (const auto& entry :
       std::filesystem::recursive_directory_iterator(SourceDir() + "/deploy/examples")) {
    if (entry.path().extension() != ".yaml") continue;
    v1::TrainingJobSpec spec;
    const absl::Status status = LoadSpecFile(entry.path().string(), &spec);
    EXPECT_TRUE(status.ok()) << status;
    ++examples;
  }
  EXPECT_GT(examples, 0);
}

TEST(SpecTextTest, YamlIsReadBackToTheSameSpec) {
  for (const char* text : {kValidJob, kValidSftJob}) {
    v1::TrainingJobSpec spec;
    ASSERT_TRUE(LoadSpec(text, "", &spec).ok());
    spec.set_model("a: \"b\"\n# \xc3\xa9\t'");
    spec.set_output_dir("true");
    spec.set_seed(18446744073709551615u);
    spec.mutable_optimizer()->set_learning_rate(0.1 + 0.2);
    (*spec.mutable_data()->mutable_columns())["prompt"] = "12";
    ResolveSpec("j", &spec);
    v1::TrainingJobSpec again;
    const absl::Status status = LoadSpec(SpecToYaml(spec), "", &again);
    EXPECT_TRUE(status.ok()) << status << "\n" << SpecToYaml(spec);
    EXPECT_TRUE(MessageDifferencer::Equals(spec, again)) << SpecToYaml(spec);
  }
}

TEST(SpecTextTest, JsonIsYamlTooAndHasTheSameNames) {
  v1::TrainingJobSpec spec, again;
  ASSERT_TRUE(LoadSpec(kValidJob, "", &spec).ok());
  ResolveSpec("j", &spec);
  const std::string json = SpecToJson(spec);
  EXPECT_THAT(json, HasSubstr("\"preset\": \"dr_grpo\""));
  ASSERT_TRUE(LoadSpec(json, "", &again).ok());
  EXPECT_TRUE(MessageDifferencer::Equals(spec, again)) << json;
}

TEST(LoadSpecTest, HealthIsAMapFromAlarmToAction) {
  v1::TrainingJobSpec spec;
  const std::string job = std::string(kValidJob) + "health: {mismatch_jump: pause}\n";
  ASSERT_TRUE(LoadSpec(job, "", &spec).ok());
  ResolveSpec("j", &spec);
  ASSERT_EQ(spec.health().size(), 5u);
  EXPECT_EQ(spec.health().at("mismatch_jump"), v1::HEALTH_ACTION_PAUSE);
  EXPECT_EQ(spec.health().at("constant_reward"), v1::HEALTH_ACTION_WARN);
  EXPECT_THAT(SpecToYaml(spec), HasSubstr("  mismatch_jump: pause\n"));
}

TEST(EnumNamesTest, AreTheSuffixInLowerCase) {
  EXPECT_EQ(YamlName(v1::ALGORITHM_PRESET_DR_GRPO), "dr_grpo");
  EXPECT_EQ(YamlName(v1::PRECISION_FP16), "fp16");
  EXPECT_EQ(YamlName(v1::LOSS_SCALE_PRESET_DEFAULT), "default");
  EXPECT_EQ(YamlName(v1::TrainingJob::STATE_CANCELLING), "cancelling");
  EXPECT_EQ(YamlName(v1::PROFILE_UNSPECIFIED), "unspecified");
  EXPECT_EQ(YamlName(static_cast<v1::Profile>(9)), "9");
}

int CountKeys(const google::protobuf::Descriptor& type) {
  int keys = 0;
  for (int i = 0; i < type.field_count(); ++i) {
    const google::protobuf::FieldDescriptor* field = type.field(i);
    const bool is_group = !field->is_map() && field->message_type() != nullptr;
    keys += is_group ? CountKeys(*field->message_type()) : 1;
  }
  return keys;
}

TEST(SchemaTest, HasAtMostFiftyKeys) {
  EXPECT_LE(CountKeys(*v1::TrainingJobSpec::descriptor()), 50);
}

TEST(SchemaTest, CommittedConfigurationPageIsCurrent) {
  if (std::system("command -v python3 >/dev/null") != 0) GTEST_SKIP() << "python3 is not installed";
  TempDir dir;
  const std::string command =
      "python3 " + SourceDir() + "/docs/generate_configuration.py > " + (dir / "page");
  ASSERT_EQ(std::system(command.c_str()), 0);
  EXPECT_EQ(ReadFile(SourceDir() + "/docs/configuration.md", 1 << 20).value_or(""),
            ReadFile(dir / "page", 1 << 20).value())
      << "make it again: docs/generate_configuration.py > docs/configuration.md";
}

}  // namespace
}  // namespace halfstep
