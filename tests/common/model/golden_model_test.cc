// SPDX-License-Identifier: Apache-2.0
// Log-probs and gradients of tiny checkpoints against those that torch and transformers gave
// (tests/golden/make_model_golden.py).
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <string>
#include <vector>

#include "common/checkpoint/hugging_face.h"
#include "common/checkpoint/safetensors.h"
#include "common/model/transformer.h"
#include "kernels/ops/elementwise.h"
#include "kernels/ops/log_prob.h"
#include "tests/common/model/tiny_model.h"
#include "tests/kernels/tolerance.h"

namespace halfstep {
namespace {

template <class T>
std::vector<T> ReadTensor(const SafetensorsFile& file, const std::string& name) {
  const SafetensorsEntry* entry = file.Find(name);
  EXPECT_NE(entry, nullptr) << name;
  std::vector<T> values(entry->bytes() / sizeof(T));
  EXPECT_TRUE(file.Read(*entry, 0, entry->bytes(), values.data()).ok()) << name;
  return values;
}

class GoldenModelTest : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    const char* source = std::getenv("HALFSTEP_SOURCE_DIR");
    ASSERT_NE(source, nullptr) << "run through ctest, or set HALFSTEP_SOURCE_DIR";
    const std::string folder = std::string(source) + "/tests/golden/model/" + GetParam();
    auto model = OpenHuggingFaceModel(folder);
    ASSERT_TRUE(model.ok()) << model.status();
    model_ = *std::move(model);
    ParameterBuffer loaded(model_.layout, DType::kFloat32, "loaded");
    const absl::Status status = LoadHuggingFaceWeights(model_, &loaded);
    ASSERT_TRUE(status.ok()) << status;
    ParameterBuffer master(model_.layout, DType::kFloat32, "master", kTestDevice);
    CopyAndWait(loaded.flat(), master.flat());
    weights_ = WeightsFrom(model_.config, master, DType::kFloat32);
    auto golden = SafetensorsFile::Open(folder + "/golden.safetensors");
    ASSERT_TRUE(golden.ok()) << golden.status();
    golden_ = *std::move(golden);
  }

  // The golden sequences; the last token of each is not a logit row.
  PackedBatch Batch() const {
    const auto tokens = ReadTensor<int32_t>(*golden_, "tokens");
    PackedBatch batch;
    batch.tokens = tokens;
    batch.cu_seqlens.push_back(0);
    int32_t row = 0;
    for (const int32_t length : ReadTensor<int32_t>(*golden_, "lengths")) {
      for (int32_t i = 0; i < length; ++i, ++row) {
        batch.positions.push_back(i);
        if (i + 1 == length) continue;
        batch.logit_rows.push_back(row);
        batch.targets.push_back(tokens[row + 1]);
      }
      batch.cu_seqlens.push_back(row);
    }
    return batch;
  }

  HuggingFaceModel model_;
  std::unique_ptr<ModelWeights> weights_;
  std::unique_ptr<SafetensorsFile> golden_;
};

std::string FamilyName(const ::testing::TestParamInfo<const char*>& family) { return family.param; }

INSTANTIATE_TEST_SUITE_P(Families, GoldenModelTest, ::testing::Values("llama", "qwen2", "qwen3"),
                         FamilyName);

TEST_P(GoldenModelTest, LogProbsAndGradientsMatchTransformers) {
  TestContext ctx(2);
  const Transformer transformer(model_.config);
  const PackedBatch batch = Batch();
  const auto rows = static_cast<int64_t>(batch.logit_rows.size());
  const Shape shape = {rows, model_.config.hidden_size};
  OwnedTensor hidden("hidden", DType::kFloat32, shape, kTestDevice);
  OwnedTensor dhidden("dhidden", DType::kFloat32, shape, kTestDevice);
  OwnedTensor log_probs("log_probs", DType::kFloat32, {rows}, kTestDevice);
  OwnedTensor lse("lse", DType::kFloat32, {rows}, kTestDevice);
  TrainActivations activations;
  ModelGradients gradients(model_.layout, kTestDevice);
  const OwnedTensor targets = OnTestDevice(batch.targets);

  transformer.ForwardTrain(ctx, *weights_, batch, Recompute::kNone, &activations, hidden);
  LmHeadLogProb(ctx, hidden, weights_->head(), targets, 1.0f, log_probs, Tensor(), lse);
  const auto expected = ReadTensor<float>(*golden_, "log_probs");
  for (int64_t i = 0; i < rows; ++i) {
    ASSERT_NEAR(log_probs.view().as<float>()[i], expected[i], tolerance::kOracleLogProb)
        << "row " << i;
  }

  auto coefficients = ReadTensor<float>(*golden_, "coefficients");
  const OwnedTensor dlog_probs = OnTestDevice(coefficients);
  LmHeadLogProbBackward(ctx, dlog_probs, hidden, weights_->head(), targets, 1.0f, lse, dhidden,
                        gradients.head());
  transformer.Backward(ctx, *weights_, batch, activations, dhidden, &gradients);
  gradients.Finish(ctx);
  for (size_t p = 0; p < model_.layout->specs().size(); ++p) {
    for (const HuggingFaceSlice& slice : model_.layout->specs()[p].slices) {
      const auto want = ReadTensor<float>(*golden_, "grad." + slice.name);
      const Tensor got = gradients.view(static_cast<int>(p)).Rows(slice.first_row, slice.rows);
      ASSERT_EQ(got.elements(), static_cast<int64_t>(want.size())) << slice.name;
      double difference = 0, norm = 0;
      for (size_t i = 0; i < want.size(); ++i) {
        difference += std::pow(static_cast<double>(got.as<float>()[i]) - want[i], 2);
        norm += std::pow(static_cast<double>(want[i]), 2);
      }
      EXPECT_LE(std::sqrt(difference), tolerance::kOracleGradient * std::sqrt(norm)) << slice.name;
    }
  }
}

}  // namespace
}  // namespace halfstep
