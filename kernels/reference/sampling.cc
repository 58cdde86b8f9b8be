// SPDX-License-Identifier: Apache-2.0
#include "kernels/reference/sampling.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace halfstep::reference {

std::vector<bool> KeptIds(const std::vector<double>& logits, const SamplingRow& row) {
  const double max = *std::max_element(logits.begin(), logits.end());
  std::vector<double> p(logits.size());
  for (size_t j = 0; j < p.size(); ++j) p[j] = std::exp((logits[j] - max) / row.temperature);
  const double total = std::accumulate(p.begin(), p.end(), 0.0);
  std::vector<size_t> order(p.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return logits[a] > logits[b]; });
  std::vector<bool> kept(p.size());
  double mass = 0;  // of the ids before
  for (size_t i = 0; i < order.size(); ++i) {
    const size_t id = order[i];
    const bool in_k = row.top_k == 0 || i < static_cast<size_t>(row.top_k);
    const bool in_p = i == 0 || row.top_p >= 1 || mass < row.top_p * total;
    kept[id] = in_k && in_p && (i == 0 || p[id] >= row.min_p);
    mass += p[id];
  }
  return kept;
}

int32_t SampleToken(const std::vector<double>& logits, const SamplingRow& row) {
  if (row.temperature == 0) {
    return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
  }
  const std::vector<bool> kept = KeptIds(logits, row);
  int32_t best = -1;
  double best_score = 0;
  for (size_t j = 0; j < logits.size(); ++j) {
    if (!kept[j]) continue;
    const auto id = static_cast<uint32_t>(j);
    const auto words = Philox4x32(NoiseCounter(row.key, id / 4), NoiseKey(row.key));
    const double u = UniformFromBits(words[id % 4]);
    const double score = logits[j] / row.temperature - std::log(-std::log(u));
    if (best < 0 || score > best_score) {
      best = static_cast<int32_t>(j);
      best_score = score;
    }
  }
  return best;
}

}  // namespace halfstep::reference
