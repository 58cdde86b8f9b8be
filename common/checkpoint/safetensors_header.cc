// SPDX-License-Identifier: Apache-2.0
// The safetensors header: a JSON object of name -> {dtype, shape, data_offsets}, from files that
// nobody vouches for.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/error_reason.h"
#include "common/base/json.h"
#include "common/base/status_macros.h"
#include "common/checkpoint/safetensors.h"
#include "nlohmann/json.hpp"

namespace halfstep {
namespace {

using Json = nlohmann::json;

constexpr char kMetadataKey[] = "__metadata__";
constexpr int kMaxDepth = 3;  // the object, an entry, its lists

absl::Status Malformed(const std::string& source, const std::string& what) {
  return Error(absl::StatusCode::kInvalidArgument, "INVALID_SAFETENSORS",
               absl::StrCat("'", source, "': ", what));
}

absl::StatusOr<Json> ParseStrict(const std::string& text, const std::string& source) {
  absl::StatusOr<Json> json = ParseJson(text, {.max_depth = kMaxDepth, .unique_keys = true});
  if (!json.ok()) return Malformed(source, absl::StrCat("the header ", json.status().message()));
  if (!json->is_object()) return Malformed(source, "the header is not a JSON object");
  return json;
}

absl::Status ReadMetadata(const Json& json, const std::string& source, SafetensorsHeader* header) {
  if (!json.is_object()) return Malformed(source, "__metadata__ is not an object");
  for (const auto& [key, value] : json.items()) {
    if (!value.is_string()) {
      return Malformed(source, absl::StrCat("__metadata__ '", key, "' is not a string"));
    }
    header->metadata[key] = value.get<std::string>();
  }
  return absl::OkStatus();
}

// The bytes that dtype and shape need; false when the product overflows.
bool TensorBytes(const SafetensorsEntry& entry, uint64_t* bytes) {
  *bytes = SafetensorsElementBytes(entry.dtype);
  for (const int64_t dim : entry.shape) {
    if (__builtin_mul_overflow(*bytes, static_cast<uint64_t>(dim), bytes)) return false;
  }
  return true;
}

absl::StatusOr<SafetensorsEntry> ReadEntry(const std::string& name, const Json& json,
                                           const std::string& source) {
  const auto malformed = [&](const std::string& what) {
    return Malformed(source, absl::StrCat("tensor '", name, "' ", what));
  };
  if (!json.is_object()) return malformed("is not an object");
  const auto dtype = json.find("dtype");
  const auto shape = json.find("shape");
  const auto offsets = json.find("data_offsets");
  if (dtype == json.end() || !dtype->is_string()) return malformed("has no dtype");
  if (shape == json.end() || !shape->is_array()) return malformed("has no shape");
  if (offsets == json.end() || !offsets->is_array() || offsets->size() != 2) {
    return malformed("has no data_offsets of two numbers");
  }
  SafetensorsEntry entry;
  entry.name = name;
  entry.dtype = dtype->get<std::string>();
  if (SafetensorsElementBytes(entry.dtype) == 0) {
    return malformed(absl::StrCat("has the unknown dtype '", entry.dtype, "'"));
  }
  for (const Json& dim : *shape) {
    if (!dim.is_number_unsigned() || dim.get<uint64_t>() > uint64_t{INT64_MAX}) {
      return malformed("has a shape that is not a list of sizes");
    }
    entry.shape.push_back(dim.get<int64_t>());
  }
  for (const Json& offset : *offsets) {
    if (!offset.is_number_unsigned()) return malformed("has data_offsets that are not sizes");
  }
  entry.begin = (*offsets)[0].get<uint64_t>();
  entry.end = (*offsets)[1].get<uint64_t>();
  if (entry.begin > entry.end) return malformed("ends before it begins");
  uint64_t bytes = 0;
  if (!TensorBytes(entry, &bytes) || bytes != entry.bytes()) {
    return malformed(absl::StrCat("takes ", entry.bytes(), " bytes by its data_offsets, but ",
                                  entry.dtype, " of shape [", absl::StrJoin(entry.shape, ", "),
                                  "] does not"));
  }
  return entry;
}

// Ranges in ascending order must tile [0, data_bytes).
absl::Status CheckTiling(const SafetensorsHeader& header, uint64_t data_bytes,
                         const std::string& source) {
  uint64_t position = 0;
  for (const SafetensorsEntry& entry : header.entries) {
    if (entry.end > data_bytes) {
      return Malformed(
          source,
          absl::StrCat("tensor '", entry.name, "' ends at byte ", entry.end, " of ", data_bytes,
                       "; the file is truncated or the header is wrong: copy it again "
                       "from where it came"));
    }
    if (entry.begin != position) {
      return Malformed(source, absl::StrCat("tensor '", entry.name, "' begins at byte ",
                                            entry.begin, ", expected ", position, ": ranges ",
                                            entry.begin < position ? "overlap" : "leave a hole"));
    }
    position = entry.end;
  }
  if (position != data_bytes) {
    return Malformed(
        source, absl::StrCat(data_bytes - position, " bytes after the last tensor belong to none"));
  }
  return absl::OkStatus();
}

}  // namespace

size_t SafetensorsElementBytes(const std::string& dtype) {
  static constexpr std::pair<const char*, size_t> kSizes[] = {
      {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E4M3", 1}, {"F8_E5M2", 1},
      {"I16", 2},  {"U16", 2}, {"F16", 2}, {"BF16", 2},    {"I32", 4},
      {"U32", 4},  {"F32", 4}, {"F64", 8}, {"I64", 8},     {"U64", 8}};
  for (const auto& [name, bytes] : kSizes) {
    if (dtype == name) return bytes;
  }
  return 0;
}

absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(const std::string& json,
                                                         uint64_t data_bytes,
                                                         const std::string& source) {
  HALFSTEP_ASSIGN_OR_RETURN(const Json object, ParseStrict(json, source));
  SafetensorsHeader header;
  for (const auto& [name, value] : object.items()) {
    if (name == kMetadataKey) {
      HALFSTEP_RETURN_IF_ERROR(ReadMetadata(value, source, &header));
      continue;
    }
    HALFSTEP_ASSIGN_OR_RETURN(SafetensorsEntry entry, ReadEntry(name, value, source));
    header.entries.push_back(std::move(entry));
  }
  std::sort(header.entries.begin(), header.entries.end(), [](const auto& a, const auto& b) {
    return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
  });
  HALFSTEP_RETURN_IF_ERROR(CheckTiling(header, data_bytes, source));
  return header;
}

}  // namespace halfstep
