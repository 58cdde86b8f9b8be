// SPDX-License-Identifier: Apache-2.0
#include "learner_server/training/run_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <system_error>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "common/base/error_reason.h"
#include "common/base/file.h"
#include "common/base/status_macros.h"

namespace halfstep {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxOwnerBytes = 4096;
constexpr size_t kMaxMetricsBytes = size_t{4} << 30;

std::string OwnerPath(const std::string& path) { return path + "/job_id"; }
std::string LockPath(const std::string& path) { return path + "/lock"; }
std::string MetricsPath(const std::string& path) { return path + "/metrics.jsonl"; }
std::string SamplesPath(const std::string& path) { return path + "/samples.jsonl"; }

absl::StatusOr<int> Lock(const std::string& path) {
  const std::string lock = LockPath(path);
  const int fd = open(lock.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0) return FileError(errno, "open", lock);
  if (flock(fd, LOCK_EX | LOCK_NB) == 0) return fd;
  const int error = errno;
  close(fd);
  if (error != EWOULDBLOCK) return FileError(error, "lock", lock);
  return Error(absl::StatusCode::kFailedPrecondition, "RUN_FOLDER_IN_USE",
               absl::StrCat(path,
                            " is in use by another learner; stop that one or choose another "
                            "output_dir"));
}

struct MetricsLineKind {
  int64_t step = 0;
  bool is_evaluation = false;
};

// Nothing for a line that is not whole.
std::optional<MetricsLineKind> KindOf(const std::string& line) {
  const nlohmann::json json = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object() || !json.contains("step") || !json["step"].is_number_integer()) {
    return std::nullopt;
  }
  return MetricsLineKind{json["step"].get<int64_t>(), json.contains("eval_accuracy")};
}

// The step that a line of samples.jsonl begins with.
std::optional<int64_t> LeadingStep(absl::string_view line) {
  int64_t step = 0;
  if (!absl::ConsumePrefix(&line, "{\"step\":") ||
      !absl::SimpleAtoi(line.substr(0, line.find(',')), &step)) {
    return std::nullopt;
  }
  return step;
}

}  // namespace

absl::Status CheckRunFolder(const std::string& path, const std::string& job_id) {
  std::error_code error;
  if (!fs::exists(path, error)) return absl::OkStatus();
  if (!fs::is_directory(path, error)) {
    return Error(absl::StatusCode::kFailedPrecondition, "OUTPUT_DIR_NOT_EMPTY",
                 absl::StrCat(path, " is not a folder; choose another output_dir"));
  }
  const absl::StatusOr<std::string> owner = ReadFile(OwnerPath(path), kMaxOwnerBytes);
  if (owner.ok() && *owner == job_id) return absl::OkStatus();
  for (const fs::directory_entry& entry : fs::directory_iterator(path, error)) {
    // A learner that died between making the folder and owning it leaves its lock behind.
    if (entry.path().filename() == "lock") continue;
    return Error(absl::StatusCode::kFailedPrecondition, "OUTPUT_DIR_NOT_EMPTY",
                 absl::StrCat(path, " is not empty (",
                              owner.ok() ? absl::StrCat("it belongs to job ", *owner)
                                         : entry.path().filename().string(),
                              "); choose another output_dir or remove it"));
  }
  if (error) return FileError(error.value(), "list", path);
  return absl::OkStatus();
}

absl::Status CheckRunPlace(const std::string& path, const std::string& root,
                           const std::string& state) {
  const auto refused = [&path](const std::string& what, const fs::path& folder) {
    return Error(absl::StatusCode::kFailedPrecondition, "OUTPUT_DIR_NOT_ALLOWED",
                 absl::StrCat(path, " lies in ", folder.string(), ", which is ", what,
                              "; choose another output_dir"));
  };
  std::error_code error;
  const fs::path real_state = state.empty() ? fs::path() : fs::weakly_canonical(state, error);
  if (error) return FileError(error.value(), "resolve", state);
  const fs::path top(root);
  for (fs::path folder(path);; folder = folder.parent_path()) {
    if (!state.empty() && folder == real_state) return refused("the learner's own folder", folder);
    if (folder == top || folder == folder.parent_path()) return absl::OkStatus();
    if (folder != fs::path(path) && fs::exists(OwnerPath(folder.string()), error)) {
      return refused("the run folder of another job", folder);
    }
  }
}

absl::StatusOr<RunFolder> RunFolder::Open(const std::string& path, const std::string& job_id) {
  HALFSTEP_RETURN_IF_ERROR(CheckRunFolder(path, job_id));
  std::error_code error;
  fs::create_directories(path, error);
  if (error) return FileError(error.value(), "make", path);
  HALFSTEP_ASSIGN_OR_RETURN(const int lock, Lock(path));
  RunFolder folder(path, lock);
  // Again under the lock: somebody may have been faster.
  HALFSTEP_RETURN_IF_ERROR(CheckRunFolder(path, job_id));
  HALFSTEP_RETURN_IF_ERROR(WriteFileAtomic(OwnerPath(path), job_id));
  return folder;
}

RunFolder::RunFolder(RunFolder&& other) noexcept
    : path_(std::move(other.path_)), lock_(std::exchange(other.lock_, -1)) {}

RunFolder::~RunFolder() {
  if (lock_ >= 0) close(lock_);
}

absl::Status RunFolder::WriteJob(const std::string& json) const {
  return WriteFileAtomic(path_ + "/job.json", json);
}

absl::Status RunFolder::AppendMetrics(const std::string& line) const {
  return AppendLine(MetricsPath(path_), line);
}

absl::Status RunFolder::CutMetricsAfter(int64_t step, int64_t evaluated_step) const {
  const absl::StatusOr<std::string> contents = ReadFile(MetricsPath(path_), kMaxMetricsBytes);
  if (absl::IsNotFound(contents.status())) return absl::OkStatus();
  HALFSTEP_RETURN_IF_ERROR(contents.status());
  std::string kept;
  for (const std::string& line : std::vector<std::string>(absl::StrSplit(*contents, '\n'))) {
    const std::optional<MetricsLineKind> kind = KindOf(line);
    if (kind && kind->step <= (kind->is_evaluation ? evaluated_step : step)) {
      absl::StrAppend(&kept, line, "\n");
    }
  }
  if (kept == *contents) return absl::OkStatus();
  return WriteFileAtomic(MetricsPath(path_), kept);
}

absl::Status RunFolder::AppendSamples(const std::vector<std::string>& lines) const {
  return AppendLines(SamplesPath(path_), lines);
}

// Steps ascend, so the file is cut where the first line too many begins, and may be of any size.
absl::Status RunFolder::CutSamplesAfter(int64_t step) const {
  const std::string path = SamplesPath(path_);
  std::error_code error;
  const uintmax_t size = fs::file_size(path, error);
  if (error == std::errc::no_such_file_or_directory) return absl::OkStatus();
  if (error) return FileError(error.value(), "inspect", path);
  std::ifstream file(path, std::ios::binary);
  uintmax_t kept = 0;
  for (std::string line; std::getline(file, line) && !file.eof(); kept += line.size() + 1) {
    const std::optional<int64_t> line_step = LeadingStep(line);
    if (!line_step || *line_step > step) break;
  }
  if (file.bad()) return FileError(EIO, "read", path);
  if (kept == size) return absl::OkStatus();
  fs::resize_file(path, kept, error);
  if (error) return FileError(error.value(), "cut", path);
  return SyncPath(path);
}

}  // namespace halfstep
