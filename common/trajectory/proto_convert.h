// SPDX-License-Identifier: Apache-2.0
// Trajectories between plain structs and the wire. Reading checks structure: what is missing, out
// of any possible range, or does not add up is INVALID_ARGUMENT with a reason. What depends on a
// job (vocabulary, versions, finite log-probs, expected groups) is checked where the job is known.
#pragma once

#include <optional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/trajectory/trajectory.h"

namespace halfstep {

namespace v1 {
class Assign;
class Sample;
class SamplingParams;
enum FinishReason : int;
}  // namespace v1

// A sample as it travels: with the group it belongs to.
struct KeyedSample {
  GroupKey key;
  Sample sample;
};

// Writers overwrite `out`. A deadline stays with the learner: it does not travel.
void ToProto(const SamplingParams& params, v1::SamplingParams* out);
void ToProto(const GroupAssignment& assignment, v1::Assign* out);
void ToProto(const KeyedSample& sample, v1::Sample* out);

v1::FinishReason ToProto(FinishReason reason);

// Nothing for what is not set or not known to this build.
std::optional<FinishReason> FromProto(v1::FinishReason reason);

// Reason INVALID_SAMPLING. An absent top_p (0) stands for 1.
absl::StatusOr<SamplingParams> FromProto(const v1::SamplingParams& proto);

// Reason MALFORMED_ASSIGNMENT (or INVALID_SAMPLING).
absl::StatusOr<GroupAssignment> FromProto(const v1::Assign& proto);

// Reason MALFORMED_SAMPLE; UNIMPLEMENTED for segments that are not of the policy.
absl::StatusOr<KeyedSample> FromProto(const v1::Sample& proto);

}  // namespace halfstep
