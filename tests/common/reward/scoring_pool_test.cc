// SPDX-License-Identifier: Apache-2.0
#include "common/reward/scoring_pool.h"

#include <atomic>

#include "absl/synchronization/notification.h"
#include "common/tokenizer/tokenizer.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/byte_tokenizer.h"

namespace halfstep {
namespace {

// Scores 1 when the response equals the answer.
class Equal final : public Verifier {
 public:
  Reward Score(const std::string& response, const std::string& answer) const override {
    return {RewardOutcome::kScore, response == answer ? 1.0 : 0.0, ""};
  }
};

// A row whose answer is "wait" keeps its thread until it is told to go on.
class Waiting final : public Verifier {
 public:
  Reward Score(const std::string&, const std::string& answer) const override {
    if (answer == "wait") {
      started.Notify();
      go_on.WaitForNotification();
    }
    return {};
  }
  mutable absl::Notification started;
  absl::Notification go_on;
};

std::vector<int32_t> Ids(const std::string& text) { return MakeByteTokenizer()->Encode(text); }

TEST(ScoringPoolTest, ScoresEachResponseOnceWhateverTheThreads) {
  for (const int threads : {1, 3}) {
    std::vector<std::atomic<int>> calls(500);
    std::vector<double> scores(500, -1);
    {
      ScoringPool pool(std::make_shared<Equal>(), MakeByteTokenizer(),
                       {.threads = threads, .queue_items = 8});
      for (size_t i = 0; i < scores.size(); ++i) {
        pool.Submit(Ids(std::to_string(i % 3)), "0", [&, i](Reward reward) {
          ++calls[i];
          scores[i] = reward.score;
        });
      }
    }
    for (size_t i = 0; i < scores.size(); ++i) {
      EXPECT_EQ(calls[i], 1) << i;
      EXPECT_EQ(scores[i], i % 3 == 0 ? 1 : 0) << i;
    }
  }
}

TEST(ScoringPoolTest, LeavesOutTheTokenThatEndsAResponse) {
  double score = -1;
  std::vector<int32_t> response = Ids("7");
  response.push_back(kByteTokenizerEnd);
  ScoringPool(std::make_shared<Equal>(), MakeByteTokenizer(), {})
      .Submit(response, "7", [&score](Reward reward) { score = reward.score; });
  EXPECT_EQ(score, 1);
}

TEST(ScoringPoolTest, ScoresOnTheCallersThreadWhenTheQueueIsFull) {
  auto verifier = std::make_shared<Waiting>();
  std::vector<std::thread::id> scorers(3);
  {
    ScoringPool pool(verifier, MakeByteTokenizer(), {.threads = 1, .queue_items = 1});
    const auto submit = [&](int i, const std::string& answer) {
      pool.Submit({}, answer, [&scorers, i](Reward) { scorers[i] = std::this_thread::get_id(); });
    };
    submit(0, "wait");
    verifier->started.WaitForNotification();  // the only thread is busy
    submit(1, "");                            // fills the queue
    submit(2, "");
    EXPECT_EQ(scorers[2], std::this_thread::get_id());
    EXPECT_EQ(scorers[1], std::thread::id()) << "still in the queue";
    verifier->go_on.Notify();
  }
  EXPECT_NE(scorers[0], std::this_thread::get_id());
  EXPECT_EQ(scorers[0], scorers[1]) << "the pool's thread finished what was submitted";
}

}  // namespace
}  // namespace halfstep
