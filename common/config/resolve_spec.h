// SPDX-License-Identifier: Apache-2.0
// The defaults of a job, in one place.
#pragma once

#include <string>

namespace halfstep {

namespace v1 {
class TrainingJobSpec;
}

// Fills what was left out with the defaults that training_job.proto states; what was given stays,
// also where it is wrong. The overrides of the algorithm's and the loss scale's presets stay
// absent: absent is what they mean. An sft job gets no keys that only rl has. `job_id` names the
// default folder. Resolving twice changes nothing.
void ResolveSpec(const std::string& job_id, v1::TrainingJobSpec* spec);

}  // namespace halfstep
