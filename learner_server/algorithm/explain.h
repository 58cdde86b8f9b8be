// SPDX-License-Identifier: Apache-2.0
// An algorithm in words and formulas.
#pragma once

#include <string>
#include <vector>

#include "learner_server/algorithm/presets.h"

namespace halfstep {

// One line for each choice, "choice  name: formula" with its numbers, then the whole loss; ASCII,
// without line ends. R scores, A advantages, pi current policy, pi_old at the start of the batch's
// training, mu behaviour policy, w the correction's weights.
std::vector<std::string> Explain(const Algorithm& algorithm);

}  // namespace halfstep
