// SPDX-License-Identifier: Apache-2.0
// A run folder of a few lines, written by what writes those of real runs.
#pragma once

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "common/config/resolve_spec.h"
#include "common/config/spec_text.h"
#include "halfstep/v1/training_job.pb.h"
#include "learner_server/training/run_folder.h"
#include "learner_server/training/sample_log.h"
#include "learner_server/training/step_metrics.h"
#include "tests/testing/byte_tokenizer.h"

namespace halfstep {

class WrittenRun {
 public:
  explicit WrittenRun(const std::string& path, const v1::TrainingJobSpec& spec = Spec())
      : folder_(*RunFolder::Open(path, "job")) {
    EXPECT_TRUE(folder_.WriteJob(SpecToJson(spec)).ok());
  }

  const std::string& path() const { return folder_.path(); }

  static v1::TrainingJobSpec Spec() {
    v1::TrainingJobSpec spec;
    spec.set_model("model");
    spec.set_output_dir("run");
    spec.set_steps(4);
    spec.mutable_data()->set_train("train.jsonl");
    ResolveSpec("job", &spec);
    return spec;
  }

  static StepRecord Step(int64_t step, double reward) {
    StepRecord record;
    record.step = step;
    record.batch.groups = 2;
    record.batch.samples = 4;
    record.batch.lengths = {3, 3, 3, 3};
    record.batch.reward_mean = reward;
    record.loss_scale = 65536;
    OptimizerStepReport update;
    update.applied = true;
    update.tokens = 12;
    update.gradient_norm = 0.5;
    update.forward_backward_time = absl::Milliseconds(700);
    record.updates.push_back(update);
    record.wait_time = absl::Milliseconds(200);
    record.total_time = absl::Seconds(1);
    return record;
  }
  void Metrics(const StepRecord& record) const {
    EXPECT_TRUE(folder_.AppendMetrics(MetricsLine(record)).ok());
  }
  void Evaluation(int64_t step, double accuracy) const {
    EvaluationResult result;
    result.accuracy = accuracy;
    result.greedy = accuracy;
    EXPECT_TRUE(folder_.AppendMetrics(EvaluationLine(step, result)).ok());
  }

  static SampleRecord Sample(uint64_t group, uint32_t index, const std::string& text) {
    SampleRecord record;
    record.group = group;
    record.index = index;
    record.row = static_cast<int64_t>(group) + 1;
    record.rollout_id = "rollout-0";
    record.versions = {{group, static_cast<uint32_t>(text.size())}};
    record.tokens.assign(text.begin(), text.end());
    record.reward = {RewardOutcome::kScore, 1, ""};
    record.advantage = 0.25;
    return record;
  }
  void Samples(int64_t step, const SampleRecord& record) const {
    EXPECT_TRUE(folder_.AppendSamples({Line(step, record)}).ok());
  }
  // With the log-probs of its tokens.
  void Samples(int64_t step, const SampleRecord& record,
               const std::vector<float>& log_probs) const {
    nlohmann::ordered_json line = nlohmann::ordered_json::parse(Line(step, record));
    line["log_probs"] = log_probs;
    EXPECT_TRUE(folder_.AppendSamples({line.dump()}).ok());
  }

 private:
  static std::string Line(int64_t step, const SampleRecord& record) {
    return SampleLine(step, record, *MakeByteTokenizer());
  }

  RunFolder folder_;
};

}  // namespace halfstep
