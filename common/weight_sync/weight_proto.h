// SPDX-License-Identifier: Apache-2.0
// Weight manifests and identities in their protobuf form.
#pragma once

#include "absl/status/statusor.h"
#include "common/weight_sync/weight_set.h"

namespace halfstep::v1 {
class WeightIdentity;
class WeightManifest;
}  // namespace halfstep::v1

namespace halfstep {

void ToProto(const WeightIdentity& identity, v1::WeightIdentity* out);
WeightIdentity FromProto(const v1::WeightIdentity& identity);

void ToProto(const WeightManifest& manifest, v1::WeightManifest* out);

// INVALID_ARGUMENT (reason BAD_MANIFEST), naming the tensor, unless names are distinct and not
// empty, dtypes are known, shapes are positive and agree with the byte counts, sums agree, and the
// manifest digest is the one over the tensors' digests.
absl::StatusOr<WeightManifest> FromProto(const v1::WeightManifest& manifest);

}  // namespace halfstep
