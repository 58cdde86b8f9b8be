// SPDX-License-Identifier: Apache-2.0
// FileWriter: one file written from front to back, with its size and digest.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/base/digest.h"

namespace halfstep {

// Movable; closes the file when destroyed, without syncing it. Not thread-safe.
class FileWriter {
 public:
  // Creates `path`, which must not exist.
  static absl::StatusOr<FileWriter> Create(const std::string& path);
  FileWriter(FileWriter&& other) noexcept;
  FileWriter& operator=(FileWriter&&) = delete;
  ~FileWriter();

  // After an error the file is of no use. A full disk is RESOURCE_EXHAUSTED, reason DISK_FULL.
  absl::Status Append(const void* data, size_t size);
  absl::Status Append(const std::string& bytes) { return Append(bytes.data(), bytes.size()); }

  // fsync and close: the contents last. Nothing may follow.
  absl::Status Finish();

  uint64_t bytes() const { return bytes_; }
  // Of everything appended.
  Digest digest() const { return digester_.Finish(); }

 private:
  FileWriter(int fd, std::string path);

  int fd_;
  std::string path_;
  uint64_t bytes_ = 0;
  Digester digester_;
};

}  // namespace halfstep
