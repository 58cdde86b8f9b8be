// SPDX-License-Identifier: Apache-2.0
#include "cli/runs/metric_diff.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace halfstep {
namespace {

// From what a batch is made of to what the step makes of it. Others come after these, by name.
constexpr const char* kCausalOrder[] = {
    "samples",
    "length_mean",
    "truncated_share",
    "reward_mean",
    "reward_std",
    "zero_std_group_share",
    "tokens",
    "tokens_compared",
    "mismatch_",
    "phantom_clip_fraction",
    "entropy",
    "clip_fraction",
    "loss",
    "largest_scaled_gradient",
    "grad_norm",
    "overflow",
    "non_finite_parameter",
    "gradient_digest",
    "learning_rate",
    "updates_applied",
    "skipped_steps",
    "loss_scale",
    "master_digest",
};

size_t CausalRank(const std::string& name) {
  size_t rank = 0;
  for (const std::string entry : kCausalOrder) {
    if (name == entry || (entry.back() == '_' && absl::StartsWith(name, entry))) return rank;
    ++rank;
  }
  return rank;
}

bool IsDuration(const std::string& name) {
  return absl::StartsWith(name, "time_") || name == "tokens_per_second";
}

bool Same(const MetricPoint& a, const MetricPoint& b) {
  return std::bit_cast<uint64_t>(a.value) == std::bit_cast<uint64_t>(b.value);
}
bool Same(const MetricText& a, const MetricText& b) { return a.text == b.text; }

// As in the file: counts without a fraction.
std::string Shown(const MetricPoint& point) {
  const bool count = std::abs(point.value) < 0x1p53 && std::trunc(point.value) == point.value;
  return count ? absl::StrFormat("%.0f", point.value) : nlohmann::json(point.value).dump();
}
std::string Shown(const MetricText& text) { return text.text; }

struct Found {
  int64_t step = 0;
  ValueDifference difference;
};

// The first step up to `last` at which only one of the two has a value, or both have another.
template <class Value>
std::optional<Found> FirstDifference(const std::string& name, const std::vector<Value>& a,
                                     const std::vector<Value>& b, int64_t last) {
  size_t i = 0, j = 0;
  while (true) {
    const bool has_a = i < a.size() && a[i].step <= last;
    const bool has_b = j < b.size() && b[j].step <= last;
    if (!has_a && !has_b) return std::nullopt;
    const bool at_a = has_a && (!has_b || a[i].step <= b[j].step);
    const bool at_b = has_b && (!has_a || b[j].step <= a[i].step);
    if (at_a && at_b && Same(a[i], b[j])) {
      ++i;
      ++j;
      continue;
    }
    Found found{at_a ? a[i].step : b[j].step, {name, std::nullopt, std::nullopt}};
    if (at_a) found.difference.a = Shown(a[i]);
    if (at_b) found.difference.b = Shown(b[j]);
    return found;
  }
}

template <class Values>
void AddFound(const std::map<std::string, Values>& a, const std::map<std::string, Values>& b,
              int64_t last, std::vector<Found>* found) {
  for (const auto& [name, values] : a) {
    const auto other = b.find(name);
    if (other == b.end() || IsDuration(name)) continue;
    if (auto first = FirstDifference(name, values, other->second, last)) {
      found->push_back(*std::move(first));
    }
  }
}

// `last`: up to where both tables go.
std::optional<MetricDifference> DiffTables(const MetricTable& a, const MetricTable& b,
                                           int64_t last) {
  std::vector<Found> found;
  AddFound(a.numbers, b.numbers, last, &found);
  AddFound(a.texts, b.texts, last, &found);
  if (found.empty()) return std::nullopt;
  std::sort(found.begin(), found.end(), [](const Found& x, const Found& y) {
    return std::make_pair(x.step, CausalRank(x.difference.name)) <
           std::make_pair(y.step, CausalRank(y.difference.name));
  });
  MetricDifference difference;
  difference.step = found.front().step;
  for (Found& one : found) {
    if (one.step == difference.step) difference.metrics.push_back(std::move(one.difference));
  }
  return difference;
}

// The first line that only one of the tables has, after the last that both have.
std::optional<MetricDifference> OnlyInOne(const MetricTable& a, const MetricTable& b) {
  if (a.last_step == b.last_step) return std::nullopt;
  const bool longer_a = a.last_step > b.last_step;
  const int64_t last = std::min(a.last_step, b.last_step);
  int64_t next = std::max(a.last_step, b.last_step);
  for (const auto& [name, values] : (longer_a ? a : b).numbers) {
    const auto after = std::find_if(values.begin(), values.end(),
                                    [last](const MetricPoint& point) { return point.step > last; });
    if (after != values.end()) next = std::min(next, after->step);
  }
  MetricDifference difference;
  difference.step = next;
  ValueDifference line{"step", std::nullopt, std::nullopt};
  (longer_a ? line.a : line.b) = absl::StrCat(next);
  difference.metrics.push_back(std::move(line));
  return difference;
}

void AddOnlyIn(const MetricTable& a, const MetricTable& b, std::vector<std::string>* names) {
  if (b.lines == 0) return;
  for (const auto& [name, values] : a.numbers) {
    if (b.numbers.count(name) == 0 && !IsDuration(name)) names->push_back(name);
  }
}

}  // namespace

std::vector<ValueDifference> DiffJobs(const nlohmann::ordered_json& a,
                                      const nlohmann::ordered_json& b) {
  const auto flat_a = FlattenJob(a), flat_b = FlattenJob(b);
  const std::map<std::string, std::string> by_key_a(flat_a.begin(), flat_a.end());
  const std::map<std::string, std::string> by_key_b(flat_b.begin(), flat_b.end());
  std::vector<ValueDifference> differences;
  std::set<std::string> seen = {"output_dir"};
  for (const auto* flat : {&flat_a, &flat_b}) {
    for (const auto& [key, value] : *flat) {
      if (!seen.insert(key).second) continue;
      const auto in_a = by_key_a.find(key), in_b = by_key_b.find(key);
      ValueDifference difference{key, std::nullopt, std::nullopt};
      if (in_a != by_key_a.end()) difference.a = in_a->second;
      if (in_b != by_key_b.end()) difference.b = in_b->second;
      if (difference.a != difference.b) differences.push_back(std::move(difference));
    }
  }
  return differences;
}

MetricComparison DiffMetrics(const RunRecord& a, const RunRecord& b) {
  MetricComparison comparison;
  comparison.steps = std::min(a.steps.lines, b.steps.lines);
  AddOnlyIn(a.steps, b.steps, &comparison.only_in_a);
  AddOnlyIn(b.steps, a.steps, &comparison.only_in_b);
  std::optional<MetricDifference> step =
      DiffTables(a.steps, b.steps, std::min(a.steps.last_step, b.steps.last_step));
  if (!step) step = OnlyInOne(a.steps, b.steps);
  std::optional<MetricDifference> evaluation = DiffTables(
      a.evaluations, b.evaluations, std::min(a.evaluations.last_step, b.evaluations.last_step));
  // A run that is longer has more evaluations, too; that adds nothing.
  if (!evaluation && a.steps.last_step == b.steps.last_step) {
    evaluation = OnlyInOne(a.evaluations, b.evaluations);
  }
  if (evaluation) evaluation->in_evaluation = true;
  const bool evaluation_first = evaluation && (!step || evaluation->step < step->step);
  comparison.first = evaluation_first ? std::move(evaluation) : std::move(step);
  return comparison;
}

}  // namespace halfstep
