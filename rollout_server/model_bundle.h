// SPDX-License-Identifier: Apache-2.0
// ModelBundle: what a rollout server knows of a model before it has weights, made from the files
// that the learner sends.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/model/model_config.h"
#include "common/model/parameter_layout.h"
#include "common/tokenizer/tokenizer.h"

namespace halfstep {

// A file's name and contents.
struct BundleFile {
  std::string name;
  std::string contents;
};

struct ModelBundle {
  std::string digest;  // of the files, as LoadJob names it
  ModelConfig config;  // with the eos tokens of generation_config.json
  std::shared_ptr<const ParameterLayout> layout;
  std::shared_ptr<const Tokenizer> tokenizer;
};

// The errors of parsing config.json and tokenizer.json; NOT_FOUND when one of them is missing.
// Other files are ignored.
absl::StatusOr<std::shared_ptr<const ModelBundle>> ParseModelBundle(
    const std::vector<BundleFile>& files);

// The digest over `files` as LoadJob names it.
std::string BundleDigest(const std::vector<BundleFile>& files);

}  // namespace halfstep
