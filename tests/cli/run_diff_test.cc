// SPDX-License-Identifier: Apache-2.0
// halfstep diff: each planted difference is named, and equal runs are equal.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "cli/runs/run_diff.h"
#include "common/checkpoint/hugging_face.h"
#include "common/model/initialize.h"
#include "learner_server/training/replay_log.h"
#include "learner_server/training/train_checkpoint.h"
#include "tests/cli/command_line.h"
#include "tests/cli/written_run.h"
#include "tests/learner_server/tiny_job.h"

namespace halfstep {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;
using Json = nlohmann::json;

// Two runs of three steps, with two groups of two samples each, and a checkpoint of step 2.
class RunDiffTest : public CommandLine {
 protected:
  struct Plant {
    std::function<void(v1::TrainingJobSpec*)> job = [](v1::TrainingJobSpec*) {};
    std::function<void(StepRecord*)> step = [](StepRecord*) {};
    std::function<void(int64_t step, SampleRecord*, std::vector<float>* log_probs)> sample =
        [](int64_t, SampleRecord*, std::vector<float>*) {};
    std::function<void(TrainState*, RunProgress*)> state = [](TrainState*, RunProgress*) {};
  };

  RunDiffTest() { WriteModelFolder(dir_ / "model"); }

  void WriteRun(const std::string& name, const Plant& plant) {
    v1::TrainingJobSpec spec = WrittenRun::Spec();
    spec.set_output_dir(name);  // no difference
    plant.job(&spec);
    const WrittenRun run(dir_ / name, spec);
    for (int64_t step = 1; step <= 3; ++step) {
      for (uint64_t i = 0; i < 4; ++i) {
        SampleRecord record =
            WrittenRun::Sample(2 * static_cast<uint64_t>(step - 1) + i / 2, i % 2, "abc");
        std::vector<float> log_probs = {-0.5f, -0.25f, -1.0f};
        record.rollout_id = name;  // no difference
        plant.sample(step, &record, &log_probs);
        run.Samples(step, record, log_probs);
      }
      StepRecord record = WrittenRun::Step(step, 0.5);
      record.total_time = absl::Seconds(name.size());  // no difference
      plant.step(&record);
      run.Metrics(record);
      run.Evaluation(step, 0.5);
    }
    WriteCheckpoints(name, plant);
  }

  void WriteCheckpoints(const std::string& name, const Plant& plant) {
    const HuggingFaceModel model = *OpenHuggingFaceModel(dir_ / "model");
    TrainState state(model.config, model.layout, DType::kFloat16, 32, {});
    InitializeParameters(model.config, 5, &state.master);
    RunProgress progress;
    progress.step = 2;
    progress.version_after = {0, 1, 2};
    progress.train_seconds = static_cast<double>(name.size());  // no difference
    progress.samples_by_rollout[name] = 4;                      // no difference
    plant.state(&state, &progress);
    state.RefreshWeights({});
    CheckpointContents contents;
    contents.state = &state;
    contents.progress = &progress;
    contents.job_json = "{}";
    contents.model.directory = dir_ / "model";
    const auto store = CheckpointStore::Open(absl::StrCat(dir_ / name, "/checkpoints"), "test");
    ASSERT_TRUE(store.ok()) << store.status();
    ASSERT_TRUE(halfstep::WriteCheckpoint(*store, contents).ok());
  }

  RunDiff Diff(const Plant& plant) {
    WriteRun("a", {});
    WriteRun("bb", plant);
    const absl::StatusOr<RunDiff> diff = DiffRuns(dir_ / "a", dir_ / "bb");
    EXPECT_TRUE(diff.ok()) << diff.status();
    return *diff;
  }
};

TEST_F(RunDiffTest, EqualRunsAreEqualWhateverTheirRolloutsTimesAndFolders) {
  const RunDiff diff = Diff({});
  EXPECT_TRUE(diff.equal());
  EXPECT_EQ(diff.metrics.steps, 3);
  EXPECT_EQ(diff.samples.samples, 12);
  EXPECT_THAT(diff.checkpoints.steps, ElementsAre(2));
  EXPECT_THAT(diff.Notes(), ElementsAre());
  const Result result = Run("halfstep diff a bb");
  EXPECT_EQ(result.exit_code, 0) << result.out << result.err;
  EXPECT_EQ(result.out, "equal: 3 steps, 12 equal samples, checkpoints of steps 2\n");
}

TEST_F(RunDiffTest, NamesAKeyOfTheJob) {
  const RunDiff diff = Diff({.job = [](v1::TrainingJobSpec* spec) {
    spec->mutable_optimizer()->set_learning_rate(0.5);
    spec->set_save_samples(true);
  }});
  ASSERT_EQ(diff.job.size(), 2u);
  const size_t rate = diff.job[0].name == "optimizer.learning_rate" ? 0 : 1;
  EXPECT_EQ(diff.job[rate].name, "optimizer.learning_rate");
  EXPECT_EQ(diff.job[rate].b, "0.5");
  EXPECT_EQ(diff.job[1 - rate].name, "save_samples");
  EXPECT_EQ(diff.job[1 - rate].b, "true");
  EXPECT_FALSE(diff.metrics.first || diff.samples.first || diff.checkpoints.first);
}

TEST_F(RunDiffTest, NamesATokenOfASample) {
  const RunDiff diff = Diff({.sample = [](int64_t, SampleRecord* record, std::vector<float>*) {
    if (record->group >= 3 && record->index == 1) record->tokens[2] = 'x';
  }});
  ASSERT_TRUE(diff.samples.first);
  const SampleDifference& first = *diff.samples.first;
  EXPECT_EQ(first.step, 2);
  EXPECT_EQ(first.group, 3);
  EXPECT_EQ(first.index, 1);
  EXPECT_EQ(first.what, "tokens");
  EXPECT_EQ(first.token, 2);
  EXPECT_EQ(first.a, "99");
  EXPECT_EQ(first.b, "120");
  EXPECT_EQ(diff.samples.samples, 7);
}

TEST_F(RunDiffTest, NamesABitOfALogProb) {
  const RunDiff diff = Diff({.sample = [](int64_t step, SampleRecord*, std::vector<float>* values) {
    if (step == 3) (*values)[1] = std::nextafter((*values)[1], 0.0f);
  }});
  ASSERT_TRUE(diff.samples.first);
  EXPECT_EQ(diff.samples.first->what, "log_probs");
  EXPECT_EQ(diff.samples.first->step, 3);
  EXPECT_EQ(diff.samples.first->token, 1);
  EXPECT_EQ(diff.samples.first->a, "-0.25 (0xbe800000)");
  EXPECT_EQ(diff.samples.first->b, "-0.249999985 (0xbe7fffff)");
}

TEST_F(RunDiffTest, NamesASampleThatTheOtherRunLacks) {
  WriteRun("a", {});
  WriteRun("bb", {});
  const std::string lines = Slurp(dir_ / "bb/samples.jsonl");
  Write("bb/samples.jsonl", lines.substr(lines.find('\n') + 1));
  const auto comparison = DiffSamples(dir_ / "a", dir_ / "bb");
  ASSERT_TRUE(comparison.ok() && comparison->first);
  EXPECT_EQ(comparison->first->what, "sample");
  EXPECT_EQ(comparison->first->a, "step 1, group 0, sample 0");
  EXPECT_EQ(comparison->first->b, "step 1, group 0, sample 1");
}

// Runs with batch.max_lag, whose logs hold what they trained although they save no samples.
TEST_F(RunDiffTest, NamesTheSampleAtWhichAnotherOrderOfArrivalParts) {
  const auto write = [this](const std::string& name, const std::vector<uint64_t>& groups) {
    const WrittenRun run(dir_ / name);
    auto log = ReplayLog::Open(run.path() + "/replay.log", {}, 0);
    ASSERT_TRUE(log.ok()) << log.status();
    for (size_t i = 0; i < groups.size(); ++i) {
      ReplayBatch batch;
      batch.step = static_cast<int64_t>(i) + 1;
      Trajectory trajectory;
      trajectory.key.ordinal = groups[i];
      trajectory.prompt = {1};
      trajectory.sample.tokens = {2};
      trajectory.sample.log_probs = {-0.5f};
      trajectory.sample.versions = {{0, 1}};
      batch.trajectories = {trajectory};
      ASSERT_TRUE(log->Append(batch).ok());
    }
  };
  write("a", {0, 1, 2});
  write("b", {0, 2, 1});
  const auto comparison = DiffSamples(dir_ / "a", dir_ / "b");
  ASSERT_TRUE(comparison.ok() && comparison->first) << comparison.status();
  EXPECT_EQ(comparison->samples, 1);
  EXPECT_EQ(comparison->first->step, 2);
  EXPECT_EQ(comparison->first->what, "sample");
  EXPECT_EQ(comparison->first->a, "step 2, group 1, sample 0");
  EXPECT_EQ(comparison->first->b, "step 2, group 2, sample 0");
}

TEST_F(RunDiffTest, NamesAMetricAndWhatFollowsFromIt) {
  const RunDiff diff = Diff({.step = [](StepRecord* record) {
    if (record->step < 2) return;
    record->loss_scale = 32768;
    record->updates[0].gradient_norm = std::nextafter(0.5, 1.0);
  }});
  ASSERT_TRUE(diff.metrics.first);
  EXPECT_EQ(diff.metrics.first->step, 2);
  EXPECT_FALSE(diff.metrics.first->in_evaluation);
  ASSERT_EQ(diff.metrics.first->metrics.size(), 2u);
  EXPECT_EQ(diff.metrics.first->metrics[0].name, "grad_norm");
  EXPECT_EQ(diff.metrics.first->metrics[0].a, "0.5");
  EXPECT_EQ(diff.metrics.first->metrics[0].b, "0.5000000000000001");
  EXPECT_EQ(diff.metrics.first->metrics[1].name, "loss_scale");
  EXPECT_FALSE(diff.samples.first || diff.checkpoints.first);
}

TEST_F(RunDiffTest, AnEvaluationComesAfterItsStep) {
  WriteRun("a", {});
  WriteRun("bb", {});
  std::string text = Slurp(dir_ / "bb/metrics.jsonl");
  const std::string evaluation = "{\"eval_accuracy\":0.5,\"eval_greedy\":0.5,\"step\":2";
  ASSERT_NE(text.find(evaluation), std::string::npos);
  text.replace(text.find(evaluation), evaluation.size(),
               "{\"eval_accuracy\":0.25,\"eval_greedy\":0.5,\"step\":2");
  Write("bb/metrics.jsonl", text);
  const RunDiff diff = *DiffRuns(dir_ / "a", dir_ / "bb");
  ASSERT_TRUE(diff.metrics.first);
  EXPECT_TRUE(diff.metrics.first->in_evaluation);
  EXPECT_EQ(diff.metrics.first->step, 2);
  EXPECT_EQ(diff.metrics.first->metrics[0].name, "eval_accuracy");
}

TEST_F(RunDiffTest, ARunThatEndsEarlierDiffersThere) {
  WriteRun("a", {});
  WriteRun("bb", {});
  std::string text = Slurp(dir_ / "bb/metrics.jsonl");
  Write("bb/metrics.jsonl", text.substr(0, text.find("\"step\":2") + 4));  // torn in step 2
  const RunDiff diff = *DiffRuns(dir_ / "a", dir_ / "bb");
  ASSERT_TRUE(diff.metrics.first);
  EXPECT_EQ(diff.metrics.first->step, 2);
  EXPECT_EQ(diff.metrics.first->metrics[0].name, "step");
  EXPECT_EQ(diff.metrics.first->metrics[0].a, "2");
  EXPECT_EQ(diff.metrics.first->metrics[0].b, std::nullopt);
  EXPECT_EQ(diff.metrics.steps, 1);
}

TEST_F(RunDiffTest, AMetricThatAnOlderVersionLacksIsANoteAndNoDifference) {
  WriteRun("a", {});
  WriteRun("bb", {});
  std::string old;
  for (Json line : ReadLines(dir_ / "bb/metrics.jsonl")) {
    line.erase("saturated_stores");
    absl::StrAppend(&old, line.dump(), "\n");
  }
  Write("bb/metrics.jsonl", old);
  const RunDiff diff = *DiffRuns(dir_ / "a", dir_ / "bb");
  EXPECT_TRUE(diff.equal());
  EXPECT_THAT(diff.Notes(),
              ElementsAre(testing::EndsWith("/a logs saturated_stores: not compared")));
}

TEST_F(RunDiffTest, NamesAnElementOfATensorAndTheTrainersState) {
  const RunDiff diff = Diff({.state = [](TrainState* state, RunProgress* progress) {
    progress->tokens_trained = 9;
    for (const ParameterSpec& spec : state->layout().specs()) {
      if (spec.name != "layers.1.mlp.down") continue;
      // Row 3, column 2 of [hidden 32, intermediate 48].
      state->second_moment.flat().as<float>()[spec.offset + 3 * 48 + 2] = 0.75f;
      state->second_moment.flat().as<float>()[spec.offset + 4 * 48] = 1.0f;
    }
  }});
  ASSERT_TRUE(diff.checkpoints.first && diff.checkpoints.first->tensor);
  EXPECT_EQ(diff.checkpoints.first->step, 2);
  ASSERT_EQ(diff.checkpoints.first->trainer.size(), 1u);
  EXPECT_EQ(diff.checkpoints.first->trainer[0].name, "progress.tokens_trained");
  const TensorDifference& tensor = *diff.checkpoints.first->tensor;
  EXPECT_EQ(tensor.file, "state.safetensors");
  EXPECT_EQ(tensor.tensor, "second_moment");
  EXPECT_EQ(tensor.parameter, "layers.1.mlp.down");
  EXPECT_THAT(tensor.element, ElementsAre(3, 2));
  EXPECT_EQ(tensor.a, "0 (0x00000000)");
  EXPECT_EQ(tensor.b, "0.75 (0x3f400000)");
  EXPECT_EQ(tensor.differing_elements, 2);
  EXPECT_EQ(tensor.differing_tensors, 1);
  EXPECT_EQ(tensor.largest, 1);
  EXPECT_EQ(tensor.largest_in, "second_moment layers.1.mlp.down");
}

TEST_F(RunDiffTest, ACheckpointThatWasChangedLaterIsNoted) {
  WriteRun("a", {});
  WriteRun("bb", {});
  std::string bytes = Slurp(dir_ / "bb/checkpoints/step_2/model/model.safetensors");
  bytes.back() = static_cast<char>(bytes.back() ^ 1);
  Write("bb/checkpoints/step_2/model/model.safetensors", bytes);
  const RunDiff diff = *DiffRuns(dir_ / "a", dir_ / "bb");
  ASSERT_TRUE(diff.checkpoints.first && diff.checkpoints.first->tensor);
  EXPECT_EQ(diff.checkpoints.first->tensor->file, "model");
  EXPECT_EQ(diff.checkpoints.first->tensor->differing_elements, 1);
  ASSERT_EQ(diff.Notes().size(), 1u);
  EXPECT_THAT(diff.Notes()[0],
              HasSubstr("bb/checkpoints/step_2 was changed after the run wrote it"));
}

// A bit of step 2's gradient, which the samples of step 3 follow.
TEST_F(RunDiffTest, PrintsWhatCameFirst) {
  WriteRun("a", {});
  WriteRun("bb", {.job = [](v1::TrainingJobSpec* spec) { spec->set_seed(9); },
                  .step =
                      [](StepRecord* record) {
                        if (record->step >= 2) record->updates[0].gradient_norm = 0.25;
                      },
                  .sample =
                      [](int64_t step, SampleRecord* record, std::vector<float>*) {
                        if (step == 3) record->tokens = {'a', 'b'};
                      },
                  .state = [](TrainState* state,
                              RunProgress*) { state->master.flat().as<float>()[0] = 0.5f; }});
  const Result table = Run("halfstep diff a bb");
  EXPECT_EQ(table.exit_code, 1);
  std::vector<std::string> where;
  for (size_t at = 0; at < table.out.size(); at = table.out.find('\n', at) + 1) {
    where.push_back(table.out.substr(at, table.out.find("  ", at) - at));
  }
  ASSERT_GE(where.size(), 6u) << table.out;
  EXPECT_THAT(std::vector<std::string>(where.begin(), where.begin() + 5),
              ElementsAre("where", "job", "step 2", "checkpoint of step 2", "sample"))
      << table.out;
  EXPECT_THAT(table.out, HasSubstr("state.safetensors: master embedding [0, 0]"));
  EXPECT_THAT(table.out, HasSubstr("step 3, group 4, sample 0, tokens at token 2"));
  const Result json = Run("halfstep diff a bb --format json");
  EXPECT_EQ(json.exit_code, 1);
  const Json diff = Json::parse(json.out);
  EXPECT_EQ(diff["equal"], false);
  EXPECT_EQ(diff["job"][0]["name"], "seed");
  EXPECT_EQ(diff["differences"][0]["kind"], "metric");
  EXPECT_EQ(diff["differences"][1]["tensor"]["element"], Json({0, 0}));
  EXPECT_EQ(diff["differences"][2]["token"], 2);
  EXPECT_EQ(diff["differences"][2]["b"], "the end");
}

TEST_F(RunDiffTest, ErrorsAreNeverTakenForADifference) {
  WriteRun("a", {});
  WriteRun("bb", {});
  EXPECT_EQ(Run("halfstep diff a nowhere").exit_code, 3);
  Write("bb/metrics.jsonl", "{}\n");
  const Result corrupt = Run("halfstep diff a bb");
  EXPECT_EQ(corrupt.exit_code, 2);
  EXPECT_THAT(corrupt.err, StartsWith("error: bb/metrics.jsonl:1: it has no step"));
  Write("bb/metrics.jsonl", Slurp(dir_ / "a/metrics.jsonl"));
  Write("bb/checkpoints/step_2/trainer.json", "{");
  const Result torn = Run("halfstep diff a bb");
  EXPECT_EQ(torn.exit_code, 2);
  EXPECT_THAT(torn.err, HasSubstr("bb/checkpoints/step_2/trainer.json: "));
}

}  // namespace
}  // namespace halfstep
