// SPDX-License-Identifier: Apache-2.0
#include "common/weight_sync/staging_area.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/error_reason.h"
#include "common/base/status_macros.h"
#include "common/model/model_weights.h"
#include "kernels/stream.h"

namespace halfstep {
namespace {

uint64_t SumBytes(const std::vector<TensorManifest>& tensors) {
  uint64_t sum = 0;
  for (const TensorManifest& tensor : tensors) sum += tensor.bytes;
  return sum;
}

std::string Describe(const TensorManifest& tensor) {
  return absl::StrCat("'", tensor.name, "' ", Name(tensor.dtype), " [",
                      absl::StrJoin(tensor.shape, ", "), "]");
}

absl::Status LayoutMismatch(const std::string& what) {
  return Error(absl::StatusCode::kInvalidArgument, "WEIGHTS_LAYOUT_MISMATCH",
               absl::StrCat("published weights do not fit this model: ", what));
}

}  // namespace

StagingArea::StagingArea(const ModelWeights& weights)
    : expected_(WireTensors(weights.parameters().layout(), weights.dtype(),
                            weights.rope_table().shape())),
      buffer_("staged_weights", SumBytes(expected_)) {}

absl::Status StagingArea::Begin(const WeightManifest& manifest) {
  const size_t common = std::min(expected_.size(), manifest.tensors.size());
  for (size_t i = 0; i < common; ++i) {
    TensorManifest got = manifest.tensors[i];
    got.digest = {};
    if (got != expected_[i]) {
      return LayoutMismatch(absl::StrCat("tensor ", i, " is ", Describe(got), " of ", got.bytes,
                                         " bytes, expected ", Describe(expected_[i])));
    }
  }
  if (manifest.tensors.size() > common) {
    return LayoutMismatch(absl::StrCat("unexpected tensor ", Describe(manifest.tensors[common])));
  }
  if (expected_.size() > common) {
    return LayoutMismatch(absl::StrCat("tensor ", Describe(expected_[common]), " is missing"));
  }
  if (manifest.total_bytes != buffer_.bytes() ||
      manifest.manifest_digest != ManifestDigest(manifest.tensors)) {
    return LayoutMismatch("the manifest contradicts itself");
  }
  if (manifest_ && manifest_->identity() == manifest.identity()) return absl::OkStatus();
  manifest_ = manifest;
  received_ = 0;
  tensor_ = 0;
  StartTensor();
  return absl::OkStatus();
}

absl::Status StagingArea::Append(uint64_t offset, std::span<const uint8_t> data) {
  if (!manifest_) {
    return absl::FailedPreconditionError("weights arrived before their manifest");
  }
  if (offset != received_ || data.size() > manifest_->total_bytes - received_) {
    return Error(
        absl::StatusCode::kInvalidArgument, "BAD_WEIGHT_CHUNK",
        absl::StrCat("weight chunk [", offset, ", +", data.size(), ") does not continue at byte ",
                     received_, " of ", manifest_->total_bytes));
  }
  auto* base = static_cast<uint8_t*>(buffer_.data());
  while (!data.empty()) {
    const uint64_t tensor_end = tensor_begin_ + manifest_->tensors[tensor_].bytes;
    const size_t take = std::min<uint64_t>(data.size(), tensor_end - received_);
    std::memcpy(base + received_, data.data(), take);
    digester_.Update(data.data(), take);
    received_ += take;
    data = data.subspan(take);
    if (received_ == tensor_end) HALFSTEP_RETURN_IF_ERROR(FinishTensor());
  }
  return absl::OkStatus();
}

absl::Status StagingArea::FinishTensor() {
  const TensorManifest& tensor = manifest_->tensors[tensor_];
  const Digest got = digester_.Finish();
  if (got.bytes != tensor.digest) {
    received_ = tensor_begin_;
    StartTensor();
    return Error(absl::StatusCode::kDataLoss, "WEIGHTS_DIGEST_MISMATCH",
                 absl::StrCat("tensor '", tensor.name, "' of version ", manifest_->version,
                              " arrived with digest ", got.Hex(), ", the manifest says ",
                              Digest{tensor.digest}.Hex()));
  }
  ++tensor_;
  if (tensor_ < manifest_->tensors.size()) StartTensor();
  return absl::OkStatus();
}

void StagingArea::StartTensor() {
  tensor_begin_ = received_;
  digester_ = TensorDigester(manifest_->tensors[tensor_]);
}

absl::Status StagingArea::CopyTo(ModelWeights* weights) const {
  if (!complete()) {
    return absl::FailedPreconditionError(
        absl::StrCat("staged weights are not complete: ", received_, " of ", buffer_.bytes(),
                     " bytes have arrived"));
  }
  const auto* from = static_cast<const uint8_t*>(buffer_.data());
  const auto copy = [&from](Tensor to) {
    CopyAndWait(ConstTensor(from, to.dtype(), to.shape()), to);
    from += to.bytes();
  };
  ParameterBuffer& parameters = weights->parameters();
  HALFSTEP_CHECK(WireTensors(parameters.layout(), weights->dtype(),
                             weights->rope_table().shape()) == expected_);
  const int count = static_cast<int>(parameters.layout().specs().size());
  for (int i = 0; i < count; ++i) copy(parameters.view(i));
  copy(weights->rope_table());
  return absl::OkStatus();
}

}  // namespace halfstep
