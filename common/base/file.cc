// SPDX-License-Identifier: Apache-2.0
// File access by system calls: streams hide errors and cannot sync.
#include "common/base/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/error_reason.h"
#include "common/base/random_id.h"
#include "common/base/status_macros.h"

namespace halfstep {
namespace {

namespace fs = std::filesystem;

absl::Status WriteAll(int fd, const std::string& contents, const std::string& path) {
  size_t done = 0;
  while (done < contents.size()) {
    const ssize_t written = write(fd, contents.data() + done, contents.size() - done);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return FileError(errno, "write", path);
    done += static_cast<size_t>(written);
  }
  return absl::OkStatus();
}

// Writes, syncs and closes; the file exists afterwards even when that failed.
absl::Status WriteAndSync(int fd, const std::string& contents, const std::string& path) {
  absl::Status status = WriteAll(fd, contents, path);
  if (status.ok() && fsync(fd) != 0) status = FileError(errno, "sync", path);
  if (close(fd) != 0 && status.ok()) status = FileError(errno, "close", path);
  return status;
}

std::string FolderOf(const std::string& path) {
  const std::string folder = fs::path(path).parent_path().string();
  return folder.empty() ? "." : folder;
}

absl::Status OutsideRoot(const std::string& root, const std::string& path, const char* why) {
  return Error(absl::StatusCode::kPermissionDenied, "PATH_OUTSIDE_ROOT",
               absl::StrCat("path '", path, "' ", why, "; give a path below '", root, "'"));
}

}  // namespace

absl::Status FileError(int error_number, const std::string& action, const std::string& path) {
  const std::string message =
      absl::StrCat("cannot ", action, " '", path, "': ", std::strerror(error_number));
  if (error_number == ENOSPC || error_number == EDQUOT) {
    return Error(absl::StatusCode::kResourceExhausted, "DISK_FULL", message);
  }
  return Error(absl::ErrnoToStatusCode(error_number),
               error_number == ENOENT ? "FILE_NOT_FOUND" : "FILE_ERROR", message);
}

absl::StatusOr<std::string> ReadFile(const std::string& path, size_t max_bytes) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return FileError(errno, "open", path);
  const auto closer = absl::MakeCleanup([fd] { close(fd); });
  struct stat info;
  if (fstat(fd, &info) != 0) return FileError(errno, "inspect", path);
  if (!S_ISREG(info.st_mode)) {
    return Error(absl::StatusCode::kInvalidArgument, "FILE_ERROR",
                 absl::StrCat("'", path, "' is not a regular file"));
  }
  std::string contents;
  const size_t size = static_cast<size_t>(info.st_size);
  contents.resize(std::min(size, max_bytes) + 1);  // one more shows that the file is longer
  size_t done = 0;
  while (done <= max_bytes) {
    if (done == contents.size()) contents.resize(std::min(2 * done, max_bytes + 1));
    const ssize_t count = read(fd, contents.data() + done, contents.size() - done);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return FileError(errno, "read", path);
    if (count == 0) break;
    done += static_cast<size_t>(count);
  }
  if (done > max_bytes) {
    return Error(absl::StatusCode::kInvalidArgument, "FILE_TOO_LARGE",
                 absl::StrCat("'", path, "' is larger than the ", max_bytes, " bytes allowed"));
  }
  contents.resize(done);
  return contents;
}

absl::Status WriteFileAtomic(const std::string& path, const std::string& contents) {
  const std::string temporary = absl::StrCat(path, ".tmp.", RandomUuid());
  const int fd = open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (fd < 0) return FileError(errno, "create", temporary);
  absl::Status status = WriteAndSync(fd, contents, temporary);
  if (status.ok() && rename(temporary.c_str(), path.c_str()) != 0) {
    status = FileError(errno, "rename to", path);
  }
  if (!status.ok()) {
    unlink(temporary.c_str());
    return status;
  }
  return SyncPath(FolderOf(path));
}

absl::Status AppendLine(const std::string& path, const std::string& line) {
  struct stat info;
  const bool existed = stat(path.c_str(), &info) == 0;
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (fd < 0) return FileError(errno, "open", path);
  const absl::Status status = WriteAndSync(fd, line + "\n", path);
  if (!status.ok()) {
    // The part that a full disk took would join the next line.
    const bool undone =
        (existed ? truncate(path.c_str(), info.st_size) : unlink(path.c_str())) == 0;
    if (undone) return status;
    return WithContext(status,
                       std::string(FileError(errno, "take a torn line out of", path).message()));
  }
  return existed ? absl::OkStatus() : SyncPath(FolderOf(path));
}

absl::Status AppendLines(const std::string& path, const std::vector<std::string>& lines) {
  return lines.empty() ? absl::OkStatus() : AppendLine(path, absl::StrJoin(lines, "\n"));
}

absl::Status SyncPath(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return FileError(errno, "open", path);
  absl::Status status;
  if (fsync(fd) != 0) status = FileError(errno, "sync", path);
  close(fd);
  return status;
}

absl::StatusOr<std::string> ResolveUnder(const std::string& root, const std::string& path) {
  std::error_code error;
  const fs::path real_root = fs::canonical(root, error);
  if (error) return FileError(error.value(), "resolve root", root);
  for (const fs::path& part : fs::path(path)) {
    if (part == "..") return OutsideRoot(root, path, "holds '..'");
  }
  const fs::path resolved = fs::weakly_canonical(real_root / path, error);
  if (error) return FileError(error.value(), "resolve", path);
  const auto [root_end, rest] =
      std::mismatch(real_root.begin(), real_root.end(), resolved.begin(), resolved.end());
  if (root_end != real_root.end()) return OutsideRoot(root, path, "lies outside the root");
  // weakly_canonical leaves what follows a dangling link as written, link included.
  for (fs::path part = resolved; part != real_root; part = part.parent_path()) {
    if (fs::is_symlink(fs::symlink_status(part, error))) {
      return OutsideRoot(root, path, "goes through a link that leads nowhere");
    }
  }
  std::string result = resolved.string();
  if (result.size() > 1 && result.back() == '/') result.pop_back();
  return result;
}

absl::Status CheckUnder(const std::string& root, const std::string& path) {
  return root.empty() ? absl::OkStatus() : ResolveUnder(root, path).status();
}

}  // namespace halfstep
