// SPDX-License-Identifier: Apache-2.0
#include "common/weight_sync/staging_area.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <string>

#include "common/base/error_reason.h"
#include "tests/common/weight_sync/tiny_model.h"

namespace halfstep {
namespace {

using ::testing::HasSubstr;

class StagingAreaTest : public ::testing::Test {
 protected:
  std::span<const uint8_t> bytes() const { return set->bytes(); }
  // Everything that is missing, in chunks.
  absl::Status Fill(size_t chunk) {
    while (!staging.complete()) {
      const size_t from = staging.offset();
      const absl::Status status =
          staging.Append(from, bytes().subspan(from, std::min(chunk, bytes().size() - from)));
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  }

  const ParameterBuffer master = TinyMaster();
  ModelWeights model = TinyWeights(master, DType::kFloat16);
  std::shared_ptr<const WeightSet> set =
      WeightSet::Create(1, master, DType::kFloat16, model.rope_table());
  StagingArea staging{model};
};

TEST_F(StagingAreaTest, FillsAModelFromChunksOfAnySize) {
  for (const size_t chunk : {size_t{1}, size_t{7}, size_t{100}, bytes().size()}) {
    ModelWeights target = TinyWeights(master, DType::kFloat16);
    std::memset(target.rope_table().data(), 0, target.rope_table().bytes());
    StagingArea area(target);
    ASSERT_TRUE(area.Begin(set->manifest()).ok());
    while (!area.complete()) {
      const size_t from = area.offset();
      ASSERT_TRUE(
          area.Append(from, bytes().subspan(from, std::min(chunk, bytes().size() - from))).ok());
    }
    ASSERT_TRUE(area.CopyTo(&target).ok());
    const auto again =
        WeightSet::Create(1, master, DType::kFloat16, target.rope_table())->manifest();
    EXPECT_EQ(again.identity(), set->manifest().identity());
    const size_t parameters = master.layout().specs().size();
    for (size_t i = 0; i < parameters; ++i) {
      EXPECT_EQ(DigestTensor(master.layout().specs()[i].name,
                             std::as_const(target).parameters().view(static_cast<int>(i))),
                set->manifest().tensors[i].digest);
    }
  }
}

TEST_F(StagingAreaTest, GoesOnWhereABrokenTransferStopped) {
  ASSERT_TRUE(staging.Begin(set->manifest()).ok());
  ASSERT_TRUE(staging.Append(0, bytes().first(33)).ok());
  ASSERT_TRUE(staging.Begin(set->manifest()).ok());
  EXPECT_EQ(staging.offset(), 33u);
  EXPECT_TRUE(Fill(16).ok());
  EXPECT_TRUE(staging.complete());
}

TEST_F(StagingAreaTest, AnotherSetStartsFromNothing) {
  ASSERT_TRUE(staging.Begin(set->manifest()).ok());
  ASSERT_TRUE(staging.Append(0, bytes().first(33)).ok());
  set = WeightSet::Create(2, TinyMaster(0.7f), DType::kFloat16, model.rope_table());
  ASSERT_TRUE(staging.Begin(set->manifest()).ok());
  EXPECT_EQ(staging.offset(), 0u);
  EXPECT_TRUE(Fill(64).ok());
}

TEST_F(StagingAreaTest, AFlippedBitIsFoundInItsTensorAndFetchedAgain) {
  ASSERT_TRUE(staging.Begin(set->manifest()).ok());
  std::vector<uint8_t> bad(bytes().begin(), bytes().end());
  const uint64_t first = set->manifest().tensors[0].bytes;
  bad[first + 3] ^= 0x10;
  const absl::Status status = staging.Append(0, bad);
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(ReasonOf(status), "WEIGHTS_DIGEST_MISMATCH");
  EXPECT_THAT(std::string(status.message()), HasSubstr(set->manifest().tensors[1].name));
  EXPECT_EQ(staging.offset(), first);
  EXPECT_FALSE(staging.complete());
  EXPECT_FALSE(staging.CopyTo(&model).ok());
  EXPECT_TRUE(Fill(1000).ok());
  EXPECT_TRUE(staging.CopyTo(&model).ok());
}

TEST_F(StagingAreaTest, RefusesChunksOutOfPlace) {
  EXPECT_EQ(staging.Append(0, bytes().first(1)).code(), absl::StatusCode::kFailedPrecondition);
  ASSERT_TRUE(staging.Begin(set->manifest()).ok());
  EXPECT_EQ(ReasonOf(staging.Append(5, bytes().first(1))), "BAD_WEIGHT_CHUNK");
  EXPECT_EQ(staging.offset(), 0u);
  std::vector<uint8_t> more(bytes().size() + 1);
  EXPECT_EQ(ReasonOf(staging.Append(0, more)), "BAD_WEIGHT_CHUNK");
  EXPECT_EQ(staging.offset(), 0u);
}

TEST_F(StagingAreaTest, RefusesSetsOfAnotherModel) {
  const auto expect_refused = [&](const WeightManifest& manifest, const std::string& what) {
    const absl::Status status = staging.Begin(manifest);
    EXPECT_EQ(ReasonOf(status), "WEIGHTS_LAYOUT_MISMATCH");
    EXPECT_THAT(std::string(status.message()), HasSubstr(what));
  };
  const auto other = WeightSet::Create(1, master, DType::kBFloat16, model.rope_table());
  expect_refused(other->manifest(), "'embedding' bf16");
  WeightManifest manifest = set->manifest();
  manifest.tensors[1].name = "stranger";
  expect_refused(manifest, "stranger");
  manifest = set->manifest();
  manifest.tensors.pop_back();
  expect_refused(manifest, "'rope_table' fp32 [6, 2, 3] is missing");
  manifest = set->manifest();
  manifest.tensors.push_back(manifest.tensors[0]);
  expect_refused(manifest, "unexpected tensor 'embedding'");
  const OwnedTensor longer("rope", DType::kFloat32, Shape{7, 2, 3});
  expect_refused(WeightSet::Create(1, master, DType::kFloat16, longer.view())->manifest(),
                 "[7, 2, 3]");
  manifest = set->manifest();
  manifest.manifest_digest = std::string(32, '0');
  expect_refused(manifest, "contradicts itself");
  EXPECT_FALSE(staging.manifest().has_value());
}

}  // namespace
}  // namespace halfstep
