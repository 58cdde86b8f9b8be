// SPDX-License-Identifier: Apache-2.0
// Checkpoints of a run: what a resumed run needs to go on bit for bit, and the model as a Hugging
// Face folder.
//
//   state.safetensors    master, first_moment, second_moment: the flat FP32 buffers
//   trainer.json         progress, loss scaler, optimizer steps, layout digest, build
//   job.json             the resolved job
//   weights_V.safetensors   one for each older version that a batch in flight may still name
//   model/               the weights in the learner's dtype, with config and tokenizer
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/checkpoint/checkpoint_store.h"
#include "common/weight_sync/weight_set.h"
#include "kernels/exec_context.h"
#include "learner_server/training/run_progress.h"
#include "learner_server/training/train_state.h"

namespace halfstep {

// See SaveHuggingFaceOptions.
struct ModelSource {
  std::string directory;
  std::string root;
};

struct CheckpointContents {
  const TrainState* state = nullptr;
  const RunProgress* progress = nullptr;
  // Published sets other than the newest that are still needed, oldest first.
  std::vector<std::shared_ptr<const WeightSet>> older_weights;
  std::string job_json;
  // The model folder whose configuration and tokenizer files go with the weights, and where its
  // links may lead.
  ModelSource model;
};

// Writes and commits ROOT/step_N, then removes the oldest ones but two. Whatever fails (reason
// DISK_FULL for a full disk), earlier checkpoints stay as they were.
absl::Status WriteCheckpoint(const CheckpointStore& store, const CheckpointContents& contents);

// Adds the model of `state` as a Hugging Face folder below `prefix`.
absl::Status AddModel(const TrainState& state, const ModelSource& model, const std::string& prefix,
                      AtomicDirectoryWriter* out);

// Restores `state` (buffers, scaler, step count, refreshed weights) and returns the progress.
// DATA_LOSS or INVALID_ARGUMENT, naming the file, when it does not fit the state's layout.
absl::StatusOr<RunProgress> ReadCheckpoint(const ExecContext& ctx, const std::string& path,
                                           const LossScaleOptions& loss_scale, TrainState* state);

// The older weight sets of a checkpoint, as they were published in `dtype`, oldest first.
absl::StatusOr<std::vector<std::shared_ptr<const WeightSet>>> ReadOlderWeights(
    const std::string& path, const TrainState& state, DType dtype);

// XXH3-128 of the FP32 master weights and Adam's moments: what an optimizer step changes.
std::string MasterDigest(const TrainState& state);

// The digest of the manifest under which the master would be published in `dtype`; empty where it
// cannot be, because a value is not finite.
std::string PublishedDigest(const ExecContext& ctx, const TrainState& state,
                            const RunProgress& progress, DType dtype);

// XXH3-128, hexadecimal, over master, moments, scaler, optimizer steps and progress: equal for
// equal runs.
std::string StateDigest(const TrainState& state, const RunProgress& progress);

}  // namespace halfstep
