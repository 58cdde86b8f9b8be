// SPDX-License-Identifier: Apache-2.0
// How results and errors look: tables for people, JSON for programs.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <ostream>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace halfstep::v1 {
class RunSummary;
class TrainingJob;
class TrainingJobEvent;
}  // namespace halfstep::v1

namespace halfstep {

enum class OutputFormat { kTable, kJson };

// An error: "error: message" with one line per field on `err`, or an object {"error": {code,
// reason, message, violations}} on `out`.
void PrintError(const absl::Status& status, OutputFormat format, std::ostream& out,
                std::ostream& err);

// Rows of equally many cells, the first being the head, in columns as wide as they need.
void PrintTable(const std::vector<std::vector<std::string>>& rows, std::ostream& out);

// The keys of the proto, states and enums in lower case, times as RFC 3339.
nlohmann::ordered_json JobToJson(const v1::TrainingJob& job);
nlohmann::ordered_json EventToJson(const v1::TrainingJobEvent& event);
nlohmann::ordered_json SummaryToJson(const v1::RunSummary& summary);

// "trainingJobs/{id}" without its first part, and the reverse, which takes either.
std::string JobIdOf(const std::string& name);
std::string JobNameOf(const std::string& id_or_name);

// 1234567 as "1.23M"; a share such as 0.412 as "41.2 %".
std::string Short(double value);
std::string Percent(double share);

}  // namespace halfstep
