// SPDX-License-Identifier: Apache-2.0
// Parse, resolve a copy, validate, and say where.
#include "common/config/load_spec.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/file.h"
#include "common/base/status_macros.h"
#include "common/config/parse_spec.h"
#include "common/config/resolve_spec.h"
#include "common/config/validate_spec.h"
#include "halfstep/v1/training_job.pb.h"

namespace halfstep {
namespace {

constexpr size_t kMaxFileBytes = 1 << 20;

// Whether `field` is one of `paths`, or lies below or above one.
bool Touches(const std::string& field, const std::vector<std::string>& paths) {
  const auto is_below = [](const std::string& path, const std::string& root) {
    return path == root || path.rfind(root + ".", 0) == 0;
  };
  return std::any_of(paths.begin(), paths.end(), [&](const std::string& path) {
    return !path.empty() && (is_below(field, path) || is_below(path, field));
  });
}

// The place of a field, or else of the group it belongs to.
SourcePlace PlaceOf(std::string field, const SourcePlaces& places) {
  while (!field.empty()) {
    const auto found = places.find(field);
    if (found != places.end()) return found->second;
    const size_t dot = field.rfind('.');
    field.resize(dot == std::string::npos ? 0 : dot);
  }
  return {};
}

absl::Status InvalidSpec(const std::vector<FieldViolation>& violations, const std::string& file) {
  const auto line = [&file](std::string* out, const FieldViolation& violation) {
    if (!file.empty()) absl::StrAppend(out, file, ":");
    if (violation.line > 0) absl::StrAppend(out, violation.line, ":", violation.column, ":");
    absl::StrAppend(out, out->empty() || out->back() != ':' ? "" : " ", violation.description);
  };
  const std::string message = absl::StrJoin(violations, "\n", line);
  return WithFieldViolations(Error(absl::StatusCode::kInvalidArgument, "INVALID_SPEC", message),
                             violations);
}

}  // namespace

absl::Status LoadSpec(const std::string& text, const std::string& file, v1::TrainingJobSpec* spec) {
  spec->Clear();
  ParseResult parsed = ParseYaml(text, spec);
  std::vector<FieldViolation> violations = std::move(parsed.violations);
  // Text that could not be read at all lacks everything, which is not worth saying.
  const bool readable = violations.empty() || !violations[0].field.empty();
  if (readable) {
    v1::TrainingJobSpec resolved = *spec;
    ResolveSpec("", &resolved);
    for (FieldViolation& violation : ValidateSpec(resolved)) {
      if (Touches(violation.field, parsed.meant)) continue;
      const SourcePlace place = PlaceOf(violation.field, parsed.places);
      violation.line = place.line;
      violation.column = place.column;
      violations.push_back(std::move(violation));
    }
  }
  if (violations.empty()) return absl::OkStatus();
  return InvalidSpec(violations, file);
}

absl::Status LoadSpecFile(const std::string& path, v1::TrainingJobSpec* spec) {
  HALFSTEP_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxFileBytes));
  return LoadSpec(text, path, spec);
}

absl::Status CheckSpec(const v1::TrainingJobSpec& resolved) {
  const std::vector<FieldViolation> violations = ValidateSpec(resolved);
  return violations.empty() ? absl::OkStatus() : InvalidSpec(violations, "");
}

}  // namespace halfstep
