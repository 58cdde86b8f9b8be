// SPDX-License-Identifier: Apache-2.0
#include "common/weight_sync/weight_proto.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "common/base/error_reason.h"
#include "halfstep/v1/weights.pb.h"
#include "tests/common/weight_sync/tiny_model.h"

namespace halfstep {
namespace {

using ::testing::HasSubstr;

v1::WeightManifest Good() {
  const ParameterBuffer master = TinyMaster();
  const ModelWeights model = TinyWeights(master, DType::kFloat16);
  v1::WeightManifest proto;
  ToProto(WeightSet::Create(4, master, DType::kFloat16, model.rope_table())->manifest(), &proto);
  return proto;
}

TEST(WeightProtoTest, AManifestSurvivesTheWire) {
  const ParameterBuffer master = TinyMaster();
  const ModelWeights model = TinyWeights(master, DType::kFloat16);
  const auto set = WeightSet::Create(4, master, DType::kFloat16, model.rope_table());
  v1::WeightManifest proto;
  ToProto(set->manifest(), &proto);
  v1::WeightManifest received;
  ASSERT_TRUE(received.ParseFromString(proto.SerializeAsString()));
  const absl::StatusOr<WeightManifest> manifest = FromProto(received);
  ASSERT_TRUE(manifest.ok()) << manifest.status();
  EXPECT_EQ(manifest->identity(), set->manifest().identity());
  EXPECT_EQ(manifest->tensors, set->manifest().tensors);
  EXPECT_EQ(manifest->total_bytes, set->manifest().total_bytes);
}

struct Case {
  const char* name;
  const char* message;
  std::function<void(v1::WeightManifest&)> spoil;
};

class BadManifestTest : public ::testing::TestWithParam<Case> {};

TEST_P(BadManifestTest, IsRefusedWithTheTensorsName) {
  v1::WeightManifest proto = Good();
  GetParam().spoil(proto);
  const absl::Status status = FromProto(proto).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ReasonOf(status), "BAD_MANIFEST");
  EXPECT_THAT(std::string(status.message()), HasSubstr(GetParam().message));
}

INSTANTIATE_TEST_SUITE_P(
    Spoiled, BadManifestTest,
    ::testing::Values(
        Case{"Empty", "no tensors", [](auto& m) { m.clear_tensors(); }},
        Case{"NoName", "no name", [](auto& m) { m.mutable_tensors(0)->clear_name(); }},
        Case{"Twice", "'embedding' is listed twice",
             [](auto& m) { m.mutable_tensors(1)->set_name(m.tensors(0).name()); }},
        Case{"DType", "'embedding': dtype 'fp8'",
             [](auto& m) { m.mutable_tensors(0)->set_dtype("fp8"); }},
        Case{"NoShape", "has 0 dimensions", [](auto& m) { m.mutable_tensors(0)->clear_shape(); }},
        Case{"DeepShape", "has 6 dimensions",
             [](auto& m) {
               for (int i = 0; i < 4; ++i) m.mutable_tensors(0)->add_shape(1);
             }},
        Case{"NegativeShape", "dimension -11",
             [](auto& m) { m.mutable_tensors(0)->set_shape(0, -11); }},
        Case{"HugeShape", "overflows",
             [](auto& m) {
               m.mutable_tensors(0)->set_shape(0, int64_t{1} << 62);
               m.mutable_tensors(0)->set_shape(1, int64_t{1} << 62);
             }},
        Case{"Bytes", "'embedding': says 1 bytes",
             [](auto& m) { m.mutable_tensors(0)->set_bytes(1); }},
        Case{"ShortDigest", "digest has 3 bytes",
             [](auto& m) { m.mutable_tensors(0)->set_digest("abc"); }},
        Case{"Total", "in all", [](auto& m) { m.set_total_bytes(m.total_bytes() + 1); }},
        Case{"ManifestDigest", "its digest is", [](auto& m) { m.set_manifest_digest("0"); }}),
    [](const auto& param_info) { return std::string(param_info.param.name); });

}  // namespace
}  // namespace halfstep
