// SPDX-License-Identifier: Apache-2.0
#include "rollout_server/model_bundle.h"

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/weight_sync/model_files.h"

namespace halfstep {
namespace {

const BundleFile* Find(const std::vector<BundleFile>& files, const std::string& name) {
  for (const BundleFile& file : files) {
    if (file.name == name) return &file;
  }
  return nullptr;
}

absl::StatusOr<const BundleFile*> Require(const std::vector<BundleFile>& files,
                                          const std::string& name) {
  const BundleFile* file = Find(files, name);
  if (file == nullptr) {
    return absl::NotFoundError(absl::StrCat("the learner sent no ", name));
  }
  return file;
}

}  // namespace

std::string BundleDigest(const std::vector<BundleFile>& files) {
  ModelFilesDigester digester;
  for (const BundleFile& file : files) digester.Add(file.name, file.contents);
  return digester.Finish();
}

absl::StatusOr<std::shared_ptr<const ModelBundle>> ParseModelBundle(
    const std::vector<BundleFile>& files) {
  HALFSTEP_ASSIGN_OR_RETURN(const BundleFile* config, Require(files, "config.json"));
  HALFSTEP_ASSIGN_OR_RETURN(const BundleFile* tokenizer, Require(files, "tokenizer.json"));
  auto bundle = std::make_shared<ModelBundle>();
  bundle->digest = BundleDigest(files);
  HALFSTEP_ASSIGN_OR_RETURN(bundle->config,
                            ParseModelConfig(config->contents, "config.json of the learner"));
  if (const BundleFile* generation = Find(files, "generation_config.json")) {
    HALFSTEP_RETURN_IF_ERROR(MergeGenerationConfig(
        generation->contents, "generation_config.json of the learner", &bundle->config));
  }
  bundle->layout = std::make_shared<const ParameterLayout>(bundle->config);
  HALFSTEP_ASSIGN_OR_RETURN(
      bundle->tokenizer, Tokenizer::FromJson(tokenizer->contents, "tokenizer.json of the learner"));
  return bundle;
}

}  // namespace halfstep
