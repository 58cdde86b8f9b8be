// SPDX-License-Identifier: Apache-2.0
#include "common/checkpoint/atomic_directory.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <set>
#include <system_error>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/base/file.h"
#include "common/base/json.h"
#include "common/base/status_macros.h"
#include "nlohmann/json.hpp"

namespace halfstep {
namespace {

namespace fs = std::filesystem;

constexpr char kTemporaryMark[] = ".tmp.";
constexpr char kReplacedMark[] = ".replaced";
constexpr size_t kMaxManifestBytes = size_t{16} << 20;
constexpr int kFormatVersion = 1;

bool StaysInside(const std::string& name) {
  if (name.empty() || name.front() == '/' || name.back() == '/') return false;
  for (const auto& part : absl::StrSplit(name, '/')) {
    if (part.empty() || part == "." || part == "..") return false;
  }
  return true;
}

absl::Status SyncTree(const std::string& root) {
  std::error_code error;
  fs::recursive_directory_iterator it(root, error);
  for (; !error && it != fs::recursive_directory_iterator(); it.increment(error)) {
    if (it->is_directory(error)) HALFSTEP_RETURN_IF_ERROR(SyncPath(it->path().string()));
  }
  if (error) return FileError(error.value(), "list", root);
  return SyncPath(root);
}

absl::Status Rename(const std::string& from, const std::string& to) {
  if (rename(from.c_str(), to.c_str()) != 0) return FileError(errno, "rename to", to);
  return absl::OkStatus();
}

// Gives each of two directories the other's name, in one step; false where the file system cannot.
bool Exchange(const std::string& a, const std::string& b) {
  return renameat2(AT_FDCWD, a.c_str(), AT_FDCWD, b.c_str(), RENAME_EXCHANGE) == 0;
}

// Where the file system cannot exchange: the old directory steps aside, and comes back if the
// second rename fails, or by RemoveLeftovers if this process dies between the two.
absl::Status ReplaceInTwoSteps(const std::string& temporary, const std::string& final_path,
                               const std::string& aside) {
  HALFSTEP_RETURN_IF_ERROR(Rename(final_path, aside));
  absl::Status renamed = Rename(temporary, final_path);
  if (!renamed.ok()) renamed.Update(Rename(aside, final_path));
  return renamed;
}

// What a process that died left under the temporary name `path`.
absl::Status RemoveLeftover(const std::string& path) {
  std::error_code error;
  const std::string final_path = path.substr(0, path.rfind(kTemporaryMark));
  if (absl::EndsWith(path, kReplacedMark) && !fs::exists(final_path, error)) {
    return Rename(path, final_path);
  }
  fs::remove_all(path, error);
  return error ? FileError(error.value(), "remove", path) : absl::OkStatus();
}

absl::Status Corrupt(const std::string& path, const std::string& what) {
  return absl::DataLossError(absl::StrCat("'", path, "' ", what));
}

absl::Status VerifyFile(const std::string& path, uint64_t bytes, const Digest& expected) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0 && errno == ENOENT) return Corrupt(path, "is missing");
  if (fd < 0) return FileError(errno, "open", path);
  const auto closer = absl::MakeCleanup([fd] { close(fd); });
  Digester digester;
  uint64_t total = 0;
  std::vector<char> chunk(size_t{1} << 20);
  for (;;) {
    const ssize_t count = read(fd, chunk.data(), chunk.size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return FileError(errno, "read", path);
    if (count == 0) break;
    total += static_cast<uint64_t>(count);
    digester.Update(chunk.data(), static_cast<size_t>(count));
  }
  if (total != bytes) {
    return Corrupt(path, absl::StrCat("has ", total, " bytes, its manifest says ", bytes));
  }
  if (digester.Finish() != expected) return Corrupt(path, "does not have its manifest's digest");
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<AtomicDirectoryWriter> AtomicDirectoryWriter::Create(
    const std::string& parent, const std::string& name, const std::string& incarnation) {
  if (!StaysInside(name) || absl::StrContains(name, '/') || IsTemporaryName(name)) {
    return absl::InvalidArgumentError(absl::StrCat("'", name, "' cannot name a directory here"));
  }
  const std::string final_path = absl::StrCat(parent, "/", name);
  const std::string temporary = absl::StrCat(final_path, kTemporaryMark, incarnation);
  std::error_code error;
  fs::remove_all(temporary, error);  // an earlier attempt of this incarnation
  if (!fs::create_directory(temporary, error)) {
    return FileError(error ? error.value() : EEXIST, "create", temporary);
  }
  return AtomicDirectoryWriter(parent, final_path, temporary);
}

AtomicDirectoryWriter::AtomicDirectoryWriter(AtomicDirectoryWriter&& other) noexcept
    : parent_(std::move(other.parent_)),
      final_path_(std::move(other.final_path_)),
      temporary_(std::exchange(other.temporary_, "")),
      entries_(std::move(other.entries_)) {}

AtomicDirectoryWriter::~AtomicDirectoryWriter() {
  if (temporary_.empty()) return;
  std::error_code ignored;  // what stays is removed as stale at the next start
  fs::remove_all(temporary_, ignored);
}

absl::Status AtomicDirectoryWriter::AddFile(const std::string& name, const std::string& contents) {
  return AddFile(name, [&](FileWriter* file) { return file->Append(contents); });
}

absl::Status AtomicDirectoryWriter::AddFile(const std::string& name,
                                            const std::function<absl::Status(FileWriter*)>& write) {
  if (!StaysInside(name) || name == kManifestName) {
    return absl::InvalidArgumentError(absl::StrCat("'", name, "' cannot name a file here"));
  }
  const fs::path path = fs::path(temporary_) / name;
  std::error_code error;
  fs::create_directories(path.parent_path(), error);
  if (error) return FileError(error.value(), "create", path.parent_path().string());
  HALFSTEP_ASSIGN_OR_RETURN(FileWriter file, FileWriter::Create(path.string()));
  HALFSTEP_RETURN_IF_ERROR(write(&file));
  HALFSTEP_RETURN_IF_ERROR(file.Finish());
  entries_.push_back({name, file.bytes(), file.digest()});
  return absl::OkStatus();
}

absl::Status AtomicDirectoryWriter::Commit() {
  auto files = nlohmann::ordered_json::array();
  for (const ManifestEntry& entry : entries_) {
    files.push_back(
        {{"name", entry.name}, {"bytes", entry.bytes}, {"xxh3_128", entry.digest.Hex()}});
  }
  const nlohmann::ordered_json manifest = {{"format", kFormatVersion}, {"files", files}};
  HALFSTEP_ASSIGN_OR_RETURN(FileWriter file,
                            FileWriter::Create(absl::StrCat(temporary_, "/", kManifestName)));
  HALFSTEP_RETURN_IF_ERROR(file.Append(manifest.dump(2) + "\n"));
  HALFSTEP_RETURN_IF_ERROR(file.Finish());
  HALFSTEP_RETURN_IF_ERROR(SyncTree(temporary_));

  // A directory cannot be renamed over one that holds files, and at no moment may there be none.
  std::error_code error;
  std::string old;  // where the replaced directory is; empty: there was none
  if (!fs::exists(final_path_, error)) {
    HALFSTEP_RETURN_IF_ERROR(Rename(temporary_, final_path_));
  } else if (Exchange(temporary_, final_path_)) {
    old = temporary_;
  } else {
    old = absl::StrCat(temporary_, kReplacedMark);
    HALFSTEP_RETURN_IF_ERROR(ReplaceInTwoSteps(temporary_, final_path_, old));
  }
  temporary_.clear();
  HALFSTEP_RETURN_IF_ERROR(SyncPath(parent_));
  if (!old.empty()) fs::remove_all(old, error);
  return absl::OkStatus();
}

absl::Status VerifyDirectory(const std::string& path) {
  std::error_code error;
  if (!fs::is_directory(path, error)) {
    return absl::NotFoundError(absl::StrCat("there is no directory '", path, "'"));
  }
  const std::string manifest_path = absl::StrCat(path, "/", kManifestName);
  const auto text = ReadFile(manifest_path, kMaxManifestBytes);
  if (absl::IsNotFound(text.status())) return Corrupt(manifest_path, "is missing");
  if (!text.ok()) return text.status();
  const absl::StatusOr<nlohmann::json> json = ParseJson(*text);
  if (!json.ok()) return Corrupt(manifest_path, std::string(json.status().message()));
  const auto format = json->find("format");
  const auto files = json->find("files");
  const bool well_formed = json->is_object() && format != json->end() &&
                           *format == kFormatVersion && files != json->end() && files->is_array();
  if (!well_formed) return Corrupt(manifest_path, "is malformed");
  for (const auto& file : *files) {
    const auto name = file.find("name");
    const auto bytes = file.find("bytes");
    const auto digest = file.find("xxh3_128");
    const bool complete = file.is_object() && name != file.end() && name->is_string() &&
                          bytes != file.end() && bytes->is_number_unsigned() &&
                          digest != file.end() && digest->is_string();
    const auto expected =
        complete ? Digest::FromHex(digest->get<std::string>()) : std::optional<Digest>();
    if (!expected || !StaysInside(name->get<std::string>())) {
      return Corrupt(manifest_path, "is malformed");
    }
    HALFSTEP_RETURN_IF_ERROR(VerifyFile(absl::StrCat(path, "/", name->get<std::string>()),
                                        bytes->get<uint64_t>(), *expected));
  }
  return absl::OkStatus();
}

absl::Status RemoveLeftovers(const std::string& parent, const std::string& name) {
  std::vector<std::string> leftovers;
  std::error_code error;
  fs::directory_iterator it(parent, error);
  for (; !error && it != fs::directory_iterator(); it.increment(error)) {
    const std::string found = it->path().filename().string();
    if (IsTemporaryName(found) &&
        (name.empty() || absl::StartsWith(found, absl::StrCat(name, kTemporaryMark)))) {
      leftovers.push_back(it->path().string());
    }
  }
  if (error) return FileError(error.value(), "list", parent);
  for (const std::string& path : leftovers) HALFSTEP_RETURN_IF_ERROR(RemoveLeftover(path));
  return absl::OkStatus();
}

bool IsTemporaryName(const std::string& name) { return absl::StrContains(name, kTemporaryMark); }

}  // namespace halfstep
