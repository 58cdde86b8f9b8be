// SPDX-License-Identifier: Apache-2.0
// Safetensors: what is written is read back; every lie a file can tell is refused by name.
#include "common/checkpoint/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "common/base/error_reason.h"
#include "common/checkpoint/safetensors_writer.h"
#include "tests/common/checkpoint/scratch_directory.h"

namespace halfstep {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string FileWithHeader(const std::string& json, size_t data_bytes) {
  std::string file;
  for (int i = 0; i < 8; ++i) file.push_back(static_cast<char>(uint64_t{json.size()} >> 8 * i));
  return file + json + std::string(data_bytes, '\1');
}

SafetensorsSource Source(const std::string& name, DType dtype, std::vector<int64_t> shape) {
  SafetensorsSource source{name, dtype, std::move(shape), nullptr};
  source.fill = [bytes = source.bytes(), first = name[0]](void* out) {
    std::memset(out, first, bytes);
  };
  return source;
}

class SafetensorsTest : public ::testing::Test {
 protected:
  // Opens a file of `bytes` and expects INVALID_SAFETENSORS that names the file and `what`.
  void ExpectRefused(const std::string& bytes, const std::string& what) {
    const std::string path = scratch_ / "bad.safetensors";
    WriteBytes(path, bytes);
    const auto file = SafetensorsFile::Open(path);
    ASSERT_FALSE(file.ok()) << what;
    EXPECT_EQ(file.status().code(), absl::StatusCode::kInvalidArgument) << file.status();
    EXPECT_EQ(ReasonOf(file.status()), "INVALID_SAFETENSORS");
    EXPECT_THAT(std::string(file.status().message()), HasSubstr(path));
    EXPECT_THAT(std::string(file.status().message()), HasSubstr(what));
  }

  ScratchDirectory scratch_;
};

TEST_F(SafetensorsTest, ReadsBackWhatWasWritten) {
  const std::string path = scratch_ / "a.safetensors";
  auto writer = FileWriter::Create(path);
  ASSERT_TRUE(writer.ok());
  ASSERT_TRUE(WriteSafetensors({Source("b", DType::kFloat16, {2, 3}),
                                Source("a", DType::kFloat32, {5}), Source("s", DType::kInt64, {})},
                               {{"format", "pt"}}, &*writer)
                  .ok());
  ASSERT_TRUE(writer->Finish().ok());

  const auto file = SafetensorsFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->header().metadata.at("format"), "pt");
  const SafetensorsEntry* b = (*file)->Find("b");
  ASSERT_NE(b, nullptr);
  EXPECT_EQ(b->dtype, "F16");
  EXPECT_THAT(b->shape, ElementsAre(2, 3));
  std::string bytes(b->bytes(), '\0');
  ASSERT_TRUE((*file)->Read(*b, 0, bytes.size(), bytes.data()).ok());
  EXPECT_EQ(bytes, std::string(12, 'b'));
  EXPECT_EQ((*file)->Find("s")->bytes(), 8u);
  EXPECT_EQ((*file)->Find("missing"), nullptr);
  EXPECT_EQ((*file)->Read(*b, 8, 5, bytes.data()).code(), absl::StatusCode::kOutOfRange);

  const std::string raw = ReadBytes(path);
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, raw.data(), sizeof(header_bytes));
  EXPECT_EQ(header_bytes % 8, 0u);
}

TEST_F(SafetensorsTest, RefusesTruncatedFiles) {
  ExpectRefused("", "has 0 bytes, too few for a safetensors header");
  ExpectRefused(std::string("\x10\0\0\0\0\0\0", 7), "has 7 bytes, too few");
  ExpectRefused(FileWithHeader(R"({"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}})", 15),
                "tensor 'a' ends at byte 16 of 15; the file is truncated or the header is wrong: "
                "copy it again");
}

TEST_F(SafetensorsTest, RefusesAHeaderLongerThanTheFile) {
  ExpectRefused(std::string("\xff\0\0\0\0\0\0\0{}", 10),
                "claims a header of 255 bytes but has only 2 left: it is truncated");
  ExpectRefused(std::string(8, '\xff'),
                "claims a header of 18446744073709551615 bytes, at most 100000000 are allowed");
}

TEST_F(SafetensorsTest, RefusesRangesThatDoNotTileTheData) {
  const auto two = [](const char* a, const char* b) {
    return absl::StrCat(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":)", a,
                        R"(},"b":{"dtype":"U8","shape":[4],"data_offsets":)", b, "}}");
  };
  ExpectRefused(FileWithHeader(two("[0,4]", "[2,6]"), 6),
                "tensor 'b' begins at byte 2, expected 4: ranges overlap");
  ExpectRefused(FileWithHeader(two("[0,4]", "[0,4]"), 4),
                "tensor 'b' begins at byte 0, expected 4: ranges overlap");
  ExpectRefused(FileWithHeader(two("[0,4]", "[8,12]"), 12), "hole");
  ExpectRefused(FileWithHeader(two("[0,4]", "[4,8]"), 9), "belong to none");
  ExpectRefused(FileWithHeader(two("[0,4]", "[1000,1004]"), 8),
                "tensor 'b' ends at byte 1004 of 8");
  ExpectRefused(FileWithHeader(two("[4,0]", "[4,8]"), 8), "tensor 'a' ends before it begins");
  ExpectRefused(FileWithHeader(two("[0,4]", "[18446744073709551612,18446744073709551616]"), 8),
                "data_offsets");
  ExpectRefused(FileWithHeader(two("[0,4]", "[-4,0]"), 8), "data_offsets");
}

TEST_F(SafetensorsTest, RefusesShapesThatDoNotMatchTheirBytes) {
  const auto shaped = [](const char* dtype, const char* shape) {
    return FileWithHeader(absl::StrCat(R"({"a":{"dtype":")", dtype, R"(","shape":)", shape,
                                       R"(,"data_offsets":[0,8]}})"),
                          8);
  };
  ExpectRefused(shaped("F32", "[3]"), "shape [3]");
  ExpectRefused(shaped("F31", "[2]"), "F31");
  ExpectRefused(shaped("F32", "[4294967296,4294967296,4]"), "does not");
  ExpectRefused(shaped("F32", "[-2]"), "shape");
  ExpectRefused(shaped("F32", "2"), "shape");
}

TEST_F(SafetensorsTest, RefusesHeadersThatAreNoHeaders) {
  ExpectRefused(FileWithHeader("{", 0), "JSON");
  ExpectRefused(FileWithHeader("[]", 0), "object");
  ExpectRefused(FileWithHeader(R"({"a":1})", 0), "'a'");
  ExpectRefused(FileWithHeader(R"({"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},)"
                               R"("a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})",
                               0),
                "twice");
  ExpectRefused(FileWithHeader(R"({"a":{"dtype":"U8","dtype":"I8","shape":[0],)"
                               R"("data_offsets":[0,0]}})",
                               0),
                "twice");
  ExpectRefused(FileWithHeader(R"({"a":[[[[[[1]]]]]]})", 0), "nested more than 3 deep");
  ExpectRefused(FileWithHeader(R"({"__metadata__":{"x":1}})", 0), "__metadata__");
}

TEST_F(SafetensorsTest, AFileThatShrinksAfterOpeningIsAnErrorNotACrash) {
  const std::string path = scratch_ / "a.safetensors";
  WriteBytes(path, FileWithHeader(R"({"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}})", 8));
  const auto file = SafetensorsFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  std::filesystem::resize_file(path, std::filesystem::file_size(path) - 1);
  std::string bytes(8, '\0');
  const absl::Status status = (*file)->Read(*(*file)->Find("a"), 0, 8, bytes.data());
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(ReasonOf(status), "INVALID_SAFETENSORS");
  EXPECT_THAT(std::string(status.message()), HasSubstr("a.safetensors': the file became shorter"));
}

TEST_F(SafetensorsTest, FolderWithoutWeightsIsNotFound) {
  EXPECT_FALSE(SafetensorsFolder::Exists(scratch_.path()));
  const absl::Status folder = SafetensorsFolder::Open(scratch_.path()).status();
  EXPECT_EQ(folder.code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(ReasonOf(folder), "MODEL_WITHOUT_WEIGHTS");
  EXPECT_THAT(std::string(folder.message()),
              HasSubstr(scratch_.path() + "' holds neither model.safetensors nor"));
  const absl::Status file = SafetensorsFile::Open(scratch_ / "none").status();
  EXPECT_EQ(file.code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(ReasonOf(file), "FILE_NOT_FOUND");
  EXPECT_THAT(std::string(file.message()), HasSubstr(scratch_ / "none"));
}

TEST_F(SafetensorsTest, ShardsRespectTheLimitAndTheIndexFindsThem) {
  const std::vector<SafetensorsSource> tensors = {
      Source("a", DType::kUInt8, {60}), Source("b", DType::kUInt8, {30}),
      Source("c", DType::kUInt8, {200}), Source("d", DType::kUInt8, {50})};
  const std::vector<size_t> shards = PlanShards(tensors, 100);
  ASSERT_THAT(shards, ElementsAre(2, 1, 1));
  size_t next = 0;
  for (size_t i = 0; i < shards.size(); ++i) {
    auto writer = FileWriter::Create(scratch_ / ShardName(i, shards.size()));
    ASSERT_TRUE(writer.ok());
    ASSERT_TRUE(
        WriteSafetensors({tensors.begin() + next, tensors.begin() + next + shards[i]}, {}, &*writer)
            .ok());
    ASSERT_TRUE(writer->Finish().ok());
    next += shards[i];
  }
  const std::string index = scratch_ / "model.safetensors.index.json";
  WriteBytes(index, ShardIndex(tensors, shards));
  const auto folder = SafetensorsFolder::Open(scratch_.path());
  ASSERT_TRUE(folder.ok()) << folder.status();
  EXPECT_EQ(folder->tensors().size(), 4u);
  EXPECT_THAT(folder->tensors().at("d").file->path(), HasSubstr("model-00003-of-00003"));

  for (const char* bad : {R"({"weight_map":{"a":"../x"}})", R"({"weight_map":{"a":"/etc/x"}})",
                          R"({"weight_map":{"a":"model-00002-of-00003.safetensors"}})",
                          R"({"weight_map":{"a":"model-00001-of-00003.safetensors"}})",
                          R"({"weight_map":3})", "{", "{}"}) {
    WriteBytes(index, bad);
    const absl::Status status = SafetensorsFolder::Open(scratch_.path()).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << bad;
    EXPECT_EQ(ReasonOf(status), "INVALID_SAFETENSORS") << bad;
    EXPECT_THAT(std::string(status.message()), HasSubstr(index));
  }
  WriteBytes(index, R"({"weight_map":{"a":"model-00009-of-00009.safetensors"}})");
  const absl::Status missing = SafetensorsFolder::Open(scratch_.path()).status();
  EXPECT_EQ(missing.code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(ReasonOf(missing), "FILE_NOT_FOUND");
  EXPECT_THAT(std::string(missing.message()), HasSubstr("model-00009-of-00009.safetensors"));
}

}  // namespace
}  // namespace halfstep
