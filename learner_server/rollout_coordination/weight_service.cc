// SPDX-License-Identifier: Apache-2.0
#include "learner_server/rollout_coordination/weight_service.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/error_reason.h"
#include "common/rpc/status.h"
#include "common/weight_sync/weight_set.h"

namespace halfstep {
namespace {

constexpr size_t kChunkBytes = size_t{1} << 20;

// Writes chunks one after another until `Fill` has no more. Deletes itself when gRPC is done.
template <class Chunk>
class ChunkWriter : public grpc::ServerWriteReactor<Chunk> {
 public:
  void OnWriteDone(bool ok) final {
    if (ok) {
      Next();
    } else {
      this->Finish(ToGrpcStatus(absl::UnavailableError("the transfer broke")));
    }
  }
  void OnDone() final { delete this; }

 protected:
  void Next() {
    if (Fill(&chunk_)) {
      this->StartWrite(&chunk_);
    } else {
      this->Finish(grpc::Status::OK);
    }
  }
  // Puts what comes next into `chunk`; false at the end.
  virtual bool Fill(Chunk* chunk) = 0;

 private:
  Chunk chunk_;
};

template <class Chunk>
class Refusal final : public grpc::ServerWriteReactor<Chunk> {
 public:
  explicit Refusal(const absl::Status& why) { this->Finish(ToGrpcStatus(why)); }
  void OnDone() override { delete this; }
};

class WeightWriter final : public ChunkWriter<v1::WeightChunk> {
 public:
  WeightWriter(std::shared_ptr<const WeightSet> set, uint64_t offset)
      : set_(std::move(set)), offset_(offset) {
    Next();
  }

 protected:
  bool Fill(v1::WeightChunk* chunk) override {
    const std::span<const uint8_t> rest = set_->bytes().subspan(offset_);
    if (rest.empty()) return false;
    const size_t size = std::min(rest.size(), kChunkBytes);
    chunk->set_offset(offset_);
    chunk->mutable_data()->assign(reinterpret_cast<const char*>(rest.data()), size);
    offset_ += size;
    return true;
  }

 private:
  const std::shared_ptr<const WeightSet> set_;
  uint64_t offset_;
};

class ModelWriter final : public ChunkWriter<v1::ModelFileChunk> {
 public:
  explicit ModelWriter(std::shared_ptr<const RolloutJob> job) : job_(std::move(job)) { Next(); }

 protected:
  bool Fill(v1::ModelFileChunk* chunk) override {
    if (file_ == job_->files.size()) return false;
    const ModelFile& file = job_->files[file_];
    chunk->set_file_name(offset_ == 0 ? file.name : "");
    const size_t size = std::min(file.bytes.size() - offset_, kChunkBytes);
    chunk->mutable_data()->assign(file.bytes, offset_, size);
    offset_ += size;
    if (offset_ == file.bytes.size()) {
      ++file_;
      offset_ = 0;
    }
    return true;
  }

 private:
  const std::shared_ptr<const RolloutJob> job_;
  size_t file_ = 0;
  size_t offset_ = 0;
};

}  // namespace

grpc::ServerWriteReactor<v1::WeightChunk>* WeightService::FetchWeights(
    grpc::CallbackServerContext*, const v1::FetchWeightsRequest* request) {
  const WeightIdentity identity{request->version(), request->manifest_digest()};
  std::shared_ptr<const WeightSet> set = coordinator_.FindWeights(request->job_epoch(), identity);
  if (set == nullptr) {
    return new Refusal<v1::WeightChunk>(Error(
        absl::StatusCode::kNotFound, "WEIGHTS_NOT_HELD",
        absl::StrCat("weights of job epoch ", request->job_epoch(), ", version ", identity.version,
                     ", digest ", identity.manifest_digest, " are not held (any more)")));
  }
  if (request->offset() > set->bytes().size()) {
    return new Refusal<v1::WeightChunk>(
        Error(absl::StatusCode::kOutOfRange, "BAD_WEIGHT_OFFSET",
              absl::StrCat("offset ", request->offset(), " is beyond the ", set->bytes().size(),
                           " bytes of version ", identity.version)));
  }
  return new WeightWriter(std::move(set), request->offset());
}

grpc::ServerWriteReactor<v1::ModelFileChunk>* WeightService::FetchModel(
    grpc::CallbackServerContext*, const v1::FetchModelRequest* request) {
  std::shared_ptr<const RolloutJob> job = coordinator_.FindJob(request->job_epoch());
  if (job == nullptr) {
    return new Refusal<v1::ModelFileChunk>(
        Error(absl::StatusCode::kNotFound, "JOB_NOT_RUNNING",
              absl::StrCat("job epoch ", request->job_epoch(), " is not running")));
  }
  return new ModelWriter(std::move(job));
}

}  // namespace halfstep
