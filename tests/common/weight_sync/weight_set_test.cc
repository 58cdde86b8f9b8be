// SPDX-License-Identifier: Apache-2.0
#include "common/weight_sync/weight_set.h"

#include <gtest/gtest.h>

#include <cstring>

#include "tests/common/weight_sync/tiny_model.h"

namespace halfstep {
namespace {

class WeightSetTest : public ::testing::TestWithParam<DType> {
 protected:
  const ParameterBuffer master = TinyMaster();
  const ModelWeights model = TinyWeights(master, GetParam());
};

TEST_P(WeightSetTest, HoldsTheCastOfEveryParameterThenTheRopeTable) {
  const auto set = WeightSet::Create(3, master, GetParam(), model.rope_table());
  const WeightManifest& manifest = set->manifest();
  EXPECT_EQ(manifest.version, 3u);
  ASSERT_EQ(manifest.tensors.size(), master.layout().specs().size() + 1);
  EXPECT_EQ(manifest.tensors.back().name, "rope_table");
  EXPECT_EQ(manifest.tensors.back().dtype, DType::kFloat32);
  size_t offset = 0;
  for (size_t i = 0; i + 1 < manifest.tensors.size(); ++i) {
    const TensorManifest& tensor = manifest.tensors[i];
    EXPECT_EQ(tensor.name, master.layout().specs()[i].name);
    const ConstTensor view = master.view(static_cast<int>(i));
    for (int64_t e = 0; e < view.elements(); ++e) {
      const float want = view.as<float>()[e];
      const uint8_t* got = set->bytes().data() + offset + e * SizeOf(GetParam());
      if (GetParam() == DType::kFloat32) {
        EXPECT_EQ(std::memcmp(got, &want, 4), 0);
      } else {
        const uint16_t bits =
            GetParam() == DType::kFloat16 ? ToFloat16(want).bits : ToBFloat16(want).bits;
        EXPECT_EQ(std::memcmp(got, &bits, 2), 0) << tensor.name << "[" << e << "]";
      }
    }
    offset += tensor.bytes;
  }
  EXPECT_EQ(std::memcmp(set->bytes().data() + offset, model.rope_table().data(),
                        model.rope_table().bytes()),
            0);
  EXPECT_EQ(offset + model.rope_table().bytes(), manifest.total_bytes);
  EXPECT_EQ(set->bytes().size(), manifest.total_bytes);
}

TEST_P(WeightSetTest, EqualBytesHaveEqualDigestsInEveryVersion) {
  const auto a = WeightSet::Create(1, master, GetParam(), model.rope_table());
  const auto b = WeightSet::Create(2, TinyMaster(), GetParam(), model.rope_table());
  EXPECT_EQ(a->manifest().manifest_digest, b->manifest().manifest_digest);
  EXPECT_NE(a->manifest().identity(), b->manifest().identity());
}

TEST_P(WeightSetTest, OneBitChangesTheDigestOfItsTensorAndOfTheSet) {
  const auto before = WeightSet::Create(1, master, GetParam(), model.rope_table());
  ParameterBuffer changed = TinyMaster();
  changed.view(2).as<float>()[0] *= 1.5f;
  const auto after = WeightSet::Create(1, changed, GetParam(), model.rope_table());
  for (size_t i = 0; i < before->manifest().tensors.size(); ++i) {
    EXPECT_EQ(before->manifest().tensors[i] == after->manifest().tensors[i], i != 2) << i;
  }
  EXPECT_NE(before->manifest().manifest_digest, after->manifest().manifest_digest);
}

INSTANTIATE_TEST_SUITE_P(DTypes, WeightSetTest,
                         ::testing::Values(DType::kFloat16, DType::kBFloat16, DType::kFloat32),
                         [](const auto& param_info) { return Name(param_info.param); });

TEST(DigestTensorTest, CoversNameTypeAndShape) {
  const float data[6] = {1, 2, 3, 4, 5, 6};
  const ConstTensor tensor(data, DType::kFloat32, Shape{2, 3});
  const Digest128 digest = DigestTensor("a", tensor);
  EXPECT_EQ(digest, DigestTensor("a", tensor));
  EXPECT_NE(digest, DigestTensor("b", tensor));
  EXPECT_NE(digest, DigestTensor("a", tensor.Reshape(Shape{3, 2})));
  EXPECT_NE(digest, DigestTensor("a", tensor.Reshape(Shape{6})));
  EXPECT_NE(digest, DigestTensor("a", ConstTensor(data, DType::kInt32, Shape{2, 3})));
}

}  // namespace
}  // namespace halfstep
