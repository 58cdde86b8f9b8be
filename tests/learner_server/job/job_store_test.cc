// SPDX-License-Identifier: Apache-2.0
#include "learner_server/job/job_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "common/base/error_reason.h"
#include "common/base/file.h"
#include "tests/testing/temp_dir.h"

namespace halfstep {
namespace {

using ::testing::HasSubstr;
using Job = v1::TrainingJob;

Job MakeJob(const std::string& id, Job::State state = Job::STATE_QUEUED) {
  Job job;
  job.set_name("trainingJobs/" + id);
  job.set_state(state);
  job.mutable_spec()->set_model("model of " + id);
  return job;
}

v1::TrainingJobEvent Noticed(const std::string& message) {
  v1::TrainingJobEvent event;
  event.mutable_notice()->set_message(message);
  return event;
}

class JobStoreTest : public ::testing::Test {
 protected:
  void SetUp() override { Reopen(); }

  void Reopen() {
    store_.reset();
    auto store = JobStore::Open(dir_.path());
    ASSERT_TRUE(store.ok()) << store.status();
    store_ = *std::move(store);
  }

  void Create(const Job& job, const std::string& request_id = "") {
    const auto created = store_->Create(job, request_id, Noticed("created"));
    ASSERT_TRUE(created.ok()) << created.status();
  }

  std::vector<std::string> Names(const std::vector<Job>& jobs) {
    std::vector<std::string> names;
    for (const Job& job : jobs) names.push_back(job.name().substr(sizeof("trainingJobs/") - 1));
    return names;
  }

  TempDir dir_;
  std::unique_ptr<JobStore> store_;
};

TEST_F(JobStoreTest, JobsAndEventsSurviveReopening) {
  Create(MakeJob("a"));
  Job job = MakeJob("a", Job::STATE_RUNNING);
  job.set_step(7);
  ASSERT_EQ(*store_->Update(job, Noticed("step 7")), 2);
  Reopen();
  const auto read = store_->Get("trainingJobs/a");
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->step(), 7);
  EXPECT_EQ(read->state(), Job::STATE_RUNNING);
  const auto events = store_->Events("trainingJobs/a", 0, 10);
  ASSERT_TRUE(events.ok());
  ASSERT_EQ(events->size(), 2u);
  EXPECT_EQ((*events)[1].cursor(), 2);
  EXPECT_EQ((*events)[1].notice().message(), "step 7");
}

TEST_F(JobStoreTest, CursorsAscendPerJobAndReadingStartsAfterTheGivenOne) {
  Create(MakeJob("a"));
  Create(MakeJob("b"));
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(store_->Update(MakeJob("a"), Noticed("x")).ok());
  EXPECT_EQ(*store_->Update(MakeJob("b"), Noticed("y")), 2);
  const auto events = store_->Events("trainingJobs/a", 1, 2);
  ASSERT_EQ(events->size(), 2u);
  EXPECT_EQ((*events)[0].cursor(), 2);
  EXPECT_EQ((*events)[1].cursor(), 3);
}

TEST_F(JobStoreTest, ARequestIdGivesTheSameJobAlsoAfterReopening) {
  Create(MakeJob("a"), "request-1");
  Reopen();
  const auto again = store_->Create(MakeJob("b"), "request-1", Noticed("created"));
  ASSERT_TRUE(again.ok());
  EXPECT_EQ(again->name(), "trainingJobs/a");
  EXPECT_EQ(store_->Get("trainingJobs/b").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ((*store_->FindRequest("request-1"))->name(), "trainingJobs/a");
  EXPECT_FALSE(store_->FindRequest("request-2")->has_value());
}

TEST_F(JobStoreTest, EpochsAscendOverReopening) {
  EXPECT_EQ(*store_->NextEpoch(), 1u);
  EXPECT_EQ(*store_->NextEpoch(), 2u);
  Reopen();
  EXPECT_EQ(*store_->NextEpoch(), 3u);
}

TEST_F(JobStoreTest, PagesAreNewestFirstWithoutGapOrRepetition) {
  for (const char* id : {"a", "b", "c", "d", "e"}) Create(MakeJob(id));
  const auto first = store_->List(2, 0);
  EXPECT_EQ(Names(first->jobs), (std::vector<std::string>{"e", "d"}));
  Create(MakeJob("f"));
  const auto second = store_->List(2, first->next);
  EXPECT_EQ(Names(second->jobs), (std::vector<std::string>{"c", "b"}));
  const auto third = store_->List(2, second->next);
  EXPECT_EQ(Names(third->jobs), (std::vector<std::string>{"a"}));
  EXPECT_EQ(third->next, 0);
}

TEST_F(JobStoreTest, RequeueingPutsAJobBehindTheOthers) {
  for (const char* id : {"a", "b", "c"}) Create(MakeJob(id));
  ASSERT_TRUE(store_->Update(MakeJob("b", Job::STATE_FAILED), Noticed("x")).ok());
  ASSERT_TRUE(store_->UpdateAndQueue(MakeJob("a"), Noticed("x")).ok());
  EXPECT_EQ(Names(*store_->InStates({Job::STATE_QUEUED})), (std::vector<std::string>{"c", "a"}));
}

TEST_F(JobStoreTest, UnknownJobIsNamed) {
  const absl::Status status = store_->Get("trainingJobs/nobody").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(ReasonOf(status), "JOB_NOT_FOUND");
  EXPECT_THAT(std::string(status.message()), HasSubstr("trainingJobs/nobody"));
}

TEST_F(JobStoreTest, ASecondLearnerOnTheFolderIsRefusedAndToldWhoHasIt) {
  const auto second = JobStore::Open(dir_.path());
  EXPECT_EQ(second.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ReasonOf(second.status()), "STATE_DIR_IN_USE");
  EXPECT_THAT(std::string(second.status().message()),
              HasSubstr(absl::StrCat("process id ", getpid())));
}

TEST_F(JobStoreTest, AFileThatIsNoDatabaseIsReported) {
  const TempDir other;
  ASSERT_TRUE(WriteFileAtomic(other / "jobs.sqlite", std::string(4096, 'x')).ok());
  const auto store = JobStore::Open(other.path());
  EXPECT_EQ(store.status().code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(ReasonOf(store.status()), "JOB_STORE_CORRUPT");
}

}  // namespace
}  // namespace halfstep
