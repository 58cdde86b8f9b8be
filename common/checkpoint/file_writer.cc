// SPDX-License-Identifier: Apache-2.0
#include "common/checkpoint/file_writer.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "common/base/file.h"
#include "kernels/check.h"

namespace halfstep {

absl::StatusOr<FileWriter> FileWriter::Create(const std::string& path) {
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (fd < 0) return FileError(errno, "create", path);
  return FileWriter(fd, path);
}

FileWriter::FileWriter(int fd, std::string path) : fd_(fd), path_(std::move(path)) {}

FileWriter::FileWriter(FileWriter&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)),
      path_(std::move(other.path_)),
      bytes_(other.bytes_),
      digester_(std::move(other.digester_)) {}

FileWriter::~FileWriter() {
  if (fd_ >= 0) close(fd_);
}

absl::Status FileWriter::Append(const void* data, size_t size) {
  HALFSTEP_CHECK_GE(fd_, 0);
  const char* next = static_cast<const char*>(data);
  size_t left = size;
  while (left > 0) {
    const ssize_t written = write(fd_, next, left);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return FileError(errno, "write", path_);
    next += written;
    left -= static_cast<size_t>(written);
  }
  digester_.Update(data, size);
  bytes_ += size;
  return absl::OkStatus();
}

absl::Status FileWriter::Finish() {
  HALFSTEP_CHECK_GE(fd_, 0);
  absl::Status status;
  if (fsync(fd_) != 0) status = FileError(errno, "sync", path_);
  if (close(std::exchange(fd_, -1)) != 0 && status.ok()) status = FileError(errno, "close", path_);
  return status;
}

}  // namespace halfstep
