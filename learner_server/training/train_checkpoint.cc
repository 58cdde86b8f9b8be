// SPDX-License-Identifier: Apache-2.0
#include "learner_server/training/train_checkpoint.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/base/build_info.h"
#include "common/base/error_reason.h"
#include "common/base/file.h"
#include "common/base/json.h"
#include "common/base/status_macros.h"
#include "common/checkpoint/hugging_face.h"
#include "common/checkpoint/safetensors.h"
#include "common/checkpoint/safetensors_writer.h"
#include "kernels/check.h"
#include "kernels/host_copy.h"
#include "kernels/ops/elementwise.h"
#include "learner_server/training/train_step.h"

namespace halfstep {
namespace {

using Json = nlohmann::json;

constexpr int64_t kKeptCheckpoints = 2;
constexpr size_t kMaxTrainerJson = size_t{256} << 20;
constexpr char kStateFile[] = "state.safetensors";
constexpr char kTrainerFile[] = "trainer.json";
constexpr char kWeightsPrefix[] = "weights_";
constexpr char kSafetensorsSuffix[] = ".safetensors";

struct NamedBuffer {
  const char* name;
  ParameterBuffer* buffer;
};

std::vector<NamedBuffer> BuffersOf(TrainState& state) {
  return {{"master", &state.master},
          {"first_moment", &state.first_moment},
          {"second_moment", &state.second_moment}};
}

// Two layouts with one digest put every parameter in the same place.
std::string LayoutDigest(const ParameterLayout& layout) {
  Digester digester;
  for (const ParameterSpec& spec : layout.specs()) {
    digester.Update(spec.name);
    digester.UpdateInteger(static_cast<uint64_t>(spec.offset));
    digester.UpdateInteger(static_cast<uint64_t>(spec.shape.elements()));
  }
  return digester.Finish().Hex();
}

Json ScalerToJson(const LossScalerState& scaler) {
  return {{"scale", scaler.scale},
          {"good", scaler.good},
          {"hysteresis_left", scaler.hysteresis_left},
          {"skips_in_row", scaler.skips_in_row},
          {"applied_steps", scaler.applied_steps},
          {"skipped_steps", scaler.skipped_steps},
          {"window", scaler.window}};
}

LossScalerState ScalerFromJson(const Json& json) {
  LossScalerState scaler;
  json.at("scale").get_to(scaler.scale);
  json.at("good").get_to(scaler.good);
  json.at("hysteresis_left").get_to(scaler.hysteresis_left);
  json.at("skips_in_row").get_to(scaler.skips_in_row);
  json.at("applied_steps").get_to(scaler.applied_steps);
  json.at("skipped_steps").get_to(scaler.skipped_steps);
  json.at("window").get_to(scaler.window);
  return scaler;
}

SafetensorsSource FlatSource(const std::string& name, ConstTensor values) {
  return {name, values.dtype(), {values.elements()}, [values](void* out) {
            std::memcpy(out, HostCopy(values).view().data(), values.bytes());
          }};
}

absl::Status AddState(const TrainState& state, AtomicDirectoryWriter* out) {
  return out->AddFile(kStateFile, [&state](FileWriter* file) {
    return WriteSafetensors({FlatSource("master", state.master.flat()),
                             FlatSource("first_moment", state.first_moment.flat()),
                             FlatSource("second_moment", state.second_moment.flat())},
                            {}, file);
  });
}

absl::Status AddTrainerJson(const CheckpointContents& contents, AtomicDirectoryWriter* out) {
  const TrainState& state = *contents.state;
  const Json json{{"build", BuildId()},
                  {"layout", LayoutDigest(state.layout())},
                  {"loss_scaler", ScalerToJson(state.scaler.state())},
                  {"optimizer_steps", state.optimizer_steps},
                  {"progress", Json::parse(ToJson(*contents.progress))}};
  return out->AddFile(kTrainerFile, json.dump(2) + "\n");
}

// Everything but the RoPE table, which follows from the configuration.
absl::Status AddWeightSet(const WeightSet& weights, AtomicDirectoryWriter* out) {
  std::vector<SafetensorsSource> sources;
  const uint8_t* bytes = weights.bytes().data();
  for (const TensorManifest& tensor : weights.manifest().tensors) {
    if (tensor.name != kRopeTableName) {
      const uint64_t size = tensor.bytes;
      sources.push_back({tensor.name, tensor.dtype, tensor.shape,
                         [bytes, size](void* to) { std::memcpy(to, bytes, size); }});
    }
    bytes += tensor.bytes;
  }
  return out->AddFile(absl::StrCat(kWeightsPrefix, weights.manifest().version, kSafetensorsSuffix),
                      [&sources](FileWriter* file) { return WriteSafetensors(sources, {}, file); });
}

absl::Status Mismatch(const std::string& path, const std::string& what) {
  return Error(absl::StatusCode::kDataLoss, "CHECKPOINT_MISMATCH",
               absl::StrCat(path, " does not fit this job: ", what));
}

// Reads one tensor of a known element type and count.
absl::Status ReadInto(const SafetensorsFile& file, const std::string& name, Tensor out) {
  const SafetensorsEntry* entry = file.Find(name);
  if (entry == nullptr || entry->dtype != SafetensorsName(out.dtype()) ||
      entry->bytes() != out.bytes()) {
    return Mismatch(file.path(), absl::StrCat("tensor ", name, " should hold ", out.elements(),
                                              " values of ", Name(out.dtype())));
  }
  if (out.device() == kCpuDevice) return file.Read(*entry, 0, out.bytes(), out.data());
  OwnedTensor host("checkpoint.read", out.dtype(), out.shape());
  HALFSTEP_RETURN_IF_ERROR(file.Read(*entry, 0, out.bytes(), host.view().data()));
  CopyAndWait(host, out);
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<const WeightSet>> ReadWeightSet(const std::string& path,
                                                               uint64_t version,
                                                               const TrainState& state,
                                                               DType dtype) {
  HALFSTEP_ASSIGN_OR_RETURN(const std::unique_ptr<SafetensorsFile> file,
                            SafetensorsFile::Open(path));
  // Casting the published values up and down again changes no bit.
  ParameterBuffer values(state.master.shared_layout(), DType::kFloat32, "older_weights");
  const std::vector<ParameterSpec>& specs = state.layout().specs();
  for (size_t i = 0; i < specs.size(); ++i) {
    OwnedTensor published("older_parameter", dtype, specs[i].shape);
    HALFSTEP_RETURN_IF_ERROR(ReadInto(*file, specs[i].name, published));
    Cast(ExecContext{}, published, Overflow::kInfinity, values.view(static_cast<int>(i)));
  }
  return WeightSet::Create(version, values, dtype, state.weights.rope_table());
}

}  // namespace

absl::Status AddModel(const TrainState& state, const ModelSource& model, const std::string& prefix,
                      AtomicDirectoryWriter* out) {
  SaveHuggingFaceOptions options;
  options.base_directory = model.directory;
  options.root = model.root;
  options.dtype = state.weights.dtype();
  return SaveHuggingFaceModel(state.master, options, prefix, out);
}

absl::Status WriteCheckpoint(const CheckpointStore& store, const CheckpointContents& contents) {
  HALFSTEP_ASSIGN_OR_RETURN(AtomicDirectoryWriter writer, store.Begin(contents.progress->step));
  HALFSTEP_RETURN_IF_ERROR(AddState(*contents.state, &writer));
  HALFSTEP_RETURN_IF_ERROR(AddTrainerJson(contents, &writer));
  HALFSTEP_RETURN_IF_ERROR(writer.AddFile("job.json", contents.job_json));
  for (const std::shared_ptr<const WeightSet>& weights : contents.older_weights) {
    HALFSTEP_RETURN_IF_ERROR(AddWeightSet(*weights, &writer));
  }
  HALFSTEP_RETURN_IF_ERROR(AddModel(*contents.state, contents.model, "model/", &writer));
  HALFSTEP_RETURN_IF_ERROR(store.Commit(std::move(writer)));
  return store.Prune(kKeptCheckpoints);
}

absl::StatusOr<RunProgress> ReadCheckpoint(const ExecContext& ctx, const std::string& path,
                                           const LossScaleOptions& loss_scale, TrainState* state) {
  const std::string trainer_path = path + "/" + kTrainerFile;
  HALFSTEP_ASSIGN_OR_RETURN(const std::string text, ReadFile(trainer_path, kMaxTrainerJson));
  RunProgress progress;
  LossScalerState scaler;
  int64_t optimizer_steps = 0;
  const absl::StatusOr<Json> parsed = ParseJson(text);
  if (!parsed.ok()) return Mismatch(trainer_path, std::string(parsed.status().message()));
  const Json& json = *parsed;
  try {
    if (json.at("layout") != LayoutDigest(state->layout())) {
      return Mismatch(trainer_path, "it was written for a model of another shape");
    }
    HALFSTEP_ASSIGN_OR_RETURN(progress, RunProgressFromJson(json.at("progress").dump()));
    scaler = ScalerFromJson(json.at("loss_scaler"));
    json.at("optimizer_steps").get_to(optimizer_steps);
  } catch (const Json::exception& error) {
    return Mismatch(trainer_path, error.what());
  }
  HALFSTEP_ASSIGN_OR_RETURN(const std::unique_ptr<SafetensorsFile> file,
                            SafetensorsFile::Open(path + "/" + kStateFile));
  for (const NamedBuffer& named : BuffersOf(*state)) {
    HALFSTEP_RETURN_IF_ERROR(ReadInto(*file, named.name, named.buffer->flat()));
  }
  state->scaler = LossScaler(loss_scale, std::move(scaler));
  state->optimizer_steps = optimizer_steps;
  state->RefreshWeights(ctx);
  return progress;
}

absl::StatusOr<std::vector<std::shared_ptr<const WeightSet>>> ReadOlderWeights(
    const std::string& path, const TrainState& state, DType dtype) {
  std::vector<uint64_t> versions;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(path, error)) {
    std::string name = entry.path().filename().string();
    if (!absl::StartsWith(name, kWeightsPrefix) || !absl::EndsWith(name, kSafetensorsSuffix)) {
      continue;
    }
    name = name.substr(std::strlen(kWeightsPrefix));
    name.resize(name.size() - std::strlen(kSafetensorsSuffix));
    uint64_t version = 0;
    if (absl::SimpleAtoi(name, &version)) versions.push_back(version);
  }
  if (error) return FileError(error.value(), "list", path);
  std::sort(versions.begin(), versions.end());
  std::vector<std::shared_ptr<const WeightSet>> older;
  for (const uint64_t version : versions) {
    HALFSTEP_ASSIGN_OR_RETURN(
        std::shared_ptr<const WeightSet> weights,
        ReadWeightSet(absl::StrCat(path, "/", kWeightsPrefix, version, kSafetensorsSuffix), version,
                      state, dtype));
    older.push_back(std::move(weights));
  }
  return older;
}

namespace {

void AddMaster(const TrainState& state, Digester* digester) {
  for (const ParameterBuffer* buffer : {&state.master, &state.first_moment, &state.second_moment}) {
    digester->Update(HostCopy(buffer->flat()).view().data(), buffer->flat().bytes());
  }
}

}  // namespace

std::string MasterDigest(const TrainState& state) {
  Digester digester;
  AddMaster(state, &digester);
  return digester.Finish().Hex();
}

std::string PublishedDigest(const ExecContext& ctx, const TrainState& state,
                            const RunProgress& progress, DType dtype) {
  if (!CheckPublishable(ctx, state.master, dtype).ok()) return "";
  return WeightSet::Create(progress.policy_version, state.master, dtype, state.weights.rope_table())
      ->manifest()
      .manifest_digest;
}

std::string StateDigest(const TrainState& state, const RunProgress& progress) {
  Digester digester;
  AddMaster(state, &digester);
  digester.Update(ScalerToJson(state.scaler.state()).dump());
  digester.UpdateInteger(static_cast<uint64_t>(state.optimizer_steps));
  AddToDigest(progress, &digester);
  return digester.Finish().Hex();
}

}  // namespace halfstep
