// SPDX-License-Identifier: Apache-2.0
#include "cli/runs/run_diff.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "cli/console.h"
#include "cli/runs/run_record.h"
#include "common/base/status_macros.h"

namespace halfstep {
namespace {

using Json = nlohmann::ordered_json;
using Rows = std::vector<std::vector<std::string>>;

constexpr size_t kMaxShown = 60;

enum class Kind { kSample, kMetric, kCheckpoint };

// What there is, earliest first.
std::vector<Kind> CausalOrder(const RunDiff& diff) {
  std::vector<std::pair<int64_t, Kind>> kinds;
  if (diff.samples.first) kinds.emplace_back(diff.samples.first->step, Kind::kSample);
  if (diff.metrics.first) kinds.emplace_back(diff.metrics.first->step, Kind::kMetric);
  if (diff.checkpoints.first) kinds.emplace_back(diff.checkpoints.first->step, Kind::kCheckpoint);
  std::sort(kinds.begin(), kinds.end());
  std::vector<Kind> order;
  for (const auto& [step, kind] : kinds) order.push_back(kind);
  return order;
}

std::string Shown(const std::optional<std::string>& value) {
  if (!value) return "none";
  return value->size() <= kMaxShown ? *value : value->substr(0, kMaxShown) + "...";
}

std::string PlaceOf(const SampleDifference& sample) {
  return absl::StrCat("step ", sample.step, ", group ", sample.group, ", sample ", sample.index,
                      ", ", sample.what,
                      sample.token ? absl::StrCat(" at token ", *sample.token) : std::string());
}

std::string PlaceOf(const TensorDifference& tensor) {
  return absl::StrCat(
      tensor.file, ": ", tensor.tensor,
      tensor.parameter.empty() ? "" : absl::StrCat(" ", tensor.parameter),
      tensor.element.empty() ? "" : absl::StrCat(" [", absl::StrJoin(tensor.element, ", "), "]"));
}

void AddValues(const std::string& place, const std::vector<ValueDifference>& values, Rows* rows) {
  for (const ValueDifference& value : values) {
    rows->push_back({place, value.name, Shown(value.a), Shown(value.b)});
  }
}

void AddSample(const SampleDifference& sample, Rows* rows) {
  rows->push_back({"sample", PlaceOf(sample), Shown(sample.a), Shown(sample.b)});
}

void AddMetrics(const MetricDifference& metrics, Rows* rows) {
  AddValues(absl::StrCat(metrics.in_evaluation ? "evaluation after step " : "step ", metrics.step),
            metrics.metrics, rows);
}

void AddCheckpoint(const CheckpointDifference& checkpoint, Rows* rows) {
  const std::string place = absl::StrCat("checkpoint of step ", checkpoint.step);
  AddValues(place, checkpoint.trainer, rows);
  if (!checkpoint.tensor) return;
  const TensorDifference& tensor = *checkpoint.tensor;
  rows->push_back({place, PlaceOf(tensor), tensor.a, tensor.b});
}

std::string TensorSummary(const TensorDifference& tensor) {
  return absl::StrFormat("in %s %d of %d elements of %d tensors differ, the most by %.3g in %s",
                         tensor.file, tensor.differing_elements, tensor.elements,
                         tensor.differing_tensors, tensor.largest, tensor.largest_in);
}

Json ValuesToJson(const std::vector<ValueDifference>& values) {
  const auto side = [](const std::optional<std::string>& value) {
    return value ? Json(*value) : Json();
  };
  Json out = Json::array();
  for (const ValueDifference& value : values) {
    out.push_back({{"name", value.name}, {"a", side(value.a)}, {"b", side(value.b)}});
  }
  return out;
}

Json SampleToJson(const SampleDifference& sample) {
  Json out = {{"kind", "sample"},
              {"step", sample.step},
              {"group", sample.group},
              {"index", sample.index},
              {"what", sample.what}};
  if (sample.token) out["token"] = *sample.token;
  out["a"] = sample.a;
  out["b"] = sample.b;
  return out;
}

Json CheckpointToJson(const CheckpointDifference& checkpoint) {
  Json out = {{"kind", "checkpoint"},
              {"step", checkpoint.step},
              {"trainer", ValuesToJson(checkpoint.trainer)}};
  if (!checkpoint.tensor) return out;
  const TensorDifference& tensor = *checkpoint.tensor;
  out["tensor"] = {{"file", tensor.file},
                   {"tensor", tensor.tensor},
                   {"parameter", tensor.parameter},
                   {"element", tensor.element},
                   {"a", tensor.a},
                   {"b", tensor.b},
                   {"differing_elements", tensor.differing_elements},
                   {"elements", tensor.elements},
                   {"differing_tensors", tensor.differing_tensors},
                   {"largest_difference", tensor.largest},
                   {"largest_in", tensor.largest_in}};
  return out;
}

}  // namespace

bool RunDiff::equal() const {
  return job.empty() && !samples.first && !metrics.first && !checkpoints.first;
}

std::vector<std::string> RunDiff::Notes() const {
  std::vector<std::string> notes;
  if (!samples.compared) {
    notes.push_back("samples are not compared: not both runs have them (save_samples)");
  }
  for (const auto& [run, names] :
       {std::make_pair(&run_a, &metrics.only_in_a), std::make_pair(&run_b, &metrics.only_in_b)}) {
    if (names->empty()) continue;
    notes.push_back(
        absl::StrCat("only ", *run, " logs ", absl::StrJoin(*names, ", "), ": not compared"));
  }
  if (checkpoints.steps.empty()) {
    notes.push_back("tensors are not compared: there are no checkpoints of the same step");
  }
  notes.insert(notes.end(), checkpoints.notes.begin(), checkpoints.notes.end());
  return notes;
}

absl::StatusOr<RunDiff> DiffRuns(const std::string& run_a, const std::string& run_b) {
  HALFSTEP_ASSIGN_OR_RETURN(const RunRecord a, ReadRun(run_a));
  HALFSTEP_ASSIGN_OR_RETURN(const RunRecord b, ReadRun(run_b));
  RunDiff diff;
  diff.run_a = run_a;
  diff.run_b = run_b;
  diff.job = DiffJobs(a.job, b.job);
  diff.metrics = DiffMetrics(a, b);
  HALFSTEP_ASSIGN_OR_RETURN(diff.samples, DiffSamples(run_a, run_b));
  HALFSTEP_ASSIGN_OR_RETURN(diff.checkpoints, DiffCheckpoints(run_a, run_b));
  return diff;
}

void PrintDiff(const RunDiff& diff, std::ostream& out) {
  if (!diff.equal()) {
    Rows rows = {{"where", "what", diff.run_a, diff.run_b}};
    AddValues("job", diff.job, &rows);
    for (const Kind kind : CausalOrder(diff)) {
      if (kind == Kind::kSample) AddSample(*diff.samples.first, &rows);
      if (kind == Kind::kMetric) AddMetrics(*diff.metrics.first, &rows);
      if (kind == Kind::kCheckpoint) AddCheckpoint(*diff.checkpoints.first, &rows);
    }
    PrintTable(rows, out);
    if (diff.checkpoints.first && diff.checkpoints.first->tensor) {
      out << TensorSummary(*diff.checkpoints.first->tensor) << "\n";
    }
  }
  for (const std::string& note : diff.Notes()) out << "note: " << note << "\n";
  out << (diff.equal() ? "equal: " : "compared: ") << diff.metrics.steps << " steps, "
      << diff.samples.samples << " equal samples, checkpoints of steps "
      << (diff.checkpoints.steps.empty() ? "none" : absl::StrJoin(diff.checkpoints.steps, ", "))
      << "\n";
}

Json DiffToJson(const RunDiff& diff) {
  Json differences = Json::array();
  for (const Kind kind : CausalOrder(diff)) {
    if (kind == Kind::kSample) differences.push_back(SampleToJson(*diff.samples.first));
    if (kind == Kind::kCheckpoint) differences.push_back(CheckpointToJson(*diff.checkpoints.first));
    if (kind == Kind::kMetric) {
      const MetricDifference& metrics = *diff.metrics.first;
      differences.push_back({{"kind", metrics.in_evaluation ? "evaluation" : "metric"},
                             {"step", metrics.step},
                             {"metrics", ValuesToJson(metrics.metrics)}});
    }
  }
  return {{"equal", diff.equal()},
          {"job", ValuesToJson(diff.job)},
          {"differences", std::move(differences)},
          {"steps_compared", diff.metrics.steps},
          {"samples_equal", diff.samples.samples},
          {"checkpoints_compared", diff.checkpoints.steps},
          {"notes", diff.Notes()}};
}

}  // namespace halfstep
