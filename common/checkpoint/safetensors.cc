// SPDX-License-Identifier: Apache-2.0
// Files and folders of safetensors.
#include "common/checkpoint/safetensors.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/error_reason.h"
#include "common/base/file.h"
#include "common/base/json.h"
#include "common/base/status_macros.h"
#include "nlohmann/json.hpp"

namespace halfstep {
namespace {

constexpr char kSingleFile[] = "/model.safetensors";
constexpr char kIndexFile[] = "/model.safetensors.index.json";
constexpr size_t kMaxIndexBytes = size_t{64} << 20;

bool FileExists(const std::string& path) { return access(path.c_str(), F_OK) == 0; }

// A name without folders, so that an index cannot lead out of its own.
bool IsPlainName(const std::string& name) {
  return !name.empty() && name != "." && name != ".." && name.find('/') == std::string::npos &&
         name.find('\0') == std::string::npos;
}

}  // namespace

absl::StatusOr<std::unique_ptr<SafetensorsFile>> SafetensorsFile::Open(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return FileError(errno, "open", path);
  std::unique_ptr<SafetensorsFile> file(new SafetensorsFile(fd, path));
  HALFSTEP_RETURN_IF_ERROR(file->ReadHeader());
  return file;
}

SafetensorsFile::~SafetensorsFile() { close(fd_); }

absl::Status SafetensorsFile::ReadHeader() {
  const auto malformed = [&](const std::string& what) {
    return Error(absl::StatusCode::kInvalidArgument, "INVALID_SAFETENSORS",
                 absl::StrCat("'", path_, "': ", what));
  };
  struct stat info;
  if (fstat(fd_, &info) != 0) return FileError(errno, "inspect", path_);
  if (!S_ISREG(info.st_mode)) return malformed("is not a regular file");
  const auto size = static_cast<uint64_t>(info.st_size);
  uint8_t prefix[8];
  if (size < sizeof(prefix)) {
    return malformed(absl::StrCat("has ", size, " bytes, too few for a safetensors header"));
  }
  HALFSTEP_RETURN_IF_ERROR(ReadAt(0, sizeof(prefix), prefix));
  uint64_t header_bytes = 0;
  for (int i = 7; i >= 0; --i) header_bytes = header_bytes << 8 | prefix[i];
  if (header_bytes > kMaxSafetensorsHeader) {
    return malformed(absl::StrCat("claims a header of ", header_bytes, " bytes, at most ",
                                  kMaxSafetensorsHeader, " are allowed"));
  }
  if (header_bytes > size - sizeof(prefix)) {
    return malformed(absl::StrCat("claims a header of ", header_bytes, " bytes but has only ",
                                  size - sizeof(prefix),
                                  " left: it is truncated; copy it again from where it came"));
  }
  std::string json(header_bytes, '\0');
  HALFSTEP_RETURN_IF_ERROR(ReadAt(sizeof(prefix), header_bytes, json.data()));
  data_start_ = sizeof(prefix) + header_bytes;
  HALFSTEP_ASSIGN_OR_RETURN(header_, ParseSafetensorsHeader(json, size - data_start_, path_));
  for (size_t i = 0; i < header_.entries.size(); ++i) by_name_[header_.entries[i].name] = i;
  return absl::OkStatus();
}

const SafetensorsEntry* SafetensorsFile::Find(const std::string& name) const {
  const auto it = by_name_.find(name);
  return it == by_name_.end() ? nullptr : &header_.entries[it->second];
}

absl::Status SafetensorsFile::Read(const SafetensorsEntry& entry, uint64_t offset, size_t size,
                                   void* out) const {
  if (offset > entry.bytes() || size > entry.bytes() - offset) {
    return absl::OutOfRangeError(
        absl::StrCat("'", path_, "': read beyond tensor '", entry.name, "'"));
  }
  return ReadAt(data_start_ + entry.begin + offset, size, out);
}

absl::Status SafetensorsFile::ReadAt(uint64_t position, size_t size, void* out) const {
  auto* next = static_cast<char*>(out);
  while (size > 0) {
    const ssize_t count = pread(fd_, next, size, static_cast<off_t>(position));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return FileError(errno, "read", path_);
    if (count == 0) {
      return Error(absl::StatusCode::kDataLoss, "INVALID_SAFETENSORS",
                   absl::StrCat("'", path_, "': the file became shorter"));
    }
    next += count;
    position += static_cast<uint64_t>(count);
    size -= static_cast<size_t>(count);
  }
  return absl::OkStatus();
}

bool SafetensorsFolder::Exists(const std::string& directory) {
  return FileExists(directory + kSingleFile) || FileExists(directory + kIndexFile);
}

absl::StatusOr<SafetensorsFolder> SafetensorsFolder::Open(const std::string& directory,
                                                          const std::string& root) {
  SafetensorsFolder folder;
  if (FileExists(directory + kSingleFile)) {
    HALFSTEP_RETURN_IF_ERROR(CheckUnder(root, directory + kSingleFile));
    HALFSTEP_ASSIGN_OR_RETURN(auto file, SafetensorsFile::Open(directory + kSingleFile));
    for (const SafetensorsEntry& entry : file->header().entries) {
      folder.tensors_[entry.name] = {file.get(), &entry};
    }
    folder.files_.push_back(std::move(file));
    return folder;
  }
  if (!FileExists(directory + kIndexFile)) {
    return Error(absl::StatusCode::kNotFound, "MODEL_WITHOUT_WEIGHTS",
                 absl::StrCat("'", directory,
                              "' holds neither model.safetensors nor "
                              "model.safetensors.index.json"));
  }
  HALFSTEP_RETURN_IF_ERROR(folder.AddShards(directory, root));
  return folder;
}

absl::Status SafetensorsFolder::AddShards(const std::string& directory, const std::string& root) {
  const std::string index_path = directory + kIndexFile;
  const auto malformed = [&](const std::string& what) {
    return Error(absl::StatusCode::kInvalidArgument, "INVALID_SAFETENSORS",
                 absl::StrCat("'", index_path, "': ", what));
  };
  HALFSTEP_RETURN_IF_ERROR(CheckUnder(root, index_path));
  HALFSTEP_ASSIGN_OR_RETURN(const std::string text, ReadFile(index_path, kMaxIndexBytes));
  const absl::StatusOr<nlohmann::json> json = ParseJson(text);
  if (!json.ok()) return malformed(std::string(json.status().message()));
  if (!json->is_object()) return malformed("is not a JSON object");
  const auto map = json->find("weight_map");
  if (map == json->end() || !map->is_object()) return malformed("has no weight_map");

  std::map<std::string, std::set<std::string>> by_file;
  for (const auto& [tensor, file] : map->items()) {
    if (!file.is_string() || !IsPlainName(file.get<std::string>())) {
      return malformed(absl::StrCat("places tensor '", tensor,
                                    "' in something that is not a file of this folder"));
    }
    by_file[file.get<std::string>()].insert(tensor);
  }
  for (const auto& [name, tensors] : by_file) {
    HALFSTEP_RETURN_IF_ERROR(CheckUnder(root, directory + "/" + name));
    HALFSTEP_ASSIGN_OR_RETURN(auto file, SafetensorsFile::Open(directory + "/" + name));
    for (const std::string& tensor : tensors) {
      const SafetensorsEntry* entry = file->Find(tensor);
      if (entry == nullptr) {
        return malformed(
            absl::StrCat("places tensor '", tensor, "' in ", name, ", which does not hold it"));
      }
      tensors_[tensor] = {file.get(), entry};
    }
    for (const SafetensorsEntry& entry : file->header().entries) {
      if (tensors.count(entry.name) == 0) {
        return malformed(
            absl::StrCat("does not place tensor '", entry.name, "' in ", name, ", which holds it"));
      }
    }
    files_.push_back(std::move(file));
  }
  return absl::OkStatus();
}

}  // namespace halfstep
