// SPDX-License-Identifier: Apache-2.0
// What the tests of an optimizer step share: a tiny model, sequences and options, and a copy of all
// that a step changes.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "kernels/thread_pool.h"
#include "kernels/workspace.h"
#include "learner_server/training/train_step.h"
#include "tests/learner_server/tiny_train_state.h"

namespace halfstep {

// Every byte that a skipped step must leave alone.
struct Snapshot {
  explicit Snapshot(const TrainState& state) : optimizer_steps(state.optimizer_steps) {
    for (const ConstTensor tensor :
         {state.master.flat(), state.first_moment.flat(), state.second_moment.flat(),
          state.weights.parameters().flat()}) {
      bytes.append(static_cast<const char*>(tensor.data()), tensor.bytes());
    }
  }
  friend bool operator==(const Snapshot&, const Snapshot&) = default;

  std::string bytes;
  int64_t optimizer_steps;
};

class TrainStepTest : public testing::Test {
 protected:
  TrainStepTest() {
    ctx_.workspace = &workspace_;
    ctx_.threads = &threads_;
    options_.algorithm = SupervisedAlgorithm();
    options_.schedule.peak = 0.01;
    for (int i = 0; i < 6; ++i) {
      TrainSequence sequence;
      for (int t = 0; t < 6 + 3 * i; ++t) sequence.tokens.push_back((7 * t + 5 * i) % 40);
      sequence.prompt_tokens = 3;
      sequence.advantage = 1;
      sequences_.push_back(sequence);
    }
  }

  std::unique_ptr<TrainState> MakeState(DType dtype, const LossScaleOptions& loss_scale = {}) {
    return MakeTinyState(ctx_, TinyTrainConfig(), {.dtype = dtype, .loss_scale = loss_scale});
  }

  static LossScaleOptions StaticScale(float scale) {
    LossScaleOptions options = *LossScalePreset("static");
    options.initial = scale;
    return options;
  }

  Workspace workspace_;
  ThreadPool threads_{2};
  ExecContext ctx_;
  TrainStepOptions options_;
  std::vector<TrainSequence> sequences_;
};

}  // namespace halfstep
