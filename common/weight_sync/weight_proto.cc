// SPDX-License-Identifier: Apache-2.0
#include "common/weight_sync/weight_proto.h"

#include <algorithm>
#include <optional>
#include <set>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/base/error_reason.h"
#include "common/base/status_macros.h"
#include "halfstep/v1/weights.pb.h"

namespace halfstep {
namespace {

absl::Status BadManifest(const std::string& what) {
  return Error(absl::StatusCode::kInvalidArgument, "BAD_MANIFEST",
               absl::StrCat("weight manifest: ", what));
}

std::optional<DType> ParseWeightDType(const std::string& name) {
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16, DType::kFloat32}) {
    if (name == Name(dtype)) return dtype;
  }
  return std::nullopt;
}

absl::StatusOr<TensorManifest> TensorFromProto(const v1::TensorManifest& in) {
  const std::string where = absl::StrCat("tensor '", in.name(), "': ");
  if (in.name().empty()) return BadManifest("a tensor has no name");
  const std::optional<DType> dtype = ParseWeightDType(in.dtype());
  if (!dtype) {
    return BadManifest(
        absl::StrCat(where, "dtype '", in.dtype(), "' is none of fp16, bf16 and fp32"));
  }
  if (in.shape_size() == 0 || in.shape_size() > Shape::kMaxRank) {
    return BadManifest(absl::StrCat(where, "has ", in.shape_size(), " dimensions, not 1 to ",
                                    int{Shape::kMaxRank}));
  }
  uint64_t bytes = SizeOf(*dtype);
  for (const int64_t dim : in.shape()) {
    if (dim <= 0) return BadManifest(absl::StrCat(where, "dimension ", dim, " is not positive"));
    if (__builtin_mul_overflow(bytes, static_cast<uint64_t>(dim), &bytes)) {
      return BadManifest(absl::StrCat(where, "its shape overflows 64 bits"));
    }
  }
  if (bytes != in.bytes()) {
    return BadManifest(absl::StrCat(where, "says ", in.bytes(), " bytes, its shape needs ", bytes));
  }
  TensorManifest out;
  if (in.digest().size() != out.digest.size()) {
    return BadManifest(
        absl::StrCat(where, "digest has ", in.digest().size(), " bytes, not ", out.digest.size()));
  }
  std::copy(in.digest().begin(), in.digest().end(), out.digest.begin());
  out.name = in.name();
  out.shape.assign(in.shape().begin(), in.shape().end());
  out.dtype = *dtype;
  out.bytes = bytes;
  return out;
}

}  // namespace

void ToProto(const WeightIdentity& identity, v1::WeightIdentity* out) {
  out->set_version(identity.version);
  out->set_manifest_digest(identity.manifest_digest);
}

WeightIdentity FromProto(const v1::WeightIdentity& identity) {
  return {identity.version(), identity.manifest_digest()};
}

void ToProto(const WeightManifest& manifest, v1::WeightManifest* out) {
  out->Clear();
  out->set_version(manifest.version);
  out->set_manifest_digest(manifest.manifest_digest);
  out->set_total_bytes(manifest.total_bytes);
  for (const TensorManifest& tensor : manifest.tensors) {
    v1::TensorManifest* to = out->add_tensors();
    to->set_name(tensor.name);
    to->mutable_shape()->Assign(tensor.shape.begin(), tensor.shape.end());
    to->set_dtype(Name(tensor.dtype));
    to->set_bytes(tensor.bytes);
    to->set_digest(tensor.digest.data(), tensor.digest.size());
  }
}

absl::StatusOr<WeightManifest> FromProto(const v1::WeightManifest& manifest) {
  if (manifest.tensors_size() == 0) return BadManifest("has no tensors");
  WeightManifest out;
  out.version = manifest.version();
  std::set<std::string> names;
  for (const v1::TensorManifest& in : manifest.tensors()) {
    HALFSTEP_ASSIGN_OR_RETURN(TensorManifest tensor, TensorFromProto(in));
    if (!names.insert(tensor.name).second) {
      return BadManifest(absl::StrCat("tensor '", tensor.name, "' is listed twice"));
    }
    if (__builtin_add_overflow(out.total_bytes, tensor.bytes, &out.total_bytes)) {
      return BadManifest("its size overflows 64 bits");
    }
    out.tensors.push_back(std::move(tensor));
  }
  if (out.total_bytes != manifest.total_bytes()) {
    return BadManifest(absl::StrCat("says ", manifest.total_bytes(),
                                    " bytes in all, its tensors sum to ", out.total_bytes));
  }
  out.manifest_digest = ManifestDigest(out.tensors);
  if (out.manifest_digest != manifest.manifest_digest()) {
    return BadManifest(absl::StrCat("its digest is ", manifest.manifest_digest(),
                                    ", its tensors give ", out.manifest_digest));
  }
  return out;
}

}  // namespace halfstep
