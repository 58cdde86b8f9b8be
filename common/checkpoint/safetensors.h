// SPDX-License-Identifier: Apache-2.0
// Reading safetensors: one file, or the shards of a folder. Everything a header claims is checked
// before it is used; tensors are read when asked for, by pread, never mapped, so a file that
// shrinks is an error and not a crash.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace halfstep {

struct SafetensorsEntry {
  std::string name;
  std::string dtype;  // as the format spells it: "F16", "BF16", "F32", "I64", ...
  std::vector<int64_t> shape;
  uint64_t begin = 0;  // bytes, from the end of the header
  uint64_t end = 0;

  uint64_t bytes() const { return end - begin; }
};

// A header's contents, in the order of the data.
struct SafetensorsHeader {
  std::vector<SafetensorsEntry> entries;
  std::map<std::string, std::string> metadata;
};

// Headers above this size are refused, as the reference reader does.
inline constexpr uint64_t kMaxSafetensorsHeader = 100'000'000;

// Bytes of an element; 0 for a dtype the format does not know.
size_t SafetensorsElementBytes(const std::string& dtype);

// Checks and parses the JSON of a header whose file has `data_bytes` bytes after it: no duplicate
// keys, known dtypes, shapes that match the byte ranges, ranges that tile the data without overlap
// or hole. `source` names the file in errors, all of which are INVALID_ARGUMENT, reason
// INVALID_SAFETENSORS.
absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(const std::string& json,
                                                         uint64_t data_bytes,
                                                         const std::string& source);

// One open file. Safe to read from many threads.
class SafetensorsFile {
 public:
  // NOT_FOUND when there is no such file; INVALID_ARGUMENT, reason INVALID_SAFETENSORS, naming the
  // file and what is wrong, for a truncated or malformed one.
  static absl::StatusOr<std::unique_ptr<SafetensorsFile>> Open(const std::string& path);
  ~SafetensorsFile();
  SafetensorsFile(const SafetensorsFile&) = delete;
  SafetensorsFile& operator=(const SafetensorsFile&) = delete;

  const std::string& path() const { return path_; }
  const SafetensorsHeader& header() const { return header_; }
  // Null when there is no such tensor.
  const SafetensorsEntry* Find(const std::string& name) const;

  // Reads bytes [offset, offset + size) of a tensor. DATA_LOSS, reason INVALID_SAFETENSORS, when
  // the file has become shorter.
  absl::Status Read(const SafetensorsEntry& entry, uint64_t offset, size_t size, void* out) const;

 private:
  SafetensorsFile(int fd, std::string path) : fd_(fd), path_(std::move(path)) {}
  absl::Status ReadHeader();
  absl::Status ReadAt(uint64_t position, size_t size, void* out) const;

  int fd_;
  std::string path_;
  uint64_t data_start_ = 0;
  SafetensorsHeader header_;
  std::map<std::string, size_t> by_name_;
};

// The tensors of a folder: model.safetensors, or the shards that model.safetensors.index.json
// names.
class SafetensorsFolder {
 public:
  struct Location {
    const SafetensorsFile* file = nullptr;
    const SafetensorsEntry* entry = nullptr;
  };

  // True when the folder holds one of the two.
  static bool Exists(const std::string& directory);
  // Links must stay below `root` (CheckUnder). NOT_FOUND, reason MODEL_WITHOUT_WEIGHTS, when it
  // holds neither. INVALID_ARGUMENT, reason INVALID_SAFETENSORS, for an index that is malformed,
  // names a file outside the folder, or disagrees with its shards. An index that names a missing
  // shard is NOT_FOUND.
  static absl::StatusOr<SafetensorsFolder> Open(const std::string& directory,
                                                const std::string& root = "");

  const std::map<std::string, Location>& tensors() const { return tensors_; }

 private:
  absl::Status AddShards(const std::string& directory, const std::string& root);

  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::map<std::string, Location> tensors_;
};

}  // namespace halfstep
