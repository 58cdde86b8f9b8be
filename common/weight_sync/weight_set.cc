// SPDX-License-Identifier: Apache-2.0
#include "common/weight_sync/weight_set.h"

#include <cstring>
#include <utility>

#include "common/model/parameter_buffer.h"
#include "kernels/check.h"
#include "kernels/host_copy.h"
#include "kernels/ops/elementwise.h"

namespace halfstep {
namespace {

TensorManifest Describe(const std::string& name, DType dtype, const Shape& shape) {
  TensorManifest tensor;
  tensor.name = name;
  tensor.dtype = dtype;
  for (int axis = 0; axis < shape.rank(); ++axis) tensor.shape.push_back(shape[axis]);
  tensor.bytes = static_cast<uint64_t>(shape.elements()) * SizeOf(dtype);
  return tensor;
}

}  // namespace

Digester TensorDigester(const TensorManifest& tensor) {
  Digester digester;
  // Lengths go first, so that no two descriptions run together to the same bytes.
  digester.UpdateInteger(tensor.name.size());
  digester.Update(tensor.name);
  const std::string dtype = Name(tensor.dtype);
  digester.UpdateInteger(dtype.size());
  digester.Update(dtype);
  digester.UpdateInteger(tensor.shape.size());
  for (const int64_t dim : tensor.shape) digester.UpdateInteger(static_cast<uint64_t>(dim));
  return digester;
}

Digest128 DigestTensor(const std::string& name, ConstTensor tensor) {
  Digester digester = TensorDigester(Describe(name, tensor.dtype(), tensor.shape()));
  digester.Update(tensor.data(), tensor.bytes());
  return digester.Finish().bytes;
}

std::string ManifestDigest(const std::vector<TensorManifest>& tensors) {
  Digester digester;
  for (const TensorManifest& tensor : tensors) {
    digester.Update(tensor.digest.data(), tensor.digest.size());
  }
  return digester.Finish().Hex();
}

std::vector<TensorManifest> WireTensors(const ParameterLayout& layout, DType dtype,
                                        const Shape& rope_table) {
  std::vector<TensorManifest> tensors;
  tensors.reserve(layout.specs().size() + 1);
  for (const ParameterSpec& spec : layout.specs()) {
    tensors.push_back(Describe(spec.name, dtype, spec.shape));
  }
  tensors.push_back(Describe(kRopeTableName, DType::kFloat32, rope_table));
  return tensors;
}

std::shared_ptr<const WeightSet> WeightSet::Create(uint64_t version, const ParameterBuffer& master,
                                                   DType dtype, ConstTensor rope_table) {
  HALFSTEP_CHECK(master.dtype() == DType::kFloat32);
  HALFSTEP_CHECK(rope_table.dtype() == DType::kFloat32);
  std::shared_ptr<WeightSet> set(new WeightSet());
  WeightManifest& manifest = set->manifest_;
  manifest.version = version;
  manifest.tensors = WireTensors(master.layout(), dtype, rope_table.shape());
  for (const TensorManifest& tensor : manifest.tensors) manifest.total_bytes += tensor.bytes;
  set->buffer_ = Buffer("published_weights", manifest.total_bytes);

  const ExecContext ctx;
  auto* out = static_cast<uint8_t*>(set->buffer_.data());
  const int parameters = static_cast<int>(master.layout().specs().size());
  for (int i = 0; i <= parameters; ++i) {
    TensorManifest& tensor = manifest.tensors[i];
    if (i < parameters) {
      const ConstTensor parameter = master.view(i);
      Cast(ctx, HostCopy(parameter).view(), Overflow::kInfinity,
           Tensor(out, dtype, parameter.shape()));
    } else {
      std::memcpy(out, HostCopy(rope_table).view().data(), tensor.bytes);
    }
    Digester digester = TensorDigester(tensor);
    digester.Update(out, tensor.bytes);
    tensor.digest = digester.Finish().bytes;
    out += tensor.bytes;
  }
  manifest.manifest_digest = ManifestDigest(manifest.tensors);
  return set;
}

std::span<const uint8_t> WeightSet::bytes() const {
  return {static_cast<const uint8_t*>(buffer_.data()), manifest_.total_bytes};
}

}  // namespace halfstep
