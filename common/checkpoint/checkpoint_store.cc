// SPDX-License-Identifier: Apache-2.0
#include "common/checkpoint/checkpoint_store.h"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <functional>
#include <optional>
#include <system_error>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/base/error_reason.h"
#include "common/base/file.h"
#include "common/base/status_macros.h"
#include "kernels/check.h"

namespace halfstep {
namespace {

namespace fs = std::filesystem;

constexpr char kPrefix[] = "step_";
constexpr char kLatest[] = "/LATEST";

std::optional<int64_t> StepOf(const std::string& name) {
  const std::string prefix = kPrefix;
  if (!absl::StartsWith(name, prefix)) return std::nullopt;
  int64_t step = 0;
  const char* begin = name.data() + prefix.size();
  const char* end = name.data() + name.size();
  const auto [stop, error] = std::from_chars(begin, end, step);
  if (error != std::errc() || stop != end || step < 0) return std::nullopt;
  return step;
}

absl::StatusOr<std::vector<std::string>> DirectoryNames(const std::string& root) {
  std::vector<std::string> names;
  std::error_code error;
  fs::directory_iterator it(root, error);
  for (; !error && it != fs::directory_iterator(); it.increment(error)) {
    names.push_back(it->path().filename().string());
  }
  if (error) return FileError(error.value(), "list", root);
  return names;
}

// Moves a checkpoint that does not verify out of the way, keeping it for whoever wants to look.
absl::StatusOr<std::string> SetAside(const std::string& path) {
  std::string target = path + ".corrupt";
  std::error_code error;
  for (int i = 2; fs::exists(target, error); ++i) target = absl::StrCat(path, ".", i, ".corrupt");
  fs::rename(path, target, error);
  if (error) return FileError(error.value(), "rename to", target);
  return target;
}

}  // namespace

absl::StatusOr<CheckpointStore> CheckpointStore::Open(const std::string& root,
                                                      const std::string& incarnation) {
  std::error_code error;
  fs::create_directories(root, error);
  if (error) return FileError(error.value(), "create", root);
  HALFSTEP_RETURN_IF_ERROR(RemoveLeftovers(root));
  return CheckpointStore(root, incarnation);
}

std::string CheckpointStore::PathOf(int64_t step) const {
  return absl::StrCat(root_, "/", kPrefix, step);
}

absl::StatusOr<AtomicDirectoryWriter> CheckpointStore::Begin(int64_t step) const {
  HALFSTEP_CHECK_GE(step, 0);
  return AtomicDirectoryWriter::Create(root_, absl::StrCat(kPrefix, step), incarnation_);
}

absl::Status CheckpointStore::Commit(AtomicDirectoryWriter writer) const {
  HALFSTEP_RETURN_IF_ERROR(writer.Commit());
  return WriteFileAtomic(root_ + kLatest, fs::path(writer.final_path()).filename().string() + "\n");
}

absl::StatusOr<std::vector<int64_t>> CheckpointStore::Steps() const {
  HALFSTEP_ASSIGN_OR_RETURN(const std::vector<std::string> names, DirectoryNames(root_));
  std::vector<int64_t> steps;
  for (const std::string& name : names) {
    if (const auto step = StepOf(name)) steps.push_back(*step);
  }
  std::sort(steps.begin(), steps.end(), std::greater<>());
  return steps;
}

absl::StatusOr<CheckpointStore::Checkpoint> CheckpointStore::FindNewest() const {
  HALFSTEP_ASSIGN_OR_RETURN(const std::vector<int64_t> steps, Steps());
  if (steps.empty()) {
    return absl::NotFoundError(absl::StrCat("'", root_, "' holds no checkpoint"));
  }
  Checkpoint found;
  for (const int64_t step : steps) {
    const absl::Status verified = VerifyDirectory(PathOf(step));
    if (verified.ok()) {
      found.step = step;
      found.path = PathOf(step);
      for (Rejected& rejected : found.rejected) {
        HALFSTEP_ASSIGN_OR_RETURN(rejected.path, SetAside(rejected.path));
      }
      return found;
    }
    if (!absl::IsDataLoss(verified)) return verified;
    found.rejected.push_back({PathOf(step), std::string(verified.message())});
  }
  std::string message = absl::StrCat("no checkpoint in '", root_, "' verifies");
  for (const Rejected& rejected : found.rejected) absl::StrAppend(&message, "; ", rejected.reason);
  absl::StrAppend(&message, "; put back one that does, or remove them all to start over");
  return Error(absl::StatusCode::kDataLoss, "NO_SOUND_CHECKPOINT", message);
}

absl::Status CheckpointStore::Prune(int64_t keep) const {
  HALFSTEP_CHECK_GE(keep, 2);
  HALFSTEP_ASSIGN_OR_RETURN(const std::vector<int64_t> steps, Steps());
  if (static_cast<int64_t>(steps.size()) <= keep) return absl::OkStatus();
  for (int64_t i = 0; i < keep; ++i) HALFSTEP_RETURN_IF_ERROR(VerifyDirectory(PathOf(steps[i])));
  for (size_t i = static_cast<size_t>(keep); i < steps.size(); ++i) {
    // Renamed first: a directory half removed must not look like a checkpoint.
    const std::string doomed = absl::StrCat(PathOf(steps[i]), ".tmp.", incarnation_, ".pruned");
    std::error_code error;
    fs::rename(PathOf(steps[i]), doomed, error);
    if (!error) fs::remove_all(doomed, error);
    if (error) return FileError(error.value(), "remove", PathOf(steps[i]));
  }
  return absl::OkStatus();
}

}  // namespace halfstep
