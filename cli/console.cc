// SPDX-License-Identifier: Apache-2.0
#include "cli/console.h"

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/time.h"
#include "cli/exit_code.h"
#include "common/base/error_reason.h"
#include "common/config/enum_names.h"
#include "common/config/spec_text.h"
#include "halfstep/v1/training_job.pb.h"

namespace halfstep {
namespace {

using Json = nlohmann::ordered_json;

constexpr char kNamePrefix[] = "trainingJobs/";

std::string TimeText(const google::protobuf::Timestamp& time) {
  return absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ",
                          absl::FromUnixSeconds(time.seconds()) + absl::Nanoseconds(time.nanos()),
                          absl::UTCTimeZone());
}

void AddUnlessEmpty(const char* key, const std::string& value, Json& out) {
  if (!value.empty()) out[key] = value;
}

}  // namespace

ExitCode ExitCodeOf(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return kExitOk;
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kOutOfRange:
      return kExitBadInput;
    case absl::StatusCode::kNotFound:
      return kExitNotFound;
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kAlreadyExists:
      return kExitWrongState;
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kDeadlineExceeded:
      return kExitUnreachable;
    case absl::StatusCode::kUnauthenticated:
    case absl::StatusCode::kPermissionDenied:
      return kExitDenied;
    case absl::StatusCode::kCancelled:
      return kExitInterrupted;
    default:
      return kExitFailure;
  }
}

void PrintError(const absl::Status& status, OutputFormat format, std::ostream& out,
                std::ostream& err) {
  const std::vector<FieldViolation> violations = GetFieldViolations(status);
  const std::string message(status.message());
  if (format == OutputFormat::kJson) {
    Json error = {{"code", absl::StatusCodeToString(status.code())},
                  {"reason", ReasonOf(status)},
                  {"message", message}};
    for (const FieldViolation& violation : violations) {
      Json item = {{"field", violation.field}, {"description", violation.description}};
      if (violation.line > 0) {
        item["line"] = violation.line;
        item["column"] = violation.column;
      }
      error["violations"].push_back(std::move(item));
    }
    out << Json{{"error", error}}.dump(2, ' ', false, Json::error_handler_t::replace) << "\n";
    return;
  }
  err << "error: " << message << "\n";
  for (const FieldViolation& violation : violations) {
    // A message may hold its violations already, with their places.
    if (absl::StrContains(message, violation.description)) continue;
    err << "  " << violation.field << ": " << violation.description << "\n";
  }
}

void PrintTable(const std::vector<std::vector<std::string>>& rows, std::ostream& out) {
  std::vector<size_t> widths;
  for (const auto& row : rows) {
    widths.resize(std::max(widths.size(), row.size()));
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  for (const auto& row : rows) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) {
      const bool last = i + 1 == row.size();
      absl::StrAppend(&line, row[i], last ? "" : std::string(widths[i] - row[i].size() + 2, ' '));
    }
    out << line << "\n";
  }
}

Json SummaryToJson(const v1::RunSummary& summary) {
  Json out;
  if (summary.has_base_accuracy()) out["base_accuracy"] = summary.base_accuracy();
  if (summary.has_final_accuracy()) out["final_accuracy"] = summary.final_accuracy();
  if (summary.has_base_greedy()) out["base_greedy"] = summary.base_greedy();
  if (summary.has_final_greedy()) out["final_greedy"] = summary.final_greedy();
  if (summary.has_final_accuracy_learner()) {
    out["final_accuracy_learner"] = summary.final_accuracy_learner();
    out["deployment_gap"] = summary.deployment_gap();
  }
  out["train_seconds"] = summary.train_seconds();
  out["tokens_generated"] = summary.tokens_generated();
  out["tokens_trained"] = summary.tokens_trained();
  out["tokens_compared"] = summary.tokens_compared();
  out["max_abs_logprob_diff"] = summary.max_abs_logprob_diff();
  out["skipped_steps"] = summary.skipped_steps();
  out["final_loss_scale"] = summary.final_loss_scale();
  out["weights_digest"] = summary.weights_digest();
  out["state_digest"] = summary.state_digest();
  out["output_dir"] = summary.output_dir();
  out["checkpoint"] = summary.checkpoint();
  Json samples = Json::object();
  for (const auto& [rollout, count] : std::map<std::string, int64_t>(
           summary.samples_by_rollout().begin(), summary.samples_by_rollout().end())) {
    samples[rollout] = count;
  }
  out["samples_by_rollout"] = std::move(samples);
  out["groups_reassigned"] = summary.groups_reassigned();
  return out;
}

Json JobToJson(const v1::TrainingJob& job) {
  Json out = {{"name", job.name()}, {"state", YamlName(job.state())}};
  AddUnlessEmpty("reason", job.reason(), out);
  AddUnlessEmpty("message", job.message(), out);
  if (job.has_create_time()) out["create_time"] = TimeText(job.create_time());
  if (job.has_update_time()) out["update_time"] = TimeText(job.update_time());
  out["step"] = job.step();
  out["policy_version"] = job.policy_version();
  out["spec"] = Json::parse(SpecToJson(job.spec()), nullptr, false);
  if (job.has_summary()) out["summary"] = SummaryToJson(job.summary());
  return out;
}

Json EventToJson(const v1::TrainingJobEvent& event) {
  Json out = {{"cursor", event.cursor()}, {"time", TimeText(event.time())}};
  if (event.has_state_changed()) {
    out["event"] = "state_changed";
    out["state"] = YamlName(event.state_changed().state());
    AddUnlessEmpty("reason", event.state_changed().reason(), out);
    AddUnlessEmpty("message", event.state_changed().message(), out);
  } else if (event.has_step_finished()) {
    out["event"] = "step_finished";
    out["step"] = event.step_finished().step();
    out["steps"] = event.step_finished().steps();
    out["metrics"] = std::map<std::string, double>(event.step_finished().metrics().begin(),
                                                   event.step_finished().metrics().end());
  } else if (event.has_evaluation_finished()) {
    const v1::EvaluationFinished& evaluation = event.evaluation_finished();
    out["event"] = "evaluation_finished";
    out["step"] = evaluation.step();
    out["accuracy"] = evaluation.accuracy();
    out["greedy"] = evaluation.greedy();
    out["prompts"] = evaluation.prompts();
    out["samples"] = evaluation.samples();
  } else if (event.has_checkpoint_written()) {
    out["event"] = "checkpoint_written";
    out["step"] = event.checkpoint_written().step();
    out["path"] = event.checkpoint_written().path();
  } else if (event.has_notice()) {
    out["event"] = "notice";
    out["reason"] = event.notice().reason();
    out["message"] = event.notice().message();
  }
  return out;
}

std::string JobIdOf(const std::string& name) {
  return absl::StartsWith(name, kNamePrefix) ? name.substr(sizeof(kNamePrefix) - 1) : name;
}

std::string JobNameOf(const std::string& id_or_name) { return kNamePrefix + JobIdOf(id_or_name); }

std::string Short(double value) {
  if (value >= 1e9) return absl::StrFormat("%.2fG", value / 1e9);
  if (value >= 1e6) return absl::StrFormat("%.2fM", value / 1e6);
  if (value >= 1e4) return absl::StrFormat("%.1fk", value / 1e3);
  return absl::StrFormat("%.0f", value);
}

std::string Percent(double share) { return absl::StrFormat("%.1f %%", 100 * share); }

}  // namespace halfstep
