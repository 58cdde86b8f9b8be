// SPDX-License-Identifier: Apache-2.0
// Generator: where responses come from, an engine of this process or a rollout server. The same
// weights, prompt, sampling and seed give the same tokens from both.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "cli/local_engine.h"
#include "common/rpc/channel.h"
#include "common/trajectory/trajectory.h"

namespace halfstep {

struct PromptText {
  std::string text;
  std::string place;  // file and line, "prompts.jsonl:3"; empty for one of the command line
};

// The prompts of a JSON Lines file, from `column`. The errors of ReadJsonl.
absl::StatusOr<std::vector<PromptText>> ReadPromptFile(const std::string& path,
                                                       const std::string& column);

// `status` with the place of the prompt that it is about.
absl::Status AtPrompt(const absl::Status& status, const PromptText& prompt);

struct GenerateOrder {
  std::vector<PromptText> prompts;
  uint32_t samples = 1;     // of each prompt
  SamplingParams sampling;  // max_new_tokens 0: 128, or as many as fit
  uint64_t seed = 1;        // of the first prompt; each further one gets the next
};

// The next tokens of one sample.
struct Piece {
  size_t prompt = 0;
  uint32_t index = 0;  // of the sample
  std::vector<int32_t> tokens;
  std::vector<float> log_probs;
  std::string text;                           // whole code points
  std::optional<FinishReason> finish_reason;  // with the last piece of a sample
};

// Takes pieces on the thread that called Generate; those of one sample come in order.
using OnPiece = std::function<void(const Piece&)>;

class Generator {
 public:
  virtual ~Generator() = default;
  // Generates everything. The first failure, with the prompt's place, ends all; CANCELLED soon
  // after `go_on`, which any thread may ask, says false.
  virtual absl::Status Generate(const GenerateOrder& order, const OnPiece& on_piece,
                                const std::function<bool()>& go_on) = 0;
};

struct LocalGeneratorOptions {
  DType dtype = DType::kFloat16;
  Fp32Parts fp32 = {};
  int threads = 0;  // 0: one per core
  Profile profile = Profile::kBitwise;
};

// Generates with a model folder. Explicit lengths that the model has no positions for are
// INVALID_ARGUMENT.
class LocalGenerator final : public Generator {
 public:
  LocalGenerator(LocalModel model, const LocalGeneratorOptions& options)
      : model_(std::move(model)), options_(options) {}
  absl::Status Generate(const GenerateOrder& order, const OnPiece& on_piece,
                        const std::function<bool()>& go_on) override;

 private:
  const LocalModel model_;
  const LocalGeneratorOptions options_;
};

// Generates with what a rollout server serves. Each prompt is a call; `timeout` is a call's.
class ServerGenerator final : public Generator {
 public:
  ServerGenerator(std::shared_ptr<grpc::Channel> channel, std::string target,
                  absl::Duration timeout)
      : channel_(std::move(channel)), target_(std::move(target)), timeout_(timeout) {}
  absl::Status Generate(const GenerateOrder& order, const OnPiece& on_piece,
                        const std::function<bool()>& go_on) override;

 private:
  const std::shared_ptr<grpc::Channel> channel_;
  const std::string target_;
  const absl::Duration timeout_;
};

}  // namespace halfstep
