// SPDX-License-Identifier: Apache-2.0
#include "learner_server/training/sample_log.h"

#include <nlohmann/json.hpp>

#include "common/tokenizer/tokenizer.h"

namespace halfstep {

using Json = nlohmann::ordered_json;

SampleRecord RecordOf(const Trajectory& trajectory) {
  SampleRecord record;
  record.group = trajectory.key.ordinal;
  record.index = trajectory.sample.index;
  record.rollout_id = trajectory.rollout_id;
  record.versions = trajectory.sample.versions;
  record.finish_reason = trajectory.sample.finish_reason;
  record.tokens = trajectory.sample.tokens;
  record.log_probs = trajectory.sample.log_probs;
  record.reward = trajectory.reward;
  return record;
}

std::string SampleLine(int64_t step, const SampleRecord& record, const Tokenizer& tokenizer) {
  Json versions = Json::array();
  for (const VersionRun& run : record.versions) {
    versions.push_back({{"version", run.version}, {"tokens", run.count}});
  }
  Json line{{"step", step},
            {"group", record.group},
            {"index", record.index},
            {"row", record.row},
            {"rollout", record.rollout_id},
            {"versions", std::move(versions)},
            {"finish_reason", Name(record.finish_reason)},
            {"tokens", record.tokens},
            {"log_probs", record.log_probs},
            {"text", tokenizer.Decode(record.tokens)},
            {"outcome", Name(record.reward.outcome)}};
  if (record.reward.outcome == RewardOutcome::kScore) {
    line["reward"] = record.reward.score;
  } else {
    line["detail"] = record.reward.detail;
  }
  if (record.advantage) line["advantage"] = *record.advantage;
  // Names and details come from other programs and may be any bytes.
  return line.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace halfstep
