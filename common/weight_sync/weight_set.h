// SPDX-License-Identifier: Apache-2.0
// A published set of weights: immutable bytes, and the manifest that identifies them.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "common/base/digest.h"
#include "kernels/buffer.h"
#include "kernels/tensor.h"

namespace halfstep {

class ParameterBuffer;
class ParameterLayout;

using Digest128 = std::array<uint8_t, 16>;  // XXH3-128, big-endian

struct TensorManifest {
  std::string name;
  std::vector<int64_t> shape;
  DType dtype = DType::kFloat16;
  uint64_t bytes = 0;
  Digest128 digest{};  // over name, dtype, shape and bytes
  friend bool operator==(const TensorManifest&, const TensorManifest&) = default;
};

// The identity of weights is (version, manifest digest): two sets of one version with other bytes
// differ.
struct WeightIdentity {
  uint64_t version = 0;
  std::string manifest_digest;  // hexadecimal
  friend bool operator==(const WeightIdentity&, const WeightIdentity&) = default;
};

// Tensors in wire order: every parameter of the layout, then "rope_table". On the wire they follow
// each other without padding.
struct WeightManifest {
  uint64_t version = 0;
  std::vector<TensorManifest> tensors;
  std::string manifest_digest;  // XXH3-128 over the tensors' digests, hexadecimal
  uint64_t total_bytes = 0;

  WeightIdentity identity() const { return {version, manifest_digest}; }
};

// The name of the last tensor of every set: the table both engines rotate by.
inline constexpr char kRopeTableName[] = "rope_table";

// Starts the digest of a tensor as the manifest has it: the caller adds the tensor's bytes.
Digester TensorDigester(const TensorManifest& tensor);
// Digest of one tensor as the manifest has it.
Digest128 DigestTensor(const std::string& name, ConstTensor tensor);
// The manifest digest over `tensors`, hexadecimal.
std::string ManifestDigest(const std::vector<TensorManifest>& tensors);

// The tensors of a set in wire order, digests left zero: every parameter of `layout` in `dtype`,
// then the FP32 table of shape `rope_table`.
std::vector<TensorManifest> WireTensors(const ParameterLayout& layout, DType dtype,
                                        const Shape& rope_table);

// Immutable once created; share by shared_ptr<const>.
class WeightSet {
 public:
  // Casts `master` (FP32, every value finite and finite after the cast) to `dtype`, round to
  // nearest even, copies `rope_table` (FP32), and digests every tensor.
  static std::shared_ptr<const WeightSet> Create(uint64_t version, const ParameterBuffer& master,
                                                 DType dtype, ConstTensor rope_table);

  const WeightManifest& manifest() const { return manifest_; }
  // All tensors in wire order.
  std::span<const uint8_t> bytes() const;

 private:
  WeightSet() = default;
  WeightManifest manifest_;
  Buffer buffer_;
};

}  // namespace halfstep
