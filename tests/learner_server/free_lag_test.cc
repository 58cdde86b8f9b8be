// SPDX-License-Identifier: Apache-2.0
// Jobs with batch.max_lag: weights change in the middle of responses, no token is older than
// allowed, and the updates can be had again from the log, to the bit.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "common/base/error_reason.h"
#include "kernels/workspace.h"
#include "learner_server/training/free_rollout_source.h"
#include "learner_server/training/job_inputs.h"
#include "learner_server/training/replay.h"
#include "learner_server/training/score_responses.h"
#include "learner_server/training/token_lag.h"
#include "tests/learner_server/tiny_job.h"

namespace halfstep {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr absl::Duration kPatience = absl::Seconds(60);

// Of the engine, which draws a token of each of 16 responses in one: a batch takes 16 steps and at
// most 15 more for the stragglers among its responses; the next batches are begun beside it.
constexpr int kStepsPerVersion = 40;

using Assigned = std::pair<uint64_t, uint64_t>;  // group, lowest version that may begin it

// An engine that does so many steps with each set of weights and then waits for the next: whatever
// the speed of the trainer, sets change while responses grow. Keeps every set.
class PacedPool final : public RolloutPool {
 public:
  explicit PacedPool(int steps_per_version) : steps_per_version_(steps_per_version) {
    pool_.OnEngineStep([this](const EngineStats& stats) { Pace(stats.steps); });
  }

  void BeginJob(const RolloutJob& job, SampleSink* sink) override {
    {
      absl::MutexLock lock(&mutex_);
      steps_ = may_do_ = 0;
      ending_ = false;
    }
    pool_.BeginJob(job, sink);
  }
  void EndJob() override {
    {
      absl::MutexLock lock(&mutex_);
      ending_ = true;
    }
    pool_.EndJob();
  }
  void Publish(std::shared_ptr<const WeightSet> weights) override {
    pool_.Publish(weights);
    absl::MutexLock lock(&mutex_);
    may_do_ = steps_ + steps_per_version_;
    sets_[weights->manifest().version] = std::move(weights);
  }
  void ReleaseWeightsBelow(uint64_t version) override { pool_.ReleaseWeightsBelow(version); }
  void Assign(std::vector<GroupAssignment> groups) override { pool_.Assign(std::move(groups)); }
  RolloutPoolStatus Status() const override { return pool_.Status(); }

  std::map<uint64_t, std::shared_ptr<const WeightSet>> sets() const {
    absl::MutexLock lock(&mutex_);
    return sets_;
  }

 private:
  // Also called where the engine did no step.
  void Pace(int64_t steps) {
    absl::MutexLock lock(&mutex_);
    if (steps == steps_) return;
    steps_ = steps;
    auto may_go_on = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return steps_ < may_do_ || ending_;
    };
    if (mutex_.AwaitWithTimeout(absl::Condition(&may_go_on), kPatience)) return;
    ADD_FAILURE() << "no new weights " << kPatience << " after step " << steps_ << " of the engine";
    ending_ = true;
  }

  const int steps_per_version_;
  LocalRolloutPool pool_;
  mutable absl::Mutex mutex_;
  int64_t steps_ ABSL_GUARDED_BY(mutex_) = 0;  // of the engine
  int64_t may_do_ ABSL_GUARDED_BY(mutex_) = 0;
  bool ending_ ABSL_GUARDED_BY(mutex_) = false;
  std::map<uint64_t, std::shared_ptr<const WeightSet>> sets_ ABSL_GUARDED_BY(mutex_);
};

// Every batch of the log.
std::vector<ReplayBatch> ReadBatches(const std::string& run) {
  std::vector<ReplayBatch> batches;
  auto log = ReplayLogReader::Open(run + "/replay.log");
  EXPECT_TRUE(log.ok()) << log.status();
  for (;;) {
    auto record = log->Next();
    EXPECT_TRUE(record.ok()) << record.status();
    if (!record.ok() || std::holds_alternative<std::monostate>(*record)) return batches;
    if (auto* batch = std::get_if<ReplayBatch>(&*record)) batches.push_back(std::move(*batch));
  }
}

class FreeLagTest : public testing::Test {
 protected:
  // Responses of a model that has hardly learned to end them.
  void SetUp() override {
    LocalRolloutPool none;
    TinyLearner learner(root(), &none);
    ASSERT_TRUE(learner.Run("sft", TinyWorkplace::SupervisedSpec(2)).ok());
  }

  std::string root() const { return workplace_.root().path(); }

  static v1::TrainingJobSpec FreeSpec(const std::string& output, int64_t steps = 6) {
    v1::TrainingJobSpec spec = TinyWorkplace::RlSpec(output, steps);
    spec.mutable_sampling()->set_max_new_tokens(16);
    spec.mutable_batch()->set_prompts(4);
    spec.mutable_batch()->clear_lag();
    spec.mutable_batch()->set_max_lag(2);
    spec.mutable_batch()->set_micro_batch_tokens(256);
    spec.mutable_reward()->set_type(v1::REWARD_TYPE_REGEX);
    spec.mutable_reward()->set_pattern("[a-m]");
    ResolveSpec(output, &spec);
    return spec;
  }

  v1::RunSummary RunFree(const v1::TrainingJobSpec& spec, RolloutPool* pool) {
    TinyLearner learner(root(), pool);
    const auto result = learner.Run(spec.output_dir(), spec);
    EXPECT_TRUE(result.ok()) << result.status();
    if (!result.ok()) return {};
    EXPECT_EQ(result->outcome, RunOutcome::kSucceeded) << result->message;
    return learner.summary();
  }
  // A run of its own, and what it came to.
  v1::RunSummary RunFree(const std::string& output) {
    PacedPool pool(kStepsPerVersion);
    return RunFree(FreeSpec(output), &pool);
  }

  absl::StatusOr<ReplayResult> Replay(const std::string& output) const {
    return ReplayRun({.run = root() + "/" + output, .root = root(), .threads = 2, .go_on = {}});
  }
  void ExpectReplayEqual(const std::string& output, const v1::RunSummary& summary, int64_t steps) {
    const auto replay = Replay(output);
    ASSERT_TRUE(replay.ok()) << replay.status();
    EXPECT_TRUE(replay->equal) << replay->what << " after step " << replay->differs_after;
    EXPECT_TRUE(replay->has_end);
    EXPECT_FALSE(replay->torn);
    EXPECT_EQ(replay->steps, steps);
    EXPECT_EQ(replay->weights_digest, summary.weights_digest());
    EXPECT_EQ(replay->state_digest, summary.state_digest());
  }
  std::string LogOf(const std::string& output) const {
    return root() + "/" + output + "/replay.log";
  }

  TinyWorkplace workplace_;
};

// A set of weights as a rollout would load it.
std::unique_ptr<ModelWeights> Load(const WeightSet& set, const HuggingFaceModel& model,
                                   int64_t positions) {
  auto weights =
      std::make_unique<ModelWeights>(model.config, model.layout, DType::kFloat16, positions);
  const uint8_t* from = set.bytes().data();
  int parameter = 0;
  for (const TensorManifest& tensor : set.manifest().tensors) {
    const Tensor to = tensor.name == kRopeTableName ? weights->rope_table()
                                                    : weights->parameters().view(parameter++);
    std::memcpy(to.data(), from, tensor.bytes);
    from += tensor.bytes;
  }
  Workspace workspace;
  ExecContext ctx;
  ctx.workspace = &workspace;
  weights->Pack(ctx);
  return weights;
}

TEST_F(FreeLagTest, EachTokenIsOneOfItsVersionBitForBit) {
  PacedPool pool(kStepsPerVersion);
  const v1::TrainingJobSpec spec = FreeSpec("run");
  const v1::RunSummary summary = RunFree(spec, &pool);
  EXPECT_EQ(summary.max_abs_logprob_diff(), 0);
  EXPECT_GT(summary.tokens_compared(), 0) << "tokens of the policy in force are compared";
  EXPECT_LT(summary.tokens_compared(), summary.tokens_trained()) << "and no others";

  const auto settings = MakeJobSettings(spec, root());
  ASSERT_TRUE(settings.ok()) << settings.status();
  const auto inputs = LoadJobInputs(*settings);
  ASSERT_TRUE(inputs.ok()) << inputs.status();
  const auto sets = pool.sets();
  int64_t spanning = 0, tokens_compared = 0;
  std::set<uint64_t> groups;
  for (const ReplayBatch& batch : ReadBatches(root() + "/run")) {
    for (const Trajectory& trajectory : batch.trajectories) {
      groups.insert(trajectory.key.ordinal);
      spanning += trajectory.sample.versions.size() > 1;
      TrainSequence sequence;
      sequence.tokens = trajectory.prompt;
      sequence.prompt_tokens = static_cast<int64_t>(trajectory.prompt.size());
      sequence.tokens.insert(sequence.tokens.end(), trajectory.sample.tokens.begin(),
                             trajectory.sample.tokens.end());
      size_t begin = 0;
      for (const VersionRun& run : trajectory.sample.versions) {
        EXPECT_LE(batch.version - run.version, 2u) << "no token is older than max_lag";
        if (run.version == batch.version) tokens_compared += run.count;
        const auto weights =
            Load(*sets.at(run.version), inputs->model, inputs->max_sequence_tokens);
        Workspace workspace;
        ExecContext ctx;
        ctx.workspace = &workspace;
        const auto scored = ScoreResponses(ctx, *weights, {&sequence, 1}, {});
        ASSERT_TRUE(scored.ok()) << scored.status();
        EXPECT_EQ(
            std::memcmp((*scored)[0].data() + begin, trajectory.sample.log_probs.data() + begin,
                        run.count * sizeof(float)),
            0)
            << "step " << batch.step << ", group " << trajectory.key.ordinal << ", tokens from "
            << begin << " of version " << run.version;
        begin += run.count;
      }
      EXPECT_EQ(begin, trajectory.sample.tokens.size());
    }
  }
  EXPECT_GT(spanning, 0) << "weights changed in the middle of responses";
  EXPECT_EQ(summary.tokens_compared(), tokens_compared);
  EXPECT_EQ(groups.size(), 24u) << "each prompt is trained once";
  EXPECT_EQ(*groups.rbegin(), 23u);
  const auto lines = ReadLines(root() + "/run/metrics.jsonl");
  int64_t spanning_logged = 0;
  double lag_max = 0;
  for (const auto& line : lines) {
    spanning_logged += line["samples_spanning_versions"].get<int64_t>();
    lag_max = std::max(lag_max, line["lag_max"].get<double>());
    EXPECT_LE(line["lag_mean"], line["lag_max"]);
  }
  EXPECT_EQ(spanning_logged, spanning);
  EXPECT_GT(lag_max, 0);
  EXPECT_LE(lag_max, 2);
}

TEST_F(FreeLagTest, ThreeFreeRunsAreReplayedToTheBit) {
  for (const char* output : {"a", "b", "c"}) {
    ExpectReplayEqual(output, RunFree(output), 6);
  }
  std::set<std::string> masters;
  for (const ReplayBatch& batch : ReadBatches(root() + "/a")) masters.insert(batch.master_digest);
  EXPECT_EQ(masters.size(), 6u) << "each step changed the weights";
}

TEST_F(FreeLagTest, APausedAndATornRunGoesOnAndIsReplayedWhole) {
  v1::RunSummary summary;
  {
    PacedPool pool(kStepsPerVersion);
    TinyLearner learner(root(), &pool);
    learner.control().RequestAfter(2, RunRequest::kPause);
    const auto paused = learner.Run("run", FreeSpec("run"));
    ASSERT_TRUE(paused.ok()) << paused.status();
    EXPECT_EQ(paused->outcome, RunOutcome::kPaused);
    ExpectReplayEqual("run", learner.summary(), 2);
  }
  // A crash later on leaves a batch beyond the checkpoint and half a line.
  std::string log = ReadText(LogOf("run"));
  WriteText(LogOf("run"), log + log.substr(log.size() / 2, 40));
  const auto torn = Replay("run");
  ASSERT_TRUE(torn.ok()) << torn.status();
  EXPECT_TRUE(torn->equal && torn->has_end);
  summary = RunFree("run");
  ExpectReplayEqual("run", summary, 6);
  std::set<uint64_t> groups;
  for (const ReplayBatch& batch : ReadBatches(root() + "/run")) {
    for (const Trajectory& trajectory : batch.trajectories) groups.insert(trajectory.key.ordinal);
  }
  EXPECT_EQ(groups.size(), 24u) << "what the checkpoint had passed over is trained too";
}

TEST_F(FreeLagTest, AResumedRunWithoutItsLogPausesAndSaysWhy) {
  PacedPool pool(kStepsPerVersion);
  TinyLearner learner(root(), &pool);
  learner.control().RequestAfter(2, RunRequest::kPause);
  ASSERT_TRUE(learner.Run("run", FreeSpec("run")).ok());
  fs::remove(LogOf("run"));
  TinyLearner second(root(), &pool);
  const auto resumed = second.Run("run", FreeSpec("run"));
  ASSERT_TRUE(resumed.ok()) << resumed.status();
  EXPECT_EQ(resumed->outcome, RunOutcome::kPaused);
  EXPECT_EQ(resumed->reason, "NO_REPLAY_LOG");
}

TEST_F(FreeLagTest, AReplayNamesTheStepThatDiffers) {
  const v1::RunSummary summary = RunFree("run");
  // The same log with another reward in the third batch.
  auto reader = ReplayLogReader::Open(LogOf("run"));
  ASSERT_TRUE(reader.ok());
  fs::create_directories(root() + "/other");
  fs::copy(root() + "/run/job.json", root() + "/other/job.json");
  auto log = ReplayLog::Open(LogOf("other"), reader->header(), 0);
  ASSERT_TRUE(log.ok()) << log.status();
  for (ReplayBatch& batch : ReadBatches(root() + "/run")) {
    if (batch.step == 3) batch.trajectories[0].reward.score += 1;
    ASSERT_TRUE(log->Append(batch).ok());
  }
  const auto replay = Replay("other");
  ASSERT_TRUE(replay.ok()) << replay.status();
  EXPECT_FALSE(replay->equal);
  EXPECT_EQ(replay->differs_after, 3);
  EXPECT_EQ(replay->what, "master_digest");
  EXPECT_NE(replay->recorded, replay->replayed);
}

TEST_F(FreeLagTest, RefusesADamagedLogAndThatOfAnotherRun) {
  RunFree("run");
  const auto reason = [this] { return ReasonOf(Replay("run").status()); };
  const std::string log = ReadText(LogOf("run"));
  const std::string job = ReadText(root() + "/run/job.json");
  const std::string weights_path = root() + "/sft/model/model.safetensors";
  const std::string weights = ReadText(weights_path);

  std::string changed = log;
  changed[changed.find("\"log_probs\":[-") + 14] ^= 1;
  WriteText(LogOf("run"), changed);
  EXPECT_EQ(reason(), "REPLAY_LOG_DAMAGED");
  EXPECT_THAT(std::string(Replay("run").status().message()), HasSubstr("replay.log:3: "));
  // A group is lost.
  const size_t second = log.find('\n', log.find('\n') + 1) + 1;
  WriteText(LogOf("run"), log.substr(0, second) + log.substr(log.find('\n', second) + 1));
  EXPECT_EQ(reason(), "REPLAY_LOG_DAMAGED");
  WriteText(LogOf("run"), log);

  WriteText(root() + "/run/job.json", job + "\n");
  EXPECT_EQ(reason(), "REPLAY_LOG_OF_OTHER_RUN");
  EXPECT_THAT(std::string(Replay("run").status().message()), HasSubstr("configuration"));
  WriteText(root() + "/run/job.json", job);

  changed = weights;
  changed[changed.size() - 1] ^= 1;
  WriteText(weights_path, changed);
  EXPECT_EQ(reason(), "REPLAY_LOG_OF_OTHER_RUN");
  EXPECT_THAT(std::string(Replay("run").status().message()), HasSubstr("initial model"));
  WriteText(weights_path, weights);

  EXPECT_EQ(ReasonOf(Replay("sft").status()), "NO_REPLAY_LOG");
  EXPECT_EQ(ReasonOf(Replay("start").status()), "NOT_A_RUN");
  EXPECT_EQ(reason(), "") << "everything is as it was";
}

// ---- The bound

// Answers every group at once as the version that the test says, but for those it holds back.
class ScriptedPool final : public RolloutPool {
 public:
  void BeginJob(const RolloutJob&, SampleSink* sink) override { sink_ = sink; }
  void EndJob() override {}
  void Publish(std::shared_ptr<const WeightSet>) override {}
  void ReleaseWeightsBelow(uint64_t) override {}
  void Assign(std::vector<GroupAssignment> groups) override {
    for (const GroupAssignment& group : groups) {
      assigned.emplace_back(group.key.ordinal, group.version);
      EXPECT_TRUE(group.free);
      if (held.contains(group.key.ordinal)) {
        held_back_[group.key.ordinal] = group;
      } else {
        Answer(group, std::max(group.version, serves));
      }
    }
  }
  RolloutPoolStatus Status() const override {
    RolloutPoolStatus status;
    status.rollouts_serving = 1;
    return status;
  }

  void Release(uint64_t ordinal, uint64_t version) {
    held.erase(ordinal);
    Answer(held_back_.at(ordinal), version);
  }

  uint64_t serves = 0;
  std::set<uint64_t> held;
  std::vector<Assigned> assigned;

 private:
  void Answer(const GroupAssignment& group, uint64_t version) {
    for (uint32_t index = 0; index < group.samples; ++index) {
      Sample sample;
      sample.index = index;
      sample.tokens = {97, 98};
      sample.log_probs = {-1, -1};
      sample.versions = {{version, 2}};
      sink_->OnSample(group, "r", std::move(sample));
    }
  }

  SampleSink* sink_ = nullptr;
  std::map<uint64_t, GroupAssignment> held_back_;
};

TEST_F(FreeLagTest, WhatIsTooOldIsDroppedWholeAndGeneratedAgain) {
  v1::TrainingJobSpec spec = FreeSpec("run", 4);
  spec.mutable_batch()->set_prompts(2);
  spec.mutable_batch()->set_samples(2);
  spec.mutable_batch()->set_max_lag(1);
  const auto settings = MakeJobSettings(spec, root());
  ASSERT_TRUE(settings.ok()) << settings.status();
  auto inputs = LoadJobInputs(*settings);
  ASSERT_TRUE(inputs.ok()) << inputs.status();
  const TrainState state(inputs->model.config, inputs->model.layout, DType::kFloat16,
                         inputs->max_sequence_tokens, settings->loss_scale);
  auto log = ReplayLog::Open(workplace_.root() / "replay.log", {}, 0);
  ASSERT_TRUE(log.ok()) << log.status();
  ScriptedPool pool;
  RecordingControl control;
  RolloutClient client(MakeRolloutJob(*settings, *inputs, 1), {}, &pool, &control,
                       [](const auto&, const auto&, std::function<void(Reward)> done) {
                         done({RewardOutcome::kScore, 1, ""});
                       });
  FreeRolloutSource source(*settings, inputs->model.config.max_positions, &*inputs->train, &client,
                           &state, &*log);
  RunProgress progress;
  const auto next = [&]() -> TrainBatch {
    const auto batch = source.Next(progress.step + 1, progress);
    EXPECT_TRUE(batch.ok()) << batch.status();
    progress.step += 1;
    progress.policy_version += 1;
    progress.cursor += 2;
    progress.open_groups = batch->open_groups;
    pool.serves = progress.policy_version;
    return *batch;
  };

  pool.held = {1};
  TrainBatch batch = next();
  // Two batches ahead; what comes second may be begun by the version before.
  EXPECT_THAT(pool.assigned,
              ElementsAre(Assigned(0, 0), Assigned(1, 0), Assigned(2, 0), Assigned(3, 0)));
  EXPECT_THAT(batch.open_groups, ElementsAre(1u));
  pool.assigned.clear();
  batch = next();
  EXPECT_THAT(pool.assigned, ElementsAre(Assigned(4, 1), Assigned(5, 1)));
  EXPECT_THAT(batch.open_groups, ElementsAre(1u));
  EXPECT_EQ(batch.statistics.samples_stale, 0);

  pool.assigned.clear();
  pool.Release(1, /*version=*/0);
  batch = next();
  EXPECT_EQ(batch.statistics.samples_stale, 2);
  EXPECT_EQ(batch.statistics.samples_dropped.at("stale"), 2);
  EXPECT_EQ(batch.statistics.samples, 4);
  EXPECT_EQ(batch.statistics.tokens_generated, 8 + 4);
  EXPECT_THAT(pool.assigned, ElementsAre(Assigned(6, 2), Assigned(7, 2), Assigned(1, 2)));
  for (const auto& update : batch.updates) {
    for (const TrainSequence& sequence : update) {
      EXPECT_GE(sequence.versions.front().version, 1u);
    }
  }
  batch = next();
  EXPECT_EQ(batch.statistics.samples_stale, 0);
  EXPECT_EQ(progress.cursor, 8u);
}

TEST_F(FreeLagTest, TheNextBatchWaitsForAGroupThatIsGeneratedAgain) {
  v1::TrainingJobSpec spec = FreeSpec("run", 4);
  spec.mutable_batch()->set_prompts(1);
  spec.mutable_batch()->set_samples(2);
  spec.mutable_batch()->set_max_lag(1);
  const auto settings = MakeJobSettings(spec, root());
  ASSERT_TRUE(settings.ok()) << settings.status();
  auto inputs = LoadJobInputs(*settings);
  ASSERT_TRUE(inputs.ok()) << inputs.status();
  const TrainState state(inputs->model.config, inputs->model.layout, DType::kFloat16,
                         inputs->max_sequence_tokens, settings->loss_scale);
  auto log = ReplayLog::Open(workplace_.root() / "replay.log", {}, 0);
  ASSERT_TRUE(log.ok()) << log.status();
  ScriptedPool pool;
  RecordingControl control;
  RolloutClientOptions options;
  options.batch_timeout = absl::Milliseconds(50);
  RolloutClient client(MakeRolloutJob(*settings, *inputs, 1), options, &pool, &control,
                       [](const auto&, const auto&, std::function<void(Reward)> done) {
                         done({RewardOutcome::kScore, 1, ""});
                       });
  FreeRolloutSource source(*settings, inputs->model.config.max_positions, &*inputs->train, &client,
                           &state, &*log);
  RunProgress progress;
  progress.policy_version = 5;
  progress.step = 0;
  pool.held = {0};
  ASSERT_TRUE(source.Next(1, progress).ok());
  progress.policy_version = 6;
  progress.step = 1;
  progress.cursor = 1;
  progress.open_groups = {0};
  pool.Release(0, /*version=*/4);
  pool.held = {0};
  // Group 2 is there, and would do.
  const auto waited = source.Next(2, progress);
  EXPECT_EQ(ReasonOf(waited.status()), "BATCH_TIMEOUT");
  pool.Release(0, /*version=*/6);
  const auto batch = source.Next(2, progress);
  ASSERT_TRUE(batch.ok()) << batch.status();
  EXPECT_EQ(batch->statistics.samples_stale, 2);
}

// ---- The parts

TEST(OpenGroupsTest, KeepsWhatWasPassedOver) {
  OpenGroups groups;
  groups.Train(0);
  EXPECT_THAT(groups.open, IsEmpty());
  groups.Train(3);
  EXPECT_THAT(groups.open, ElementsAre(1u, 2u));
  EXPECT_EQ(groups.next(), 4u);
  groups.Train(2);
  EXPECT_THAT(groups.open, ElementsAre(1u));
  groups.Train(1);
  EXPECT_THAT(groups.open, IsEmpty());
  EXPECT_EQ(groups.next(), 4u);
}

TEST(TokenLagTest, CountsTokensAndFindsWhatIsOfThePolicyInForce) {
  std::vector<std::vector<TrainSequence>> updates(2);
  TrainSequence sequence;
  sequence.prompt_tokens = 1;
  sequence.tokens.resize(1 + 10);
  sequence.versions = {{4, 3}, {7, 7}};
  updates[0].push_back(sequence);
  sequence.versions = {{7, 10}};
  updates[1].push_back(sequence);
  const TokenLag lag = MeasureTokenLag(7, updates);
  EXPECT_DOUBLE_EQ(lag.mean, 9.0 / 20);
  EXPECT_EQ(lag.p99, 3);
  EXPECT_EQ(lag.max, 3);
  EXPECT_EQ(lag.sequences_spanning, 1);
  EXPECT_FALSE(MarkCurrent(7, &updates));
  EXPECT_EQ(updates[0][0].current_from, 3);
  EXPECT_EQ(updates[1][0].current_from, 0);
  EXPECT_FALSE(MarkCurrent(8, &updates));
  EXPECT_EQ(updates[1][0].current_from, 10);
  updates.erase(updates.begin());
  EXPECT_TRUE(MarkCurrent(7, &updates));
}

}  // namespace
}  // namespace halfstep
