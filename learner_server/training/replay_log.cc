// SPDX-License-Identifier: Apache-2.0
#include "learner_server/training/replay_log.h"

#include <cerrno>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/digest.h"
#include "common/base/error_reason.h"
#include "common/base/file.h"
#include "common/base/json.h"
#include "common/base/status_macros.h"

namespace halfstep {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kFormat = 1;
constexpr size_t kDigestDigits = 32;

std::string FirstChain() { return std::string(kDigestDigits, '0'); }

std::string NextChain(const std::string& before, const std::string& json) {
  Digester digester;
  digester.Update(before);
  digester.Update(json);
  return digester.Finish().Hex();
}

Json ToJson(const ReplayHeader& header) {
  return {{"kind", "header"},
          {"format", kFormat},
          {"job_digest", header.job_digest},
          {"model_digest", header.model_digest},
          {"numerics", header.numerics},
          {"build", header.build},
          {"max_sequence_tokens", header.max_sequence_tokens}};
}

Json ToJson(const Trajectory& trajectory) {
  Json versions = Json::array();
  for (const VersionRun& run : trajectory.sample.versions) {
    versions.push_back({run.version, run.count});
  }
  Json sample{{"index", trajectory.sample.index},
              {"versions", std::move(versions)},
              {"tokens", trajectory.sample.tokens},
              {"log_probs", trajectory.sample.log_probs},
              {"outcome", Name(trajectory.reward.outcome)}};
  if (trajectory.reward.outcome == RewardOutcome::kScore) sample["score"] = trajectory.reward.score;
  return sample;
}

Trajectory TrajectoryFromJson(const nlohmann::json& json, uint64_t group,
                              const std::vector<int32_t>& prompt) {
  Trajectory trajectory;
  trajectory.key = {Purpose::kTrain, group};
  trajectory.prompt = prompt;
  Sample& sample = trajectory.sample;
  json.at("index").get_to(sample.index);
  for (const nlohmann::json& run : json.at("versions")) {
    sample.versions.push_back({run.at(0).get<uint64_t>(), run.at(1).get<uint32_t>()});
  }
  json.at("tokens").get_to(sample.tokens);
  json.at("log_probs").get_to(sample.log_probs);
  const std::string outcome = json.at("outcome");
  for (const RewardOutcome known : {RewardOutcome::kScore, RewardOutcome::kUnscorable,
                                    RewardOutcome::kTimeout, RewardOutcome::kError}) {
    if (outcome == Name(known)) trajectory.reward.outcome = known;
  }
  if (trajectory.reward.outcome == RewardOutcome::kScore) {
    json.at("score").get_to(trajectory.reward.score);
  }
  return trajectory;
}

// Whether every token has its log-prob, and a version up to `version`, the one in force.
bool IsWhole(const Trajectory& trajectory, uint64_t version) {
  const Sample& sample = trajectory.sample;
  uint64_t count = 0;
  for (const VersionRun& run : sample.versions) {
    if (run.count == 0 || run.version > version) return false;
    count += run.count;
  }
  return !trajectory.prompt.empty() && !sample.tokens.empty() && count == sample.tokens.size() &&
         sample.log_probs.size() == sample.tokens.size();
}

// The groups of a batch, each with all its samples.
std::vector<Json> GroupsToJson(const std::vector<Trajectory>& trajectories) {
  std::vector<Json> groups;
  const GroupKey* last = nullptr;
  for (const Trajectory& trajectory : trajectories) {
    if (last == nullptr || *last != trajectory.key) {
      groups.push_back({{"kind", "group"},
                        {"group", trajectory.key.ordinal},
                        {"prompt", trajectory.prompt},
                        {"samples", Json::array()}});
    }
    last = &trajectory.key;
    groups.back()["samples"].push_back(ToJson(trajectory));
  }
  return groups;
}

}  // namespace

// ---- Reading

ReplayLogReader::ReplayLogReader(std::string path, std::ifstream file)
    : path_(std::move(path)), file_(std::move(file)), chain_(FirstChain()) {}

absl::StatusOr<ReplayLogReader> ReplayLogReader::Open(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file.is_open()) {
    return Error(absl::StatusCode::kNotFound, "NO_REPLAY_LOG",
                 absl::StrCat("there is no ", path,
                              "; a run has one where its job sets batch.max_lag (a run with "
                              "scheduled lag comes out the same when its job is run again)"));
  }
  ReplayLogReader reader(path, std::move(file));
  HALFSTEP_ASSIGN_OR_RETURN(const std::optional<std::string> line, reader.NextLine());
  if (!line) return reader.Damaged("it has no header");
  const absl::StatusOr<nlohmann::json> json = ParseJson(*line);
  if (!json.ok()) return reader.Damaged(std::string(json.status().message()));
  try {
    if (json->at("kind") != "header" || json->at("format") != kFormat) {
      return reader.Damaged("it is of a format that this build does not read");
    }
    ReplayHeader& header = reader.header_;
    json->at("job_digest").get_to(header.job_digest);
    json->at("model_digest").get_to(header.model_digest);
    json->at("numerics").get_to(header.numerics);
    json->at("build").get_to(header.build);
    json->at("max_sequence_tokens").get_to(header.max_sequence_tokens);
  } catch (const nlohmann::json::exception& error) {
    return reader.Damaged(error.what());
  }
  return reader;
}

absl::Status ReplayLogReader::Damaged(const std::string& what) const {
  return Error(absl::StatusCode::kDataLoss, "REPLAY_LOG_DAMAGED",
               absl::StrCat(path_, ":", line_, ": ", what,
                            "; the log is not as the learner wrote it: put a sound copy back"));
}

absl::StatusOr<std::optional<std::string>> ReplayLogReader::NextLine() {
  std::string line;
  ++line_;
  if (!std::getline(file_, line)) {
    if (file_.bad()) return FileError(EIO, "read", path_);
    return std::nullopt;
  }
  if (file_.eof()) {
    torn_ = true;
    return std::nullopt;
  }
  if (line.size() <= kDigestDigits || line[kDigestDigits] != ' ') {
    return Damaged("the line does not begin with a digest");
  }
  std::string json = line.substr(kDigestDigits + 1);
  const std::string chain = NextChain(chain_, json);
  if (line.compare(0, kDigestDigits, chain) != 0) {
    return Damaged("the line, or one before it, was changed: its digest differs");
  }
  chain_ = chain;
  offset_ += static_cast<int64_t>(line.size()) + 1;
  return json;
}

absl::StatusOr<ReplayLogReader::Record> ReplayLogReader::Next() {
  const int64_t offset = offset_;
  const std::string chain = chain_;
  HALFSTEP_ASSIGN_OR_RETURN(const std::optional<std::string> line, NextLine());
  if (!line) return Record();
  const absl::StatusOr<nlohmann::json> json = ParseJson(*line);
  if (!json.ok()) return Damaged(std::string(json.status().message()));
  try {
    if (json->at("kind") == "end") {
      return ReplayEnd{json->at("step"), json->at("master_digest"), json->at("weights_digest"),
                       json->at("state_digest")};
    }
    ReplayBatch batch;
    json->at("step").get_to(batch.step);
    json->at("version").get_to(batch.version);
    json->at("master_digest").get_to(batch.master_digest);
    json->at("stale_samples").get_to(batch.stale_samples);
    json->at("stale_tokens").get_to(batch.stale_tokens);
    absl::StatusOr<Record> record = ReadBatch(std::move(batch), json->at("groups"));
    if (record.ok() && std::holds_alternative<std::monostate>(*record)) {
      torn_ = true;
      offset_ = offset;
      chain_ = chain;
    }
    return record;
  } catch (const nlohmann::json::exception& error) {
    return Damaged(error.what());
  }
}

absl::StatusOr<ReplayLogReader::Record> ReplayLogReader::ReadBatch(ReplayBatch batch,
                                                                   int64_t groups) {
  for (int64_t i = 0; i < groups; ++i) {
    HALFSTEP_ASSIGN_OR_RETURN(const std::optional<std::string> line, NextLine());
    if (!line) return Record();
    const absl::StatusOr<nlohmann::json> json = ParseJson(*line);
    if (!json.ok()) return Damaged(std::string(json.status().message()));
    const uint64_t ordinal = json->at("group");
    const std::vector<int32_t> prompt = json->at("prompt");
    if (!batch.trajectories.empty() && ordinal <= batch.trajectories.back().key.ordinal) {
      return Damaged(absl::StrCat("group ", ordinal, " is out of order"));
    }
    for (const nlohmann::json& sample : json->at("samples")) {
      batch.trajectories.push_back(TrajectoryFromJson(sample, ordinal, prompt));
      if (!IsWhole(batch.trajectories.back(), batch.version)) {
        return Damaged(absl::StrCat("tokens, log-probs and versions of a sample of group ", ordinal,
                                    " do not fit together"));
      }
    }
  }
  return batch;
}

// ---- Writing

absl::Status CheckHeader(const std::string& path, const ReplayHeader& recorded,
                         const ReplayHeader& actual) {
  const std::pair<const char*, bool> differences[] = {
      {"configuration (job.json)", recorded.job_digest != actual.job_digest},
      {"initial model", recorded.model_digest != actual.model_digest},
      {"numerics", recorded.numerics != actual.numerics},
      {"longest sequence", recorded.max_sequence_tokens != actual.max_sequence_tokens},
  };
  for (const auto& [what, differs] : differences) {
    if (!differs) continue;
    return Error(absl::StatusCode::kFailedPrecondition, "REPLAY_LOG_OF_OTHER_RUN",
                 absl::StrCat(path, " was written with another ", what, " than there is here (by ",
                              recorded.build, "; this is ", actual.build,
                              "): its updates would not come out the same; take "
                              "the job, model and kind of processor that the run had"));
  }
  return absl::OkStatus();
}

absl::StatusOr<ReplayLog> ReplayLog::Open(const std::string& path, const ReplayHeader& header,
                                          int64_t step) {
  ReplayLog log(path);
  if (step == 0) {
    // Whatever an attempt left that got to no checkpoint will be trained again.
    const std::string json = ToJson(header).dump();
    log.chain_ = NextChain(FirstChain(), json);
    const std::string line = absl::StrCat(log.chain_, " ", json, "\n");
    HALFSTEP_RETURN_IF_ERROR(WriteFileAtomic(path, line));
    log.offset_ = static_cast<int64_t>(line.size());
    return log;
  }
  HALFSTEP_ASSIGN_OR_RETURN(ReplayLogReader reader, ReplayLogReader::Open(path));
  ReplayHeader own = header;
  if (own.model_digest.empty()) own.model_digest = reader.header().model_digest;
  HALFSTEP_RETURN_IF_ERROR(CheckHeader(path, reader.header(), own));
  while (log.last_step_ < step) {
    log.before_last_ = reader.offset();
    log.chain_before_last_ = reader.chain();
    HALFSTEP_ASSIGN_OR_RETURN(const ReplayLogReader::Record record, reader.Next());
    if (const auto* batch = std::get_if<ReplayBatch>(&record)) {
      log.last_step_ = batch->step;
      continue;
    }
    return Error(absl::StatusCode::kDataLoss, "REPLAY_LOG_DAMAGED",
                 absl::StrCat(path, " ends after step ", log.last_step_, ", the checkpoint is of ",
                              "step ", step, ": put the log back that belongs to it"));
  }
  log.offset_ = reader.offset();
  log.chain_ = reader.chain();
  std::error_code error;
  std::filesystem::resize_file(path, static_cast<uintmax_t>(log.offset_), error);
  if (error) return FileError(error.value(), "cut", path);
  HALFSTEP_RETURN_IF_ERROR(SyncPath(path));
  return log;
}

absl::Status ReplayLog::AppendAll(const std::vector<std::string>& jsons) {
  std::vector<std::string> lines;
  std::string chain = chain_;
  int64_t size = 0;
  for (const std::string& json : jsons) {
    chain = NextChain(chain, json);
    lines.push_back(absl::StrCat(chain, " ", json));
    size += static_cast<int64_t>(lines.back().size()) + 1;
  }
  HALFSTEP_RETURN_IF_ERROR(AppendLines(path_, lines));
  chain_ = chain;
  offset_ += size;
  return absl::OkStatus();
}

absl::Status ReplayLog::Append(const ReplayBatch& batch) {
  const std::vector<Json> groups = GroupsToJson(batch.trajectories);
  std::vector<std::string> jsons;
  jsons.push_back(Json{
      {"kind", "batch"},
      {"step", batch.step},
      {"version", batch.version},
      {"master_digest", batch.master_digest},
      {"stale_samples", batch.stale_samples},
      {"stale_tokens", batch.stale_tokens},
      {"groups",
       groups.size()}}.dump());
  for (const Json& group : groups) jsons.push_back(group.dump());
  const int64_t offset = offset_;
  const std::string chain = chain_;
  HALFSTEP_RETURN_IF_ERROR(AppendAll(jsons));
  before_last_ = offset;
  chain_before_last_ = chain;
  last_step_ = batch.step;
  return absl::OkStatus();
}

absl::Status ReplayLog::Append(const ReplayEnd& end) {
  if (last_step_ > end.step) {
    std::error_code error;
    std::filesystem::resize_file(path_, static_cast<uintmax_t>(before_last_), error);
    if (error) return FileError(error.value(), "cut", path_);
    offset_ = before_last_;
    chain_ = chain_before_last_;
    last_step_ = end.step;
  }
  return AppendAll({Json{{"kind", "end"},
                         {"step", end.step},
                         {"master_digest", end.master_digest},
                         {"weights_digest", end.weights_digest},
                         {"state_digest", end.state_digest}}
                        .dump()});
}

}  // namespace halfstep
