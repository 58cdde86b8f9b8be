// SPDX-License-Identifier: Apache-2.0
// The defaults of a job, in one place.
#pragma once

#include <string>
#include <vector>

namespace halfstep {

namespace v1 {
enum Objective : int;
class TrainingJobSpec;
}  // namespace v1

// Fills what was left out with the defaults that training_job.proto states; what was given stays,
// also where it is wrong. The overrides of the algorithm's and the loss scale's presets stay
// absent: absent is what they mean. An sft job gets no keys that only rl has. `job_id` names the
// default folder. Resolving twice changes nothing.
void ResolveSpec(const std::string& job_id, v1::TrainingJobSpec* spec);

// The keys of `health`: every alarm for rl, the one on gradients for sft, which has no rewards, no
// behaviour log-probs, and an entropy that is meant to fall.
std::vector<const char*> HealthAlarmsOf(v1::Objective objective);

}  // namespace halfstep
