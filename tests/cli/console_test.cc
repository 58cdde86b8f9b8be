// SPDX-License-Identifier: Apache-2.0
// What people and programs see, character by character.
#include "cli/console.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <sstream>

#include "cli/exit_code.h"
#include "cli/progress_view.h"
#include "common/base/error_reason.h"
#include "halfstep/v1/training_job.pb.h"

namespace halfstep {
namespace {

absl::Status TwoMistakes() {
  return WithFieldViolations(
      Error(absl::StatusCode::kInvalidArgument, "INVALID_SPEC", "the job cannot run"),
      {{"model", "no such folder", 3, 8}, {"batch.samples", "is 1", 0, 0}});
}

TEST(ConsoleTest, ErrorsForPeopleGoToTheErrorStreamWithEveryField) {
  std::ostringstream out, err;
  PrintError(TwoMistakes(), OutputFormat::kTable, out, err);
  EXPECT_EQ(out.str(), "");
  EXPECT_EQ(err.str(),
            "error: the job cannot run\n"
            "  model: no such folder\n"
            "  batch.samples: is 1\n");
}

TEST(ConsoleTest, FieldsThatTheMessageNamesAreNotRepeated) {
  std::ostringstream out, err;
  const std::string message = "job.yaml:3:8: no such folder\njob.yaml: is 1";
  PrintError(
      WithFieldViolations(absl::InvalidArgumentError(message), GetFieldViolations(TwoMistakes())),
      OutputFormat::kTable, out, err);
  EXPECT_EQ(err.str(), "error: " + message + "\n");
}

TEST(ConsoleTest, ErrorsForProgramsAreAnObjectOnTheOutputStream) {
  std::ostringstream out, err;
  PrintError(TwoMistakes(), OutputFormat::kJson, out, err);
  EXPECT_EQ(err.str(), "");
  const auto error = nlohmann::json::parse(out.str())["error"];
  EXPECT_EQ(error["code"], "INVALID_ARGUMENT");
  EXPECT_EQ(error["reason"], "INVALID_SPEC");
  EXPECT_EQ(error["violations"].size(), 2u);
  EXPECT_EQ(error["violations"][0]["line"], 3);
  EXPECT_FALSE(error["violations"][1].contains("line"));
}

TEST(ConsoleTest, ExitCodesFollowTheKindOfError) {
  EXPECT_EQ(ExitCodeOf(absl::OkStatus()), 0);
  EXPECT_EQ(ExitCodeOf(absl::InternalError("")), 1);
  EXPECT_EQ(ExitCodeOf(absl::InvalidArgumentError("")), 2);
  EXPECT_EQ(ExitCodeOf(absl::NotFoundError("")), 3);
  EXPECT_EQ(ExitCodeOf(absl::FailedPreconditionError("")), 4);
  EXPECT_EQ(ExitCodeOf(absl::UnavailableError("")), 5);
  EXPECT_EQ(ExitCodeOf(absl::PermissionDeniedError("")), 6);
  EXPECT_EQ(ExitCodeOf(absl::CancelledError("")), 130);
}

TEST(ConsoleTest, TableColumnsAreAsWideAsTheyNeed) {
  std::ostringstream out;
  PrintTable({{"JOB", "STATE"}, {"job-12345678", "running"}}, out);
  EXPECT_EQ(out.str(),
            "JOB           STATE\n"
            "job-12345678  running\n");
}

TEST(ConsoleTest, JobsAsJsonHaveNumbersAndLowerCaseStates) {
  v1::TrainingJob job;
  job.set_name("trainingJobs/job-1");
  job.set_state(v1::TrainingJob::STATE_FAILED);
  job.set_reason("DIVERGED");
  job.mutable_create_time()->set_seconds(1738324800);
  job.set_step(7);
  job.mutable_spec()->set_steps(9);
  (*job.mutable_summary()->mutable_samples_by_rollout())["rollout-0"] = 12;
  const auto json = JobToJson(job);
  EXPECT_EQ(json["state"], "failed");
  EXPECT_EQ(json["reason"], "DIVERGED");
  EXPECT_EQ(json["create_time"], "2025-01-31T12:00:00.000Z");
  EXPECT_EQ(json["step"], 7);
  EXPECT_EQ(json["spec"]["steps"], 9);
  EXPECT_EQ(json["summary"]["samples_by_rollout"]["rollout-0"], 12);
  EXPECT_FALSE(json["summary"].contains("base_accuracy"));
}

TEST(ConsoleTest, JobNamesAndIdsAreInterchangeable) {
  EXPECT_EQ(JobNameOf("job-1"), "trainingJobs/job-1");
  EXPECT_EQ(JobNameOf("trainingJobs/job-1"), "trainingJobs/job-1");
  EXPECT_EQ(JobIdOf("trainingJobs/job-1"), "job-1");
}

TEST(ConsoleTest, NumbersAreShort) {
  EXPECT_EQ(Short(950), "950");
  EXPECT_EQ(Short(18'400), "18.4k");
  EXPECT_EQ(Short(3'400'000), "3.40M");
  EXPECT_EQ(Percent(0.412), "41.2 %");
}

v1::TrainingJobEvent StepEvent(int64_t step, double reward) {
  v1::TrainingJobEvent event;
  event.mutable_time()->set_seconds(1000 + 2 * step);
  auto* finished = event.mutable_step_finished();
  finished->set_step(step);
  finished->set_steps(4);
  auto& metrics = *finished->mutable_metrics();
  metrics["reward_mean"] = reward;
  metrics["length_mean"] = 18.2;
  metrics["mismatch_k3"] = 0;
  metrics["loss_scale"] = 65536;
  metrics["time_total"] = 2;
  metrics["time_wait"] = 0.2;
  metrics["time_score"] = 0.04;
  metrics["time_forward_backward"] = 1.4;
  metrics["time_publish"] = 0.06;
  metrics["tokens_per_second"] = 18400;
  return event;
}

TEST(ProgressViewTest, OneLinePerStepSaysWhereTheTimeWent) {
  std::ostringstream out;
  ProgressView view(&out, /*terminal=*/false);
  view.OnEvent(StepEvent(1, 0.69));
  view.OnEvent(StepEvent(2, 0.71));
  EXPECT_EQ(out.str(),
            "step 1/4 reward 0.690 len 18 kl 0 scale 65536 | wait 12% train 70% sync 3% | 18.4k "
            "tok/s\n"
            "step 2/4 reward 0.710 (+0.020) len 18 kl 0 scale 65536 | wait 12% train 70% sync 3% | "
            "18.4k tok/s\n");
}

TEST(ProgressViewTest, ATerminalHasABarBelowTheLines) {
  std::ostringstream out;
  {
    ProgressView view(&out, /*terminal=*/true);
    view.OnEvent(StepEvent(1, 0.5));
    EXPECT_NE(out.str().find("\n[##########..............................] 1/4"),
              std::string::npos);
    view.OnEvent(StepEvent(2, 0.5));
    EXPECT_NE(out.str().find("2/4, 4s left"), std::string::npos);
  }
  EXPECT_EQ(out.str().substr(out.str().size() - 4), "\r\033[K");
}

TEST(ProgressViewTest, EveryKindOfEventHasALine) {
  std::ostringstream out;
  ProgressView view(&out, /*terminal=*/false);
  v1::TrainingJobEvent event;
  event.mutable_state_changed()->set_state(v1::TrainingJob::STATE_PAUSED);
  event.mutable_state_changed()->set_reason("NO_ROLLOUT");
  event.mutable_state_changed()->set_message("none for 10 minutes");
  view.OnEvent(event);
  event.mutable_evaluation_finished()->set_step(40);
  event.mutable_evaluation_finished()->set_accuracy(0.5);
  event.mutable_evaluation_finished()->set_greedy(0.75);
  event.mutable_evaluation_finished()->set_prompts(256);
  view.OnEvent(event);
  event.mutable_checkpoint_written()->set_step(40);
  event.mutable_checkpoint_written()->set_path("run/checkpoints/step_40");
  view.OnEvent(event);
  event.mutable_notice()->set_reason("CHECKPOINT_FAILED");
  event.mutable_notice()->set_message("disk full");
  view.OnEvent(event);
  EXPECT_EQ(out.str(),
            "job is paused: NO_ROLLOUT: none for 10 minutes\n"
            "held-out prompts after step 40: 50.0 % (greedy 75.0 %) of 256\n"
            "checkpoint of step 40: run/checkpoints/step_40\n"
            "notice: CHECKPOINT_FAILED: disk full\n");
}

}  // namespace
}  // namespace halfstep
