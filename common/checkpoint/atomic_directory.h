// SPDX-License-Identifier: Apache-2.0
// Directories that exist whole or not at all: written beside their final name with a manifest of
// sizes and digests, synced, then renamed.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/base/digest.h"
#include "common/checkpoint/file_writer.h"

namespace halfstep {

inline constexpr char kManifestName[] = "manifest.json";

// Movable; removes what it wrote unless Commit succeeded. Not thread-safe. A full disk is
// RESOURCE_EXHAUSTED, reason DISK_FULL; whatever fails, a directory of the same name that existed
// before stays as it was.
class AtomicDirectoryWriter {
 public:
  // Makes PARENT/NAME.tmp.INCARNATION/; the parent must exist. `incarnation` tells writers apart.
  static absl::StatusOr<AtomicDirectoryWriter> Create(const std::string& parent,
                                                      const std::string& name,
                                                      const std::string& incarnation);
  AtomicDirectoryWriter(AtomicDirectoryWriter&& other) noexcept;
  AtomicDirectoryWriter& operator=(AtomicDirectoryWriter&&) = delete;
  ~AtomicDirectoryWriter();

  // `name` is relative, each name once; folders in it are made. INVALID_ARGUMENT for a name that
  // leads out.
  absl::Status AddFile(const std::string& name, const std::string& contents);
  // The same, written piece by piece by `write`.
  absl::Status AddFile(const std::string& name,
                       const std::function<absl::Status(FileWriter*)>& write);

  // Writes the manifest, makes everything last, and gives the directory its name, replacing one
  // that has it: a reader, and whoever comes after a crash, finds the old or the new one. (Where
  // the file system cannot exchange two names, only after RemoveLeftovers.) After an error the
  // writer can only be destroyed.
  absl::Status Commit();

  // Where the directory is, or will be after Commit.
  const std::string& final_path() const { return final_path_; }

 private:
  struct ManifestEntry {
    std::string name;
    uint64_t bytes;
    Digest digest;
  };
  AtomicDirectoryWriter(std::string parent, std::string final_path, std::string temporary)
      : parent_(std::move(parent)),
        final_path_(std::move(final_path)),
        temporary_(std::move(temporary)) {}

  std::string parent_;
  std::string final_path_;
  std::string temporary_;  // empty once renamed or moved from
  std::vector<ManifestEntry> entries_;
};

// Checks every file that the manifest lists by size and digest. NOT_FOUND when there is no such
// directory; DATA_LOSS, naming the file, for anything that does not match.
absl::Status VerifyDirectory(const std::string& path);

// Cleans up in `parent` after writers that died: removes what they had not committed, and brings
// back a directory that was being replaced and has no successor. With a `name`, only what belongs
// to the directory of that name. Nobody may be writing there.
absl::Status RemoveLeftovers(const std::string& parent, const std::string& name = "");

// Whether `name` is that of a directory somebody was still writing.
bool IsTemporaryName(const std::string& name);

}  // namespace halfstep
