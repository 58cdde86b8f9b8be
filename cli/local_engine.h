// SPDX-License-Identifier: Apache-2.0
// A generation engine of this process on the weights of a model folder.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "common/checkpoint/hugging_face.h"
#include "common/tokenizer/tokenizer.h"
#include "rollout_server/generation/engine.h"

namespace halfstep {

struct LocalModel {
  HuggingFaceModel folder;
  std::shared_ptr<const Tokenizer> tokenizer;
};

// Configuration and tokenizer; no weights are read. The errors of OpenHuggingFaceModel and of
// reading the tokenizer; INVALID_ARGUMENT (reason MODEL_WITHOUT_WEIGHTS) for a folder without
// safetensors.
absl::StatusOr<LocalModel> OpenLocalModel(const std::string& directory);

struct LocalEngineOptions {
  DType dtype = DType::kFloat16;
  Fp32Parts fp32;
  Profile profile = Profile::kBitwise;
  int threads = 0;                  // 0: one per core
  int64_t max_sequence_tokens = 0;  // longest prompt plus response
  int64_t samples = 0;              // that will be asked for, all of them together
};

// The version that the weights of a folder get.
inline constexpr uint64_t kLocalVersion = 0;

// The folder's weights in `dtype`, packed; their RoPE table has `max_sequence_tokens` rows. The
// errors of LoadHuggingFaceWeights; RESOURCE_EXHAUSTED (reason OUT_OF_MEMORY) when they do not fit.
absl::StatusOr<std::shared_ptr<const ModelWeights>> LoadLocalWeights(const LocalModel& model,
                                                                     DType dtype,
                                                                     int64_t max_sequence_tokens,
                                                                     int threads);

// `threads`, or one per core where it is 0.
int ThreadsOrAll(int threads);

// RESOURCE_EXHAUSTED, reason OUT_OF_MEMORY: for the parameters in this dtype.
absl::Status OutOfMemory(const LocalModel& model, DType dtype);

// Loads the weights and serves them. The errors of LoadHuggingFaceWeights and Engine::Create.
absl::StatusOr<std::unique_ptr<Engine>> StartLocalEngine(const LocalModel& model,
                                                         const LocalEngineOptions& options);

}  // namespace halfstep
