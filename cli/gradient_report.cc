// SPDX-License-Identifier: Apache-2.0
#include "cli/gradient_report.h"

#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/console.h"
#include "cli/mismatch_report.h"
#include "common/base/build_info.h"

namespace halfstep {
namespace {

using Json = nlohmann::ordered_json;
using Row = std::vector<std::string>;

std::string WithInterval(const Interval& interval) {
  return absl::StrFormat("%.3g [%.3g, %.3g]", interval.value, interval.low, interval.high);
}

// Nothing is said of what was seen in too few batches but in how many.
std::string BiasText(const BiasFigure& bias) {
  if (bias.batches_apart == 0) return "none seen";
  if (bias.batches_apart < kFewestBatchesApart) {
    return absl::StrFormat("(in %d batches)", bias.batches_apart);
  }
  return bias.norm.low > 0 ? WithInterval(bias.norm) : absl::StrFormat("< %.2g", bias.norm.high);
}

Row CorrectionRow(const CorrectionResult& result) {
  const bool reference = result.correction.kind == CorrectionKind::kSequenceIs;
  Row row = {Name(result.correction.kind)};
  if (result.gradient) {
    const GradientFigures& figures = *result.gradient;
    row.insert(row.end(), {reference ? "reference" : BiasText(figures.paired_bias),
                           BiasText(figures.bias), WithInterval(figures.cosine),
                           WithInterval(figures.deviation), WithInterval(figures.variance_ratio)});
  }
  const CorrectionMetrics& weights = result.weights;
  row.insert(row.end(), {absl::StrFormat("%.5g", weights.effective_sample_size),
                         absl::StrFormat("%.4g", weights.max), Percent(weights.masked_share)});
  return row;
}

void PrintCell(const GradientResult& result, int64_t batches, std::ostream& out) {
  out << absl::StrFormat(
      "rollout %s, learner %s: %d tokens of %d responses, mean score %.3g, mean |d| %.3g, %s of "
      "the "
      "responses as the exact policy drew them\n",
      Name(result.cell.rollout), Name(result.cell.learner), result.mismatch.tokens_compared,
      result.responses, result.score, result.mismatch.abs_mean, Percent(result.equal_share));
  Row head = {"correction"};
  if (result.exact) {
    out << absl::StrFormat("exact gradient g*: norm %s; a batch deviates by %s times that\n",
                           WithInterval(result.exact_norm), WithInterval(result.exact->deviation));
    head.insert(head.end(), {"bias, paired", "bias", "cosine", "deviation", "variance"});
  } else {
    out << absl::StrFormat(
        "%d batches do not tell the exact gradient from 0: its norm is below %.3g. Ask for more "
        "batches, prompts or samples\n",
        batches, result.exact_norm.high);
  }
  head.insert(head.end(), {"ESS", "largest weight", "masked"});
  std::vector<Row> rows = {std::move(head)};
  for (const CorrectionResult& correction : result.corrections) {
    rows.push_back(CorrectionRow(correction));
  }
  PrintTable(rows, out);
  out << "\n";
}

Json ToJson(const Interval& interval) {
  return {{"value", interval.value}, {"low", interval.low}, {"high", interval.high}};
}

Json ToJson(const BiasFigure& bias) {
  Json out = ToJson(bias.norm);
  out["batches_apart"] = bias.batches_apart;
  return out;
}

Json ToJson(const CorrectionResult& result) {
  Json out = {{"correction", Name(result.correction.kind)},
              {"weights",
               {{"mean", result.weights.mean},
                {"max", result.weights.max},
                {"effective_sample_size", result.weights.effective_sample_size},
                {"masked_share", result.weights.masked_share}}},
              {"gradient", nullptr}};
  if (!result.gradient) return out;
  const GradientFigures& figures = *result.gradient;
  out["gradient"] = {{"paired_bias", ToJson(figures.paired_bias)},
                     {"bias", ToJson(figures.bias)},
                     {"cosine", ToJson(figures.cosine)},
                     {"deviation", ToJson(figures.deviation)},
                     {"variance_ratio", ToJson(figures.variance_ratio)}};
  return out;
}

Json ToJson(const GradientResult& result) {
  Json out = {{"rollout", Name(result.cell.rollout)},
              {"learner", Name(result.cell.learner)},
              {"responses", result.responses},
              {"tokens", result.mismatch.tokens_compared},
              {"score", result.score},
              {"equal_share", result.equal_share},
              {"mismatch",
               {{"abs_mean", result.mismatch.abs_mean},
                {"abs_max", result.mismatch.abs_max},
                {"sequence_abs_sum_mean", result.mismatch.sequence_abs_sum_mean},
                {"sequence_kl", result.mismatch.sequence_kl}}},
              {"exact",
               {{"abs_max", result.exact_abs_max},
                {"norm", ToJson(result.exact_norm)},
                {"deviation", nullptr}}},
              {"corrections", Json::array()}};
  if (result.exact) out["exact"]["deviation"] = ToJson(result.exact->deviation);
  for (const CorrectionResult& correction : result.corrections) {
    out["corrections"].push_back(ToJson(correction));
  }
  return out;
}

}  // namespace

void PrintGradients(const GradientReport& report, std::ostream& out) {
  out << absl::StrFormat(
      "%s%s, %s, rollouts in profile %s, temperature %g; %d batches of %d prompts x %d samples\n"
      "bias: ||E g - g*|| / ||g*||; paired: from the difference to sequence_is on the same "
      "samples;\n"
      "deviation: sqrt(tr Cov g) / ||g*|| of a batch; variance: tr Cov g of that of g*'s own "
      "samples\n"
      "intervals: two jackknife errors over batches; \"< x\": not told from 0, but from x; \"(in n "
      "batches)\": seen in too few for an interval\n\n",
      report.model,
      report.rollout_model.empty() ? "" : absl::StrCat(" (rollouts: ", report.rollout_model, ")"),
      report.data, Name(report.profile), report.temperature, report.batches, report.prompts,
      report.samples);
  if (report.skipped > 0) {
    out << report.skipped << " prompts are too long for the model and were left out\n\n";
  }
  for (const GradientResult& result : report.results) PrintCell(result, report.batches, out);
}

Json GradientsToJson(const GradientReport& report) {
  Json out = {{"model", report.model},
              {"rollout_model", nullptr},
              {"data", report.data},
              {"prompts_skipped", report.skipped},
              {"build", BuildId()},
              {"profile", Name(report.profile)},
              {"fp32_residual", report.fp32.residual},
              {"fp32_head", report.fp32.head},
              {"temperature", report.temperature},
              {"seed", report.seed},
              {"batches", report.batches},
              {"prompts", report.prompts},
              {"samples", report.samples},
              {"cells", Json::array()}};
  if (!report.rollout_model.empty()) out["rollout_model"] = report.rollout_model;
  for (const GradientResult& result : report.results) out["cells"].push_back(ToJson(result));
  return out;
}

}  // namespace halfstep
