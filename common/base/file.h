// SPDX-License-Identifier: Apache-2.0
// Reading with a limit, writing durably, and keeping paths below a root. Errors name the path and
// what the system says, and carry a reason: FILE_NOT_FOUND; DISK_FULL with RESOURCE_EXHAUSTED;
// FILE_ERROR for all else.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace halfstep {

// An absl::Status for an errno of `action` ("open", "write") on `path`.
absl::Status FileError(int error_number, const std::string& action, const std::string& path);

// The whole file. NOT_FOUND when there is none; INVALID_ARGUMENT (reason FILE_TOO_LARGE) above
// `max_bytes`, or when it is not a regular file.
absl::StatusOr<std::string> ReadFile(const std::string& path, size_t max_bytes);

// Replaces the file at once: readers see the old or the new contents, also after a power cut
// (temporary file, fsync, rename, fsync of the folder).
absl::Status WriteFileAtomic(const std::string& path, const std::string& contents);

// Appends `line` and a newline, durable on return; creates the file. `line` holds no newline. When
// it fails, the file holds whole lines only, as before. For one writer at a time.
absl::Status AppendLine(const std::string& path, const std::string& line);
// The same for several lines at once.
absl::Status AppendLines(const std::string& path, const std::vector<std::string>& lines);

// fsync of a file, or of a folder so that names made or renamed in it last.
absl::Status SyncPath(const std::string& path);

// The real absolute path of `path`, which is relative to `root` or absolute below it and need not
// exist. PERMISSION_DENIED (reason PATH_OUTSIDE_ROOT) for "..", and for links that lead out of the
// root.
absl::StatusOr<std::string> ResolveUnder(const std::string& root, const std::string& path);

// Whether `path`, which is absolute, may be opened for somebody who may see what is below `root`:
// OK when its links stay there, else the error of ResolveUnder. An empty root allows everything.
absl::Status CheckUnder(const std::string& root, const std::string& path);

}  // namespace halfstep
