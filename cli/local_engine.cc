// SPDX-License-Identifier: Apache-2.0
#include "cli/local_engine.h"

#include <algorithm>
#include <new>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/error_reason.h"
#include "common/base/file.h"
#include "common/base/status_macros.h"
#include "kernels/thread_pool.h"
#include "kernels/workspace.h"

namespace halfstep {
namespace {

constexpr size_t kMaxTokenizerBytes = size_t{64} << 20;
constexpr int64_t kMaxSequences = 256;

}  // namespace

absl::StatusOr<LocalModel> OpenLocalModel(const std::string& directory) {
  LocalModel model;
  HALFSTEP_ASSIGN_OR_RETURN(model.folder, OpenHuggingFaceModel(directory));
  if (!model.folder.has_weights) {
    return Error(absl::StatusCode::kInvalidArgument, "MODEL_WITHOUT_WEIGHTS",
                 absl::StrCat(directory, " has no safetensors to generate with"));
  }
  const std::string path = directory + "/tokenizer.json";
  HALFSTEP_ASSIGN_OR_RETURN(const std::string tokenizer, ReadFile(path, kMaxTokenizerBytes));
  HALFSTEP_ASSIGN_OR_RETURN(model.tokenizer, Tokenizer::FromJson(tokenizer, path));
  return model;
}

absl::StatusOr<std::shared_ptr<const ModelWeights>> LoadLocalWeights(const LocalModel& model,
                                                                     DType dtype,
                                                                     int64_t max_sequence_tokens,
                                                                     int threads) {
  try {
    auto weights = std::make_shared<ModelWeights>(model.folder.config, model.folder.layout, dtype,
                                                  max_sequence_tokens);
    HALFSTEP_RETURN_IF_ERROR(LoadHuggingFaceWeights(model.folder, &weights->parameters()));
    Workspace workspace;
    ThreadPool pool(threads);
    ExecContext ctx;
    ctx.workspace = &workspace;
    ctx.threads = &pool;
    weights->Pack(ctx);
    return weights;
  } catch (const std::bad_alloc&) {
    return OutOfMemory(model, dtype);
  }
}

int ThreadsOrAll(int threads) {
  return threads > 0 ? threads
                     : static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
}

absl::Status OutOfMemory(const LocalModel& model, DType dtype) {
  return Error(absl::StatusCode::kResourceExhausted, "OUT_OF_MEMORY",
               absl::StrCat("not enough memory for the ", model.folder.layout->parameter_count(),
                            " parameters of ", model.folder.directory, " in ", Name(dtype)));
}

absl::StatusOr<std::unique_ptr<Engine>> StartLocalEngine(const LocalModel& model,
                                                         const LocalEngineOptions& options) {
  EngineOptions engine_options;
  engine_options.config = model.folder.config;
  engine_options.dtype = options.dtype;
  engine_options.fp32 = options.fp32;
  engine_options.profile = options.profile;
  engine_options.max_sequence_tokens = options.max_sequence_tokens;
  engine_options.max_sequences = std::min(options.samples, kMaxSequences);
  engine_options.max_outstanding = options.samples;
  engine_options.threads = ThreadsOrAll(options.threads);
  engine_options.token_bytes = [tokenizer = model.tokenizer](int32_t token) -> std::string_view {
    return tokenizer->BytesOf(token);
  };
  HALFSTEP_ASSIGN_OR_RETURN(
      auto weights,
      LoadLocalWeights(model, options.dtype, options.max_sequence_tokens, engine_options.threads));
  try {
    HALFSTEP_ASSIGN_OR_RETURN(auto engine, Engine::Create(std::move(engine_options)));
    engine->SetWeights(std::move(weights), kLocalVersion, [](const absl::Status&) {});
    return engine;
  } catch (const std::bad_alloc&) {
    return OutOfMemory(model, options.dtype);
  }
}

}  // namespace halfstep
