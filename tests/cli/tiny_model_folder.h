// SPDX-License-Identifier: Apache-2.0
// tests/rollout_server/tiny_model.h's model as a folder of Hugging Face.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <memory>

#include "common/checkpoint/hugging_face.h"
#include "tests/rollout_server/fake_learner.h"
#include "tests/rollout_server/tiny_model.h"
#include "tests/testing/temp_dir.h"

namespace halfstep {

// Makes DIR/model with random weights, in FP16, and DIR/base without any; returns the weights.
inline std::shared_ptr<ModelWeights> WriteTinyModelFolder(const TempDir& dir) {
  auto master = UnpackedTinyWeights(3, DType::kFloat32);
  std::filesystem::create_directories(dir / "base");
  for (const BundleFile& file : TinyModelFiles()) {
    std::ofstream(dir / ("base/" + file.name), std::ios::binary) << file.contents;
  }
  auto writer = AtomicDirectoryWriter::Create(dir.path(), "model", "test");
  EXPECT_TRUE(writer.ok());
  SaveHuggingFaceOptions options;
  options.base_directory = dir / "base";
  EXPECT_TRUE(SaveHuggingFaceModel(master->parameters(), options, "", &*writer).ok());
  EXPECT_TRUE(writer->Commit().ok());
  return master;
}

}  // namespace halfstep
