// SPDX-License-Identifier: Apache-2.0
// submit, list, get, watch, pause, resume, cancel: the job API from the command line.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "absl/strings/str_cat.h"
#include "cli/commands.h"
#include "cli/learner_client.h"
#include "cli/progress_view.h"
#include "common/base/random_id.h"
#include "common/base/shutdown_signal.h"
#include "common/base/status_macros.h"
#include "common/config/enum_names.h"
#include "common/config/load_spec.h"
#include "common/rpc/flags.h"

namespace halfstep {
namespace {

// What a verb that talks to a learner was given.
struct JobArguments {
  ChannelOptions learner;
  double timeout_seconds = 30;
  std::string job;
  std::string file;
  std::string request_id;
  bool watch = false;
  int page_size = 20;
  std::string page_token;
  int64_t cursor = 0;

  absl::StatusOr<std::unique_ptr<LearnerClient>> Connect() const {
    return LearnerClient::Make(learner, absl::Seconds(timeout_seconds));
  }
};

CLI::App* AddVerb(CLI::App& app, CommandContext& context, JobArguments& arguments,
                  const std::string& name, const std::string& help) {
  CLI::App* verb = app.add_subcommand(name, help);
  verb->add_option("--learner", arguments.learner.target, "Address of the learner, host:port")
      ->envname("HALFSTEP_LEARNER")
      ->capture_default_str();
  verb->add_option("--timeout", arguments.timeout_seconds, "Seconds a call may take")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  AddChannelFlags(*verb, arguments.learner);
  AddFormatOption(*verb, context);
  return verb;
}

std::string StepOf(const v1::TrainingJob& job) {
  return absl::StrCat(job.step(), "/", job.spec().steps());
}

void PrintJob(const v1::TrainingJob& job, CommandContext& context) {
  if (context.format == OutputFormat::kJson) {
    context.out << JobToJson(job).dump(2) << "\n";
    return;
  }
  std::vector<std::vector<std::string>> rows = {{"job", JobIdOf(job.name())},
                                                {"state", YamlName(job.state())}};
  if (!job.reason().empty()) rows.push_back({"reason", job.reason()});
  if (!job.message().empty()) rows.push_back({"message", job.message()});
  rows.push_back({"step", StepOf(job)});
  rows.push_back({"model", job.spec().model()});
  rows.push_back({"output", job.spec().output_dir()});
  if (job.has_summary()) {
    const v1::RunSummary& summary = job.summary();
    if (summary.has_base_accuracy()) rows.push_back({"before", Percent(summary.base_accuracy())});
    if (summary.has_final_accuracy()) rows.push_back({"after", Percent(summary.final_accuracy())});
    if (!summary.weights_digest().empty()) rows.push_back({"weights", summary.weights_digest()});
    if (!summary.checkpoint().empty()) rows.push_back({"checkpoint", summary.checkpoint()});
  }
  PrintTable(rows, context.out);
}

void PrintJobs(const v1::ListTrainingJobsResponse& response, CommandContext& context) {
  if (context.format == OutputFormat::kJson) {
    nlohmann::ordered_json jobs = nlohmann::ordered_json::array();
    for (const v1::TrainingJob& job : response.training_jobs()) jobs.push_back(JobToJson(job));
    context.out << nlohmann::ordered_json{{"training_jobs", jobs},
                                          {"next_page_token", response.next_page_token()}}
                       .dump(2)
                << "\n";
    return;
  }
  std::vector<std::vector<std::string>> rows = {{"JOB", "STATE", "STEP", "MODEL", "OUTPUT"}};
  for (const v1::TrainingJob& job : response.training_jobs()) {
    rows.push_back({JobIdOf(job.name()), YamlName(job.state()), StepOf(job), job.spec().model(),
                    job.spec().output_dir()});
  }
  PrintTable(rows, context.out);
  if (!response.next_page_token().empty()) {
    context.out << "more: --page-token " << response.next_page_token() << "\n";
  }
}

// Events until the end, then what became of the job.
absl::Status WatchToTheEnd(LearnerClient& client, const std::string& name, int64_t cursor,
                           CommandContext& context) {
  const bool json = context.format == OutputFormat::kJson;
  WatchOptions options;
  options.cursor = cursor;
  options.go_on = [&context] { return !context.signal->requested(); };
  {
    ProgressView view(&context.out, !json && isatty(STDOUT_FILENO) == 1);
    options.on_event = [&](const v1::TrainingJobEvent& event) {
      if (json) {
        context.out << EventToJson(event).dump() << std::endl;
      } else {
        view.OnEvent(event);
      }
      return true;
    };
    HALFSTEP_RETURN_IF_ERROR(client.Watch(name, options));
  }
  HALFSTEP_ASSIGN_OR_RETURN(const v1::TrainingJob job, client.Get(name));
  if (job.state() != v1::TrainingJob::STATE_SUCCEEDED) context.exit_code = kExitJobFailed;
  return absl::OkStatus();
}

absl::Status Submit(const JobArguments& arguments, CommandContext& context) {
  v1::CreateTrainingJobRequest request;
  HALFSTEP_RETURN_IF_ERROR(LoadSpecFile(arguments.file, request.mutable_spec()));
  request.set_request_id(arguments.request_id.empty() ? RandomUuid() : arguments.request_id);
  HALFSTEP_ASSIGN_OR_RETURN(const auto client, arguments.Connect());
  HALFSTEP_ASSIGN_OR_RETURN(const v1::TrainingJob job, client->Create(request));
  if (arguments.watch) return WatchToTheEnd(*client, job.name(), 0, context);
  PrintJob(job, context);
  return absl::OkStatus();
}

absl::Status List(const JobArguments& arguments, CommandContext& context) {
  v1::ListTrainingJobsRequest request;
  request.set_page_size(arguments.page_size);
  request.set_page_token(arguments.page_token);
  HALFSTEP_ASSIGN_OR_RETURN(const auto client, arguments.Connect());
  HALFSTEP_ASSIGN_OR_RETURN(const auto response, client->List(request));
  PrintJobs(response, context);
  return absl::OkStatus();
}

absl::Status Watch(const JobArguments& arguments, CommandContext& context) {
  HALFSTEP_ASSIGN_OR_RETURN(const auto client, arguments.Connect());
  return WatchToTheEnd(*client, JobNameOf(arguments.job), arguments.cursor, context);
}

using JobCall = absl::StatusOr<v1::TrainingJob> (LearnerClient::*)(const std::string&);

// A verb that does one call on one job and prints what became of it.
void AddJobVerb(CLI::App& app, CommandContext& context, JobArguments& arguments,
                const std::string& name, const std::string& help, JobCall call) {
  CLI::App* verb = AddVerb(app, context, arguments, name, help);
  verb->add_option("job", arguments.job, "Name of the job")->required();
  verb->callback([&arguments, &context, call] {
    const auto run = [&]() -> absl::Status {
      HALFSTEP_ASSIGN_OR_RETURN(const auto client, arguments.Connect());
      HALFSTEP_ASSIGN_OR_RETURN(const v1::TrainingJob job,
                                ((*client).*call)(JobNameOf(arguments.job)));
      PrintJob(job, context);
      return absl::OkStatus();
    };
    context.Finish(run());
  });
}

}  // namespace

void AddJobCommands(CLI::App& app, CommandContext& context) {
  // Lives as long as the callbacks that refer to it.
  auto owned = std::make_shared<JobArguments>();
  JobArguments& arguments = *owned;
  arguments.learner.target = "127.0.0.1:5005";

  CLI::App* submit = AddVerb(app, context, arguments, "submit", "Hand a job to a learner");
  submit->add_option("file", arguments.file, "Job file (YAML)")->required();
  submit->add_flag("--watch", arguments.watch, "Stay and show progress");
  submit->add_option("--request-id", arguments.request_id,
                     "Submitting again with the same one gives the job of the first time");
  submit->callback([owned, &context] { context.Finish(Submit(*owned, context)); });

  CLI::App* list = AddVerb(app, context, arguments, "list", "Jobs of a learner, newest first");
  list->add_option("--page-size", arguments.page_size, "Jobs per page")
      ->check(CLI::Range(1, 100))
      ->capture_default_str();
  list->add_option("--page-token", arguments.page_token, "From the page before");
  list->callback([owned, &context] { context.Finish(List(*owned, context)); });

  CLI::App* watch =
      AddVerb(app, context, arguments, "watch", "Show a job's progress until it is finished");
  watch->add_option("job", arguments.job, "Name of the job")->required();
  watch->add_option("--cursor", arguments.cursor, "Start after this event")
      ->check(CLI::NonNegativeNumber);
  watch->callback([owned, &context] { context.Finish(Watch(*owned, context)); });

  AddJobVerb(app, context, arguments, "get", "One job", &LearnerClient::Get);
  AddJobVerb(app, context, arguments, "pause", "Write a checkpoint and free the learner",
             &LearnerClient::Pause);
  AddJobVerb(app, context, arguments, "resume", "Put a paused job in line again",
             &LearnerClient::Resume);
  AddJobVerb(app, context, arguments, "cancel", "Stop a job for good", &LearnerClient::Cancel);
}

}  // namespace halfstep
