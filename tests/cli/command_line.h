// SPDX-License-Identifier: Apache-2.0
// Runs the real binaries in a folder of the test's own.
#pragma once

#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdlib>
#include <fstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "tests/testing/temp_dir.h"

namespace halfstep {

class CommandLine : public ::testing::Test {
 protected:
  struct Result {
    int exit_code = -1;
    std::string out;
    std::string err;
  };

  static std::string Slurp(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }

  // Of the build.
  static std::string Binary(const std::string& name) {
    const char* build = std::getenv("HALFSTEP_BINARY_DIR");
    return absl::StrCat(build == nullptr ? "." : build, "/bin/", name);
  }

  // A shell command, run in the test's folder.
  Result RunShell(const std::string& command) {
    const int status = std::system(
        absl::StrCat("cd '", dir_.path(), "' && { ", command, "; } >out.txt 2>err.txt </dev/null")
            .c_str());
    return {WEXITSTATUS(status), Slurp(dir_ / "out.txt"), Slurp(dir_ / "err.txt")};
  }

  // "halfstep list --page-size 3": the first word is a binary of the build.
  Result Run(const std::string& command) {
    const size_t end = command.find(' ');
    const std::string arguments = end == std::string::npos ? "" : command.substr(end);
    return RunShell(absl::StrCat("'", Binary(command.substr(0, end)), "'", arguments));
  }

  void Write(const std::string& name, const std::string& text) {
    std::ofstream(dir_ / name, std::ios::binary) << text;
  }

  TempDir dir_;
};

}  // namespace halfstep
