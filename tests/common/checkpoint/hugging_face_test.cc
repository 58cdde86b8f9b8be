// SPDX-License-Identifier: Apache-2.0
// Model folders: round trips through every dtype, and every way a folder can contradict its config.
#include "common/checkpoint/hugging_face.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "common/base/error_reason.h"
#include "common/checkpoint/safetensors_writer.h"
#include "common/model/initialize.h"
#include "nlohmann/json.hpp"
#include "tests/common/checkpoint/scratch_directory.h"

namespace halfstep {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Json = nlohmann::json;

Json TinyConfig() {
  return {{"model_type", "qwen3"},
          {"architectures", {"Qwen3ForCausalLM"}},
          {"vocab_size", 20},
          {"hidden_size", 8},
          {"intermediate_size", 12},
          {"num_hidden_layers", 2},
          {"num_attention_heads", 2},
          {"num_key_value_heads", 1},
          {"head_dim", 6},
          {"max_position_embeddings", 64},
          {"rope_theta", 10000.0},
          {"rms_norm_eps", 1e-6},
          {"tie_word_embeddings", true},
          {"eos_token_id", 2},
          {"torch_dtype", "float32"}};
}

class HuggingFaceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    WriteBytes(scratch_ / "config.json", TinyConfig().dump(2));
    WriteBytes(scratch_ / "generation_config.json", R"({"eos_token_id": [2, 3]})");
    WriteBytes(scratch_ / "tokenizer.json", "{\"model\": \"verbatim\"}\n");
    model_ = *OpenHuggingFaceModel(scratch_.path());
    master_ = std::make_unique<ParameterBuffer>(model_.layout, DType::kFloat32, "master");
    InitializeParameters(model_.config, 7, master_.get());
  }

  // A copy of the model with weights in `dtype` at SCRATCH/NAME.
  HuggingFaceModel Save(const std::string& name, DType dtype, uint64_t shard_bytes = 1 << 30) {
    auto writer = AtomicDirectoryWriter::Create(scratch_.path(), name, "i");
    EXPECT_TRUE(writer.ok());
    const absl::Status saved =
        SaveHuggingFaceModel(*master_, {scratch_.path(), dtype, shard_bytes}, "", &*writer);
    EXPECT_TRUE(saved.ok()) << saved;
    EXPECT_TRUE(writer->Commit().ok());
    return *OpenHuggingFaceModel(scratch_ / name);
  }

  using Change = std::function<void(std::vector<SafetensorsSource>*)>;

  // Writes the weights, changed by `change`, and loads them as `target`.
  absl::Status LoadChanged(const Change& change, DType target) {
    std::vector<SafetensorsSource> tensors;
    for (size_t i = 0; i < model_.layout->specs().size(); ++i) {
      for (const HuggingFaceSlice& slice : model_.layout->specs()[i].slices) {
        const ConstTensor rows =
            master_->view(static_cast<int>(i)).Rows(slice.first_row, slice.rows);
        std::vector<int64_t> shape(1, rows.dim(0));
        if (rows.rank() == 2) shape.push_back(rows.dim(1));
        tensors.push_back({slice.name, DType::kFloat32, shape,
                           [rows](void* out) { std::memcpy(out, rows.data(), rows.bytes()); }});
      }
    }
    change(&tensors);
    const std::string path = scratch_ / "model.safetensors";
    std::filesystem::remove(path);
    auto writer = FileWriter::Create(path);
    EXPECT_TRUE(writer.ok());
    EXPECT_TRUE(WriteSafetensors(tensors, {}, &*writer).ok());
    EXPECT_TRUE(writer->Finish().ok());
    ParameterBuffer loaded(model_.layout, target, "loaded");
    return LoadHuggingFaceWeights(model_, &loaded);
  }

  void ExpectRefused(const Change& change, const std::string& reason,
                     const std::vector<std::string>& what, DType target = DType::kFloat32) {
    const absl::Status status = LoadChanged(change, target);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_EQ(ReasonOf(status), reason);
    for (const std::string& part : what) {
      EXPECT_THAT(std::string(status.message()), HasSubstr(part));
    }
  }

  static SafetensorsSource& Find(std::vector<SafetensorsSource>* tensors, const std::string& name) {
    for (SafetensorsSource& tensor : *tensors) {
      if (tensor.name == name) return tensor;
    }
    ADD_FAILURE() << name;
    return tensors->front();
  }
  static void SetFirst(SafetensorsSource* tensor, float value) {
    tensor->fill = [fill = tensor->fill, value](void* out) {
      fill(out);
      std::memcpy(out, &value, sizeof(value));
    };
  }

  ScratchDirectory scratch_;
  HuggingFaceModel model_;
  std::unique_ptr<ParameterBuffer> master_;
};

TEST_F(HuggingFaceTest, OpensAFolderWithoutWeights) {
  EXPECT_FALSE(model_.has_weights);
  EXPECT_THAT(model_.config.eos_token_ids, ElementsAre(2, 3));
  const absl::Status weights = LoadHuggingFaceWeights(model_, master_.get());
  EXPECT_EQ(weights.code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(ReasonOf(weights), "MODEL_WITHOUT_WEIGHTS");
  EXPECT_THAT(std::string(weights.message()), HasSubstr("holds neither model.safetensors nor"));
  const absl::Status folder = OpenHuggingFaceModel(scratch_ / "absent").status();
  EXPECT_EQ(folder.code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(ReasonOf(folder), "FILE_NOT_FOUND");
  EXPECT_THAT(std::string(folder.message()), HasSubstr("absent/config.json"));
}

TEST_F(HuggingFaceTest, RoundTripsThroughEveryDType) {
  for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    const HuggingFaceModel saved = Save(Name(dtype), dtype);
    EXPECT_TRUE(saved.has_weights);
    ParameterBuffer loaded(saved.layout, DType::kFloat32, "loaded");
    const absl::Status status = LoadHuggingFaceWeights(saved, &loaded);
    ASSERT_TRUE(status.ok()) << status;
    for (int64_t i = 0; i < loaded.flat().elements(); ++i) {
      const float want = master_->flat().as<float>()[i];
      const float rounded = dtype == DType::kFloat16    ? ToFloat(ToFloat16(want))
                            : dtype == DType::kBFloat16 ? ToFloat(ToBFloat16(want))
                                                        : want;
      ASSERT_EQ(loaded.flat().as<float>()[i], rounded) << Name(dtype) << " element " << i;
    }
  }
}

TEST_F(HuggingFaceTest, ShardedFolderHoldsTheSameWeights) {
  const HuggingFaceModel saved = Save("sharded", DType::kFloat32, 1000);
  EXPECT_TRUE(std::filesystem::exists(scratch_ / "sharded/model.safetensors.index.json"));
  EXPECT_FALSE(std::filesystem::exists(scratch_ / "sharded/model.safetensors"));
  ParameterBuffer loaded(saved.layout, DType::kFloat32, "loaded");
  ASSERT_TRUE(LoadHuggingFaceWeights(saved, &loaded).ok());
  EXPECT_EQ(std::memcmp(loaded.flat().data(), master_->flat().data(), loaded.flat().bytes()), 0);
}

TEST_F(HuggingFaceTest, SavedFolderNamesItsDTypeAndKeepsOtherFilesVerbatim) {
  Save("half", DType::kFloat16);
  const Json config = Json::parse(ReadBytes(scratch_ / "half/config.json"));
  EXPECT_EQ(config["torch_dtype"], "float16");
  EXPECT_EQ(config["head_dim"], 6);
  EXPECT_EQ(ReadBytes(scratch_ / "half/tokenizer.json"), ReadBytes(scratch_ / "tokenizer.json"));
}

TEST_F(HuggingFaceTest, RefusesAShapeThatContradictsTheConfig) {
  ExpectRefused(
      [](auto* tensors) {
        Find(tensors, "model.layers.1.self_attn.k_proj.weight").shape = {8, 6};
      },
      "WEIGHTS_CONFIG_MISMATCH",
      {"tensor 'model.layers.1.self_attn.k_proj.weight' in '", "model.safetensors'",
       "has shape [8, 6], expected [6, 8] by config.json"});
}

TEST_F(HuggingFaceTest, RefusesADTypeThatIsNoWeight) {
  ExpectRefused([](auto* tensors) { Find(tensors, "model.norm.weight").dtype = DType::kInt32; },
                "WEIGHTS_CONFIG_MISMATCH",
                {"tensor 'model.norm.weight'", "has dtype I32, expected F16, BF16 or F32"});
}

TEST_F(HuggingFaceTest, RefusesMissingAndUnexpectedTensors) {
  ExpectRefused(
      [](auto* tensors) { Find(tensors, "model.norm.weight").name = "model.nrom.weight"; },
      "WEIGHTS_CONFIG_MISMATCH",
      {"has no tensor 'model.norm.weight', which its config.json needs"});
  ExpectRefused(
      [](auto* tensors) {
        tensors->push_back(Find(tensors, "model.norm.weight"));
        tensors->back().name = "model.layers.0.mlp.experts.0.weight";
      },
      "WEIGHTS_CONFIG_MISMATCH", {"model.layers.0.mlp.experts.0.weight", "is not expected"});
}

TEST_F(HuggingFaceTest, RefusesNanAndInfinity) {
  for (const float value : {std::nanf(""), std::numeric_limits<float>::infinity()}) {
    ExpectRefused(
        [&](auto* tensors) {
          SetFirst(&Find(tensors, "model.layers.0.mlp.up_proj.weight"), value);
        },
        "NON_FINITE_WEIGHTS",
        {"tensor 'model.layers.0.mlp.up_proj.weight' in '", "model.safetensors'",
         "holds 1 NaN or infinite values of 96"});
  }
}

TEST_F(HuggingFaceTest, RefusesWhatExceedsFp16OnlyWhenThatIsTheTarget) {
  const auto large = [&](auto* tensors) {
    SetFirst(&Find(tensors, "model.layers.0.mlp.up_proj.weight"), 65505.0f);
  };
  ExpectRefused(large, "WEIGHTS_OUT_OF_RANGE",
                {"up_proj.weight", "1 values beyond 65504", "load it as bf16 or fp32"},
                DType::kFloat16);
  EXPECT_TRUE(LoadChanged(large, DType::kBFloat16).ok());
}

TEST_F(HuggingFaceTest, ATiedModelMayRepeatItsEmbeddingButNotReplaceIt) {
  const auto repeat = [](float first) {
    return [first](auto* tensors) {
      tensors->push_back(Find(tensors, "model.embed_tokens.weight"));
      tensors->back().name = "lm_head.weight";
      if (first != 0) SetFirst(&tensors->back(), first);
    };
  };
  ExpectRefused(repeat(3.0f), "WEIGHTS_CONFIG_MISMATCH", {"lm_head.weight", "differs"});
  const absl::Status status = LoadChanged(repeat(0.0f), DType::kFloat32);
  EXPECT_TRUE(status.ok()) << status;
}

TEST_F(HuggingFaceTest, SavingWhatDoesNotFitTheDTypeIsRefused) {
  master_->view(0).as<float>()[0] = 7e4f;
  auto writer = AtomicDirectoryWriter::Create(scratch_.path(), "overflow", "i");
  const absl::Status status =
      SaveHuggingFaceModel(*master_, {scratch_.path(), DType::kFloat16}, "", &*writer);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ReasonOf(status), "NON_FINITE_WEIGHTS");
  EXPECT_THAT(std::string(status.message()), HasSubstr("model.embed_tokens.weight"));
}

TEST_F(HuggingFaceTest, FilesMayBeLinksThatStayBelowTheRoot) {
  namespace fs = std::filesystem;
  for (const bool sharded : {false, true}) {
    // As a cache of Hugging Face: the folder holds links to files elsewhere in the same tree.
    const fs::path real =
        Save(sharded ? "shards" : "whole", DType::kFloat32, sharded ? 512 : 1 << 30).directory;
    const fs::path root = fs::path(scratch_.path()) / (sharded ? "root2" : "root1");
    fs::create_directories(root / "model");
    fs::copy(real, root / "blobs");
    const auto link = [&](const fs::path& from, const fs::path& name) {
      fs::remove(root / "model" / name);
      fs::create_symlink(from / name, root / "model" / name);
    };
    std::vector<fs::path> names;
    for (const auto& entry : fs::directory_iterator(real)) {
      if (entry.path().filename() != "manifest.json") names.push_back(entry.path().filename());
    }
    for (const fs::path& name : names) link("../blobs", name);
    const auto use = [&]() -> absl::Status {
      const auto model = OpenHuggingFaceModel(root / "model", root);
      if (!model.ok()) return model.status();
      ParameterBuffer loaded(model->layout, DType::kFloat32, "loaded");
      if (absl::Status read = LoadHuggingFaceWeights(*model, &loaded); !read.ok()) return read;
      auto writer = AtomicDirectoryWriter::Create(root, "copy", "i");
      return SaveHuggingFaceModel(loaded, {.base_directory = model->directory, .root = root}, "",
                                  &*writer);
    };
    EXPECT_TRUE(use().ok()) << use();
    for (const fs::path& name : names) {
      link(real, name);
      EXPECT_EQ(use().code(), absl::StatusCode::kPermissionDenied) << name;
      EXPECT_EQ(ReasonOf(use()), "PATH_OUTSIDE_ROOT") << name;
      link("../blobs", name);
    }
    EXPECT_TRUE(use().ok()) << use();
  }
}

TEST_F(HuggingFaceTest, InitializationIsNormalAndAFunctionOfTheSeed) {
  Json json = TinyConfig();
  json["vocab_size"] = 5000;
  json["initializer_range"] = 0.02;
  const ModelConfig config = *ParseModelConfig(json.dump(), "c");
  const auto layout = std::make_shared<const ParameterLayout>(config);
  ParameterBuffer a(layout, DType::kFloat32, "a"), b(layout, DType::kFloat32, "b");
  InitializeParameters(config, 5, &a);
  InitializeParameters(config, 5, &b);
  EXPECT_EQ(std::memcmp(a.flat().data(), b.flat().data(), a.flat().bytes()), 0);
  InitializeParameters(config, 6, &b);
  EXPECT_NE(std::memcmp(a.flat().data(), b.flat().data(), a.flat().bytes()), 0);

  const ConstTensor table = a.view(layout->embedding());
  double mean = 0, square = 0, fourth = 0;
  for (int64_t i = 0; i < table.elements(); ++i) {
    const double x = table.as<float>()[i] / 0.02;
    mean += x;
    square += x * x;
    fourth += x * x * x * x;
  }
  const auto n = static_cast<double>(table.elements());
  EXPECT_NEAR(mean / n, 0.0, 0.02);
  EXPECT_NEAR(square / n, 1.0, 0.03);
  EXPECT_NEAR(fourth / n, 3.0, 0.2);
  EXPECT_EQ(a.view(layout->final_norm()).as<float>()[0], 1.0f);
  EXPECT_EQ(a.view(layout->layers()[1].q_norm).as<float>()[5], 1.0f);
}

}  // namespace
}  // namespace halfstep
