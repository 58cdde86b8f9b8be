// SPDX-License-Identifier: Apache-2.0
#include "cli/watch_until_rest.h"

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "halfstep/v1/training_job.grpc.pb.h"

namespace halfstep {
namespace {

using State = v1::TrainingJob::State;

// Tells of `states` after the cursor and keeps the stream open, as a learner does for a job that is
// not finished.
class FakeLearner final : public v1::TrainingJobService::Service {
 public:
  grpc::Status WatchTrainingJob(grpc::ServerContext* context,
                                const v1::WatchTrainingJobRequest* request,
                                grpc::ServerWriter<v1::TrainingJobEvent>* writer) override {
    for (size_t i = request->cursor(); i < states.size(); ++i) {
      v1::TrainingJobEvent event;
      event.set_cursor(static_cast<int64_t>(i) + 1);
      event.mutable_state_changed()->set_state(states[i]);
      writer->Write(event);
    }
    absl::MutexLock lock(&mutex_);
    const auto over = [&] { return finished_ || context->IsCancelled(); };
    while (!mutex_.AwaitWithTimeout(absl::Condition(&over), absl::Milliseconds(10))) {
    }
    return grpc::Status::OK;
  }
  grpc::Status GetTrainingJob(grpc::ServerContext*, const v1::GetTrainingJobRequest*,
                              v1::TrainingJob* job) override {
    absl::MutexLock lock(&mutex_);
    if (++looks_ <= looks_that_fail) return {grpc::StatusCode::INTERNAL, "not now"};
    job->set_state(state_now);
    finished_ = finish_when_looked_at;
    return grpc::Status::OK;
  }
  int looks() {
    absl::MutexLock lock(&mutex_);
    return looks_;
  }

  std::vector<State> states;
  int looks_that_fail = 0;
  State state_now = v1::TrainingJob::STATE_PAUSED;
  bool finish_when_looked_at = false;

 private:
  absl::Mutex mutex_;
  int looks_ ABSL_GUARDED_BY(mutex_) = 0;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
};

class WatchUntilItRestsTest : public ::testing::Test {
 protected:
  absl::Status Watch() {
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(&learner_);
    const auto server = builder.BuildAndStart();
    ChannelOptions channel;
    channel.target = absl::StrCat("127.0.0.1:", port);
    const auto client = *LearnerClient::Make(channel, absl::Seconds(30));
    WatchOptions options;
    options.on_event = [this](const v1::TrainingJobEvent&) {
      ++events_;
      return go_on_;
    };
    options.go_on = [this] { return go_on_; };
    return WatchUntilItRests(*client, "trainingJobs/1", options);
  }

  FakeLearner learner_;
  int events_ = 0;
  bool go_on_ = true;
};

TEST_F(WatchUntilItRestsTest, APausedJobEndsItEvenWhenTheFirstLookFails) {
  learner_.states = {v1::TrainingJob::STATE_RUNNING, v1::TrainingJob::STATE_PAUSED};
  learner_.looks_that_fail = 1;
  EXPECT_TRUE(Watch().ok());
  EXPECT_EQ(learner_.looks(), 2);
  EXPECT_EQ(events_, 2);
}

TEST_F(WatchUntilItRestsTest, APauseOfLongAgoDoesNotEndIt) {
  learner_.states = {v1::TrainingJob::STATE_PAUSED};
  learner_.state_now = v1::TrainingJob::STATE_RUNNING;
  learner_.finish_when_looked_at = true;
  EXPECT_TRUE(Watch().ok()) << "the stream ended with the job";
  EXPECT_GE(learner_.looks(), 1);
}

TEST_F(WatchUntilItRestsTest, AnInterruptionIsNoRest) {
  learner_.states = {v1::TrainingJob::STATE_RUNNING};
  go_on_ = false;
  EXPECT_EQ(Watch().code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(learner_.looks(), 0);
}

}  // namespace
}  // namespace halfstep
