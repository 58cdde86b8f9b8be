// SPDX-License-Identifier: Apache-2.0
// docs/metrics.md, generated from names.h.
#pragma once

#include <string>

namespace halfstep {

// The whole page in Markdown.
std::string MetricsPage();

}  // namespace halfstep
