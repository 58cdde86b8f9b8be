// SPDX-License-Identifier: Apache-2.0
// Prints docs/metrics.md: build/release/bin/halfstep_metrics_page > docs/metrics.md
#include <cstdio>

#include "common/metrics/metrics_page.h"

int main() {
  const std::string page = halfstep::MetricsPage();
  return std::fwrite(page.data(), 1, page.size(), stdout) == page.size() ? 0 : 1;
}
