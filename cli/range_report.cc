// SPDX-License-Identifier: Apache-2.0
#include "cli/range_report.h"

#include <algorithm>
#include <memory>
#include <new>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/local_engine.h"
#include "common/base/error_reason.h"
#include "common/base/status_macros.h"
#include "kernels/thread_pool.h"
#include "kernels/workspace.h"
#include "learner_server/data/jsonl.h"
#include "learner_server/training/range_check.h"

namespace halfstep {
namespace {

using Json = nlohmann::ordered_json;

absl::StatusOr<TrainSequence> EncodeRow(const LocalModel& model, const JsonlRow& row,
                                        bool has_response) {
  TrainSequence sequence;
  sequence.tokens = model.tokenizer->Encode(row.columns[0]);
  sequence.prompt_tokens = 1;
  if (has_response) {
    sequence.prompt_tokens = static_cast<int64_t>(sequence.tokens.size());
    const std::vector<int32_t> response =
        model.tokenizer->Encode(row.columns[1], SpecialTokens::kOmit);
    sequence.tokens.insert(sequence.tokens.end(), response.begin(), response.end());
  }
  const ModelConfig& config = model.folder.config;
  const auto tokens = static_cast<int64_t>(sequence.tokens.size());
  if (sequence.prompt_tokens < 1 || tokens <= sequence.prompt_tokens) {
    return Error(absl::StatusCode::kInvalidArgument, "PROMPT_TOO_SHORT",
                 has_response ? "prompt or response is empty; give both"
                              : "a prompt of one token leaves none to predict; make it longer or "
                                "name a --response-column");
  }
  if (tokens > config.max_positions) {
    return Error(absl::StatusCode::kInvalidArgument, "PROMPT_TOO_LONG",
                 absl::StrCat("has ", tokens, " tokens, the model has positions for ",
                              config.max_positions, "; shorten it"));
  }
  const int32_t largest = *std::max_element(sequence.tokens.begin(), sequence.tokens.end());
  if (largest >= config.vocab_size) {
    return Error(absl::StatusCode::kInvalidArgument, "TOKENIZER_MISMATCH",
                 absl::StrCat("the tokenizer gives token ", largest, ", the model has only ",
                              config.vocab_size, "; they do not belong together"));
  }
  return sequence;
}

absl::StatusOr<std::vector<TrainSequence>> ReadSequences(const RangeArguments& arguments,
                                                         const LocalModel& model) {
  const bool has_response = !arguments.response_column.empty();
  std::vector<std::string> columns{arguments.prompt_column};
  if (has_response) columns.push_back(arguments.response_column);
  HALFSTEP_ASSIGN_OR_RETURN(const std::vector<JsonlRow> rows,
                            ReadJsonl(arguments.prompts_file, columns));
  std::vector<TrainSequence> sequences;
  for (const JsonlRow& row : rows) {
    absl::StatusOr<TrainSequence> sequence = EncodeRow(model, row, has_response);
    if (!sequence.ok()) {
      return WithContext(sequence.status(), absl::StrCat(arguments.prompts_file, ":", row.line));
    }
    sequences.push_back(*std::move(sequence));
  }
  return sequences;
}

absl::StatusOr<RangeReport> Measure(const RangeArguments& arguments, const LocalModel& model,
                                    const std::vector<TrainSequence>& sequences) {
  const DType dtype = arguments.engine.dtype_or(DType::kFloat16);
  int64_t longest = 0;
  for (const TrainSequence& sequence : sequences) {
    longest = std::max(longest, static_cast<int64_t>(sequence.tokens.size()));
  }
  const int threads = ThreadsOrAll(arguments.engine.threads);
  HALFSTEP_ASSIGN_OR_RETURN(const std::shared_ptr<const ModelWeights> weights,
                            LoadLocalWeights(model, dtype, longest, threads));
  try {
    Workspace workspace;
    ThreadPool pool(threads);
    ExecContext ctx;
    ctx.workspace = &workspace;
    ctx.threads = &pool;
    return CheckRange(ctx, *weights, sequences, {.fp32 = arguments.engine.fp32});
  } catch (const std::bad_alloc&) {
    return Error(absl::StatusCode::kResourceExhausted, "OUT_OF_MEMORY",
                 absl::StrCat("not enough memory for FP32 gradients and activations of ",
                              model.folder.directory, " in ", Name(dtype),
                              "; give fewer or shorter prompts"));
  }
}

std::string LayerName(const RangeReport::Place& place, int64_t layers) {
  return place.first == layers ? "" : absl::StrCat(place.first);
}

Json ToJson(const RangeStatistics& statistics) {
  return {{"largest", statistics.largest},     {"elements", statistics.elements},
          {"saturated", statistics.saturated}, {"subnormal", statistics.subnormal},
          {"zero", statistics.zero},           {"non_finite", statistics.non_finite}};
}

Json ToJson(const std::map<RangeReport::Place, RangeStatistics>& places, int64_t layers) {
  Json rows = Json::array();
  for (const auto& [place, statistics] : places) {
    Json row{{"layer", nullptr}, {"kind", Name(place.second)}};
    if (place.first != layers) row["layer"] = place.first;
    row.update(ToJson(statistics));
    rows.push_back(std::move(row));
  }
  return rows;
}

void PrintJson(const RangeReport& report, int64_t layers, std::ostream& out) {
  Json weights = Json::array();
  for (const auto& [name, statistics] : report.weight_gradients) {
    weights.push_back({{"parameter", name},
                       {"largest", statistics.largest},
                       {"non_finite", statistics.non_finite}});
  }
  out << Json{{"precision", Name(report.dtype)},
              {"fp32_residual", report.fp32.residual},
              {"fp32_head", report.fp32.head},
              {"sequences", report.sequences},
              {"tokens", report.tokens},
              {"safe_in_fp16", report.safe_in_fp16},
              {"safe_with_fp32_residual", report.safe_with_fp32_residual},
              {"verdict", report.verdict},
              {"loss_scale", report.loss_scale},
              {"activations", ToJson(report.activations, layers)},
              {"logits", ToJson(report.logits)},
              {"gradients", ToJson(report.gradients, layers)},
              {"weight_gradients", std::move(weights)}}
             .dump(2)
      << "\n";
}

std::vector<std::string> Row(const std::string& layer, const std::string& kind,
                             const RangeStatistics& statistics) {
  const auto share = [&](int64_t part) {
    return absl::StrFormat("%.3g %%", statistics.elements == 0
                                          ? 0.0
                                          : 100.0 * static_cast<double>(part) /
                                                static_cast<double>(statistics.elements));
  };
  return {layer,
          kind,
          absl::StrFormat("%.4g", statistics.largest),
          share(statistics.saturated),
          share(statistics.subnormal),
          share(statistics.zero),
          absl::StrCat(statistics.non_finite)};
}

void PrintPlaces(const RangeReport& report,
                 const std::map<RangeReport::Place, RangeStatistics>& places, int64_t layers,
                 std::ostream& out) {
  std::vector<std::vector<std::string>> rows{
      {"layer", "kind", "largest", "saturated", "subnormal", "zero", "not finite"}};
  for (const auto& [place, statistics] : places) {
    const char* const stored = StaysFp32(place.second, report.fp32) ? " (FP32)" : "";
    rows.push_back(
        Row(LayerName(place, layers), absl::StrCat(Name(place.second), stored), statistics));
  }
  if (&places == &report.activations) rows.push_back(Row("", "logits (FP32)", report.logits));
  PrintTable(rows, out);
}

void PrintText(const RangeReport& report, int64_t layers, std::ostream& out) {
  out << "activations in " << Name(report.dtype) << ", " << report.sequences << " sequences, "
      << report.tokens << " tokens predicted\n";
  PrintPlaces(report, report.activations, layers, out);
  if (!report.gradients.empty()) {
    out << "\ngradients of activations, times the loss scale of "
        << absl::StrFormat("%g", std::max(report.loss_scale, 1.0)) << "\n";
    PrintPlaces(report, report.gradients, layers, out);
    const auto largest = std::max_element(
        report.weight_gradients.begin(), report.weight_gradients.end(),
        [](const auto& a, const auto& b) { return a.second.largest < b.second.largest; });
    out << "\nlargest gradient of a weight (FP32): "
        << absl::StrFormat("%.4g", largest->second.largest) << ", " << largest->first << "\n";
  }
  out << "\n" << report.verdict << "\n";
}

}  // namespace

absl::Status ReportRange(const RangeArguments& arguments, CommandContext& context) {
  HALFSTEP_ASSIGN_OR_RETURN(const LocalModel model, OpenLocalModel(arguments.model));
  HALFSTEP_ASSIGN_OR_RETURN(const std::vector<TrainSequence> sequences,
                            ReadSequences(arguments, model));
  HALFSTEP_ASSIGN_OR_RETURN(const RangeReport report, Measure(arguments, model, sequences));
  const int64_t layers = model.folder.config.layers;
  if (context.format == OutputFormat::kJson) {
    PrintJson(report, layers, context.out);
  } else {
    PrintText(report, layers, context.out);
  }
  return absl::OkStatus();
}

}  // namespace halfstep
