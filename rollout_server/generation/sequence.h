// SPDX-License-Identifier: Apache-2.0
// Sequence: one response as it grows, and what ends it.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "absl/time/time.h"
#include "common/trajectory/trajectory.h"
#include "kernels/ops/sampling.h"
#include "rollout_server/generation/generation_request.h"
#include "rollout_server/generation/stop_strings.h"

namespace halfstep {

// A token with what is known about it when it was drawn.
struct DrawnToken {
  int32_t id = 0;
  std::string_view bytes;  // of its text; needed only when the request has stop strings
  float log_prob = 0;
  uint64_t version = 0;
  absl::Time time;
};

// Not thread-safe.
class Sequence {
 public:
  // `eos_token_ids` end the response beside the request's own stops.
  Sequence(std::shared_ptr<const GroupRequest> request, uint32_t index,
           const std::vector<int32_t>& eos_token_ids, absl::Time queued);

  const GroupRequest& request() const { return *request_; }
  uint32_t index() const { return sample_.index; }
  // Of prompt and response.
  int32_t token(int64_t position) const;

  // How the next token is drawn.
  SamplingRow NextRow() const;

  // Notes that the model works on the sequence from `now` on; later calls change nothing.
  void MarkStarted(absl::Time now);

  // When the last token was drawn; nothing before the first.
  std::optional<absl::Time> last_token_time() const { return last_token_; }
  absl::Time queued() const { return queued_; }

  // Adds a token; returns why the response is complete, if it is. The token that ends it is part of
  // it.
  std::optional<FinishReason> Append(const DrawnToken& token);

  // The finished response; the sequence is used up.
  Sample TakeSample(FinishReason reason);

 private:
  std::shared_ptr<const GroupRequest> request_;
  std::vector<int32_t> stop_token_ids_;  // sorted
  StopStringMatcher stop_strings_;
  Sample sample_;
  absl::Time queued_;
  std::optional<absl::Time> started_;
  std::optional<absl::Time> last_token_;
};

}  // namespace halfstep
