// SPDX-License-Identifier: Apache-2.0
// A small model folder, data and jobs on it, for tests of whole runs in one process.
#pragma once

#include <gtest/gtest.h>

#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/config/resolve_spec.h"
#include "common/metrics/learner_metrics.h"
#include "halfstep/v1/training_job.pb.h"
#include "learner_server/training/training_job_runner.h"
#include "tests/testing/byte_tokenizer.h"
#include "tests/testing/local_rollout_pool.h"
#include "tests/testing/temp_dir.h"

namespace halfstep {

inline void WriteText(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

inline std::string ReadText(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

inline std::vector<nlohmann::json> ReadLines(const std::string& path) {
  std::vector<nlohmann::json> lines;
  std::ifstream in(path);
  for (std::string line; std::getline(in, line);) lines.push_back(nlohmann::json::parse(line));
  return lines;
}

// A model folder without weights: two layers, one token per byte.
inline void WriteModelFolder(const std::string& path) {
  std::filesystem::create_directories(path);
  const nlohmann::json config{{"architectures", {"Qwen3ForCausalLM"}},
                              {"model_type", "qwen3"},
                              {"vocab_size", 257},
                              {"hidden_size", 32},
                              {"intermediate_size", 48},
                              {"num_hidden_layers", 2},
                              {"num_attention_heads", 4},
                              {"num_key_value_heads", 2},
                              {"head_dim", 8},
                              {"hidden_act", "silu"},
                              {"max_position_embeddings", 32},
                              {"initializer_range", 0.1},
                              {"rms_norm_eps", 1e-6},
                              {"rope_theta", 10000.0},
                              {"tie_word_embeddings", true},
                              {"eos_token_id", 256}};
  WriteText(path + "/config.json", config.dump());
  WriteText(path + "/tokenizer.json", ByteTokenizerJson());
}

// Records what a run says; asks it to end after a step.
class RecordingControl final : public RunControl {
 public:
  RunRequest request() const override {
    absl::MutexLock lock(&mutex_);
    return request_;
  }
  void Emit(v1::TrainingJobEvent event) override {
    absl::MutexLock lock(&mutex_);
    events_.push_back(std::move(event));
  }
  void SetProgress(int64_t step, uint64_t) override {
    if (on_step_) on_step_(step);
    absl::MutexLock lock(&mutex_);
    step_ = step;
    if (step == request_at_) request_ = request_then_;
  }

  void Request(RunRequest request) {
    absl::MutexLock lock(&mutex_);
    request_ = request;
  }
  // Called on the trainer's thread after each step.
  void OnStep(std::function<void(int64_t step)> on_step) { on_step_ = std::move(on_step); }

  void RequestAfter(int64_t step, RunRequest request) {
    request_at_ = step;
    request_then_ = request;
  }
  std::vector<v1::TrainingJobEvent> events() const {
    absl::MutexLock lock(&mutex_);
    return events_;
  }
  std::vector<std::string> notices() const {
    std::vector<std::string> reasons;
    for (const v1::TrainingJobEvent& event : events()) {
      if (event.has_notice()) reasons.push_back(event.notice().reason());
    }
    return reasons;
  }
  int64_t step() const {
    absl::MutexLock lock(&mutex_);
    return step_;
  }

 private:
  std::function<void(int64_t)> on_step_;
  mutable absl::Mutex mutex_;
  int64_t request_at_ = -1;
  RunRequest request_then_ = RunRequest::kNone;
  RunRequest request_ ABSL_GUARDED_BY(mutex_) = RunRequest::kNone;
  std::vector<v1::TrainingJobEvent> events_ ABSL_GUARDED_BY(mutex_);
  int64_t step_ ABSL_GUARDED_BY(mutex_) = 0;
};

// A folder that jobs run under, with data for both objectives. The task: answer any prompt with
// "a"; the supervised data answers with a, b, c and d equally often.
class TinyWorkplace {
 public:
  TinyWorkplace() {
    WriteModelFolder(root_ / "start");
    std::string rows, responses;
    const std::string letters = "abcd";
    for (int i = 0; i < 64; ++i) {
      const std::string prompt = absl::StrCat(i % 10, "+", i / 10, "=");
      absl::StrAppend(&rows, "{\"prompt\":\"", prompt, "\",\"answer\":\"a\"}\n");
      absl::StrAppend(&responses, "{\"prompt\":\"", prompt, "\",\"response\":\"",
                      letters.substr((i * 7 + i / 4) % 4, 1), "\"}\n");
    }
    WriteText(root_ / "train.jsonl", rows);
    WriteText(root_ / "eval.jsonl", rows.substr(0, rows.find('\n') * 4 + 4));
    WriteText(root_ / "sft.jsonl", responses);
  }

  const TempDir& root() const { return root_; }

  static v1::TrainingJobSpec SupervisedSpec(int64_t steps) {
    v1::TrainingJobSpec spec;
    spec.set_objective(v1::OBJECTIVE_SFT);
    spec.set_model("start");
    spec.set_output_dir("sft");
    spec.set_steps(steps);
    spec.mutable_data()->set_train("sft.jsonl");
    spec.mutable_batch()->set_prompts(32);
    spec.mutable_optimizer()->set_learning_rate(0.01);
    spec.mutable_checkpoint()->set_every_steps(0);
    ResolveSpec("sft", &spec);
    return spec;
  }

  static v1::TrainingJobSpec RlSpec(const std::string& output, int64_t steps) {
    v1::TrainingJobSpec spec;
    spec.set_model("sft/model");
    spec.set_output_dir(output);
    spec.set_steps(steps);
    spec.mutable_data()->set_train("train.jsonl");
    spec.mutable_sampling()->set_max_new_tokens(4);
    spec.mutable_batch()->set_prompts(8);
    spec.mutable_batch()->set_samples(4);
    spec.mutable_optimizer()->set_learning_rate(0.003);
    spec.mutable_checkpoint()->set_every_steps(0);
    ResolveSpec(output, &spec);
    return spec;
  }

 private:
  TempDir root_;
};

// One learner over a pool.
class TinyLearner {
 public:
  explicit TinyLearner(const std::string& root, RolloutPool* pool,
                       const RolloutClientOptions& rollouts = {})
      : metrics_(registry_),
        runner_({.root = root,
                 .state = "",
                 .incarnation = "test",
                 .threads = 1,
                 .scoring_threads = 1,
                 .rollouts = rollouts},
                pool, &metrics_) {}

  absl::StatusOr<RunResult> Run(const std::string& job_id, const v1::TrainingJobSpec& spec) {
    summary_.Clear();
    return runner_.Run(job_id, ++epoch_, spec, &control_, &summary_);
  }

  RecordingControl& control() { return control_; }
  const v1::RunSummary& summary() const { return summary_; }
  TrainingJobRunner& runner() { return runner_; }
  LearnerMetrics& metrics() { return metrics_; }
  std::string Scrape() const { return registry_.Scrape(); }

 private:
  Registry registry_;
  LearnerMetrics metrics_;
  RecordingControl control_;
  v1::RunSummary summary_;
  TrainingJobRunner runner_;
  uint64_t epoch_ = 0;
};

// Whole runs from a base model, which is made once for all suites of a program: their runs need
// folders of different names.
class TinyRunTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    if (workplace_ != nullptr) return;
    workplace_ = std::make_unique<TinyWorkplace>();
    TinyLearner learner(root(), nullptr);
    const auto result = learner.Run("sft", TinyWorkplace::SupervisedSpec(60));
    ASSERT_TRUE(result.ok()) << result.status();
    sft_summary_ = learner.summary();
  }

  static const std::string& root() { return workplace_->root().path(); }
  // Of the base model's own run.
  static const v1::RunSummary& sft_summary() { return sft_summary_; }

  // Runs to the end, or on to it, with nothing in the way.
  static v1::RunSummary RunWhole(const v1::TrainingJobSpec& spec) {
    LocalRolloutPool pool;
    TinyLearner learner(root(), &pool);
    const auto result = learner.Run(spec.output_dir(), spec);
    EXPECT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(result->outcome, RunOutcome::kSucceeded);
    return learner.summary();
  }

  // Ends after `stop_at` steps as `request` says, then goes on in a new learner.
  static v1::RunSummary RunInTwoParts(const v1::TrainingJobSpec& spec, int64_t stop_at,
                                      RunRequest request) {
    LocalRolloutPool pool;
    {
      TinyLearner first(root(), &pool);
      first.control().RequestAfter(stop_at, request);
      const auto result = first.Run(spec.output_dir(), spec);
      EXPECT_TRUE(result.ok()) << result.status();
      EXPECT_EQ(result->outcome, request == RunRequest::kPause    ? RunOutcome::kPaused
                                 : request == RunRequest::kCancel ? RunOutcome::kCancelled
                                                                  : RunOutcome::kStopped);
    }
    TinyLearner second(root(), &pool);
    const auto result = second.Run(spec.output_dir(), spec);
    EXPECT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(result->outcome, RunOutcome::kSucceeded);
    return second.summary();
  }

 private:
  static inline std::unique_ptr<TinyWorkplace> workplace_;
  static inline v1::RunSummary sft_summary_;
};

}  // namespace halfstep
