// SPDX-License-Identifier: Apache-2.0
#include "rollout_server/generation/sequence.h"

#include <algorithm>
#include <utility>

namespace halfstep {

Sequence::Sequence(std::shared_ptr<const GroupRequest> request, uint32_t index,
                   const std::vector<int32_t>& eos_token_ids, absl::Time queued)
    : request_(std::move(request)),
      stop_token_ids_(request_->sampling.stop_token_ids),
      stop_strings_(request_->sampling.stop_strings),
      queued_(queued) {
  stop_token_ids_.insert(stop_token_ids_.end(), eos_token_ids.begin(), eos_token_ids.end());
  std::sort(stop_token_ids_.begin(), stop_token_ids_.end());
  sample_.index = index;
}

int32_t Sequence::token(int64_t position) const {
  const auto prompt = static_cast<int64_t>(request_->prompt.size());
  return position < prompt ? request_->prompt[position] : sample_.tokens[position - prompt];
}

SamplingRow Sequence::NextRow() const {
  const SamplingParams& sampling = request_->sampling;
  SamplingRow row;
  row.key = {.seed = request_->seed,
             .domain = request_->domain,
             .group = request_->group,
             .index = sample_.index,
             .position = static_cast<uint32_t>(sample_.tokens.size())};
  row.temperature = sampling.temperature;
  row.top_k = sampling.top_k;
  row.top_p = sampling.top_p;
  row.min_p = sampling.min_p;
  return row;
}

void Sequence::MarkStarted(absl::Time now) {
  if (started_) return;
  started_ = now;
  sample_.tokens.reserve(request_->sampling.max_new_tokens);
  sample_.log_probs.reserve(request_->sampling.max_new_tokens);
}

std::optional<FinishReason> Sequence::Append(const DrawnToken& token) {
  sample_.tokens.push_back(token.id);
  sample_.log_probs.push_back(token.log_prob);
  if (sample_.versions.empty() || sample_.versions.back().version != token.version) {
    sample_.versions.push_back({token.version, 0});
  }
  ++sample_.versions.back().count;
  last_token_ = token.time;

  const bool stop_string = stop_strings_.Append(token.bytes);
  if (stop_string || std::binary_search(stop_token_ids_.begin(), stop_token_ids_.end(), token.id)) {
    return FinishReason::kStop;
  }
  if (static_cast<int32_t>(sample_.tokens.size()) >= request_->sampling.max_new_tokens) {
    return FinishReason::kLength;
  }
  return std::nullopt;
}

Sample Sequence::TakeSample(FinishReason reason) {
  sample_.finish_reason = reason;
  const absl::Time finished = last_token_.value_or(queued_);
  const absl::Time started = started_.value_or(finished);
  sample_.queue_time = started - queued_;
  sample_.generation_time = finished - started;
  return std::move(sample_);
}

}  // namespace halfstep
