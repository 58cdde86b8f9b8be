// SPDX-License-Identifier: Apache-2.0
#include "rollout_server/weight_client.h"

#include <grpcpp/grpcpp.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/error_reason.h"
#include "common/base/status_macros.h"
#include "common/rpc/channel.h"
#include "common/rpc/status.h"
#include "common/weight_sync/weight_proto.h"
#include "halfstep/v1/weights.grpc.pb.h"

namespace halfstep {
namespace {

constexpr size_t kMaxModelBytes = size_t{256} << 20;
constexpr size_t kMaxModelFiles = 16;

absl::Status Cancelled() { return absl::CancelledError("the fetch was cancelled"); }

}  // namespace

// Registers the context of a call for Cancel while it runs.
class WeightClient::Call {
 public:
  explicit Call(WeightClient* client)
      : client_(client), context_(MakeContext(client->options_.attempt_timeout)) {
    absl::MutexLock lock(&client_->mutex_);
    client_->active_ = context_.get();
    if (client_->cancelled_) context_->TryCancel();
  }
  ~Call() {
    absl::MutexLock lock(&client_->mutex_);
    client_->active_ = nullptr;
  }
  grpc::ClientContext* context() { return context_.get(); }

 private:
  WeightClient* const client_;
  const std::unique_ptr<grpc::ClientContext> context_;
};

WeightClient::WeightClient(std::shared_ptr<grpc::Channel> channel, WeightClientOptions options)
    : channel_(std::move(channel)), options_(options) {}

WeightClient::~WeightClient() = default;

absl::StatusOr<std::vector<BundleFile>> WeightClient::FetchModel(uint64_t job_epoch,
                                                                 const std::string& digest) {
  Call call(this);
  v1::FetchModelRequest request;
  request.set_job_epoch(job_epoch);
  auto stub = v1::WeightService::NewStub(channel_);
  auto reader = stub->FetchModel(call.context(), request);
  std::vector<BundleFile> files;
  size_t bytes = 0;
  absl::Status broken;
  v1::ModelFileChunk chunk;
  while (broken.ok() && reader->Read(&chunk)) {
    bytes += chunk.data().size();
    if (!chunk.file_name().empty()) files.push_back({chunk.file_name(), ""});
    if (files.empty()) {
      broken = absl::DataLossError("the first chunk of the model's files names no file");
    } else if (bytes > kMaxModelBytes || files.size() > kMaxModelFiles) {
      broken = absl::ResourceExhaustedError(absl::StrCat(
          "the model's files exceed ", kMaxModelBytes, " bytes or ", kMaxModelFiles, " files"));
    } else {
      files.back().contents.append(chunk.data());
    }
  }
  if (!broken.ok()) {
    call.context()->TryCancel();
    static_cast<void>(reader->Finish());
    return broken;
  }
  HALFSTEP_RETURN_IF_ERROR(WithContext(FromGrpcStatus(reader->Finish()), "fetching the model"));
  const std::string got = BundleDigest(files);
  if (got != digest) {
    return Error(absl::StatusCode::kDataLoss, "MODEL_DIGEST_MISMATCH",
                 absl::StrCat("the model's files have digest ", got, ", the job names ", digest));
  }
  return files;
}

absl::Status WeightClient::FetchWeights(uint64_t job_epoch, StagingArea* staging) {
  absl::Status status;
  int fruitless = 0;
  while (!staging->complete()) {
    const uint64_t before = staging->offset();
    status = FetchWeightsOnce(job_epoch, staging);
    if (absl::IsDataLoss(status) || absl::IsNotFound(status) || absl::IsCancelled(status) ||
        absl::IsPermissionDenied(status) || absl::IsUnauthenticated(status)) {
      return status;
    }
    if (staging->complete()) break;
    if (status.ok()) {
      status =
          absl::UnavailableError(absl::StrCat("the transfer ended after ", staging->offset(),
                                              " of ", staging->manifest()->total_bytes, " bytes"));
    }
    fruitless = staging->offset() > before ? 0 : fruitless + 1;
    if (fruitless >= options_.attempts_without_progress) {
      return WithContext(status,
                         absl::StrCat("fetching weights version ", staging->manifest()->version));
    }
    HALFSTEP_RETURN_IF_ERROR(Pause(options_.backoff * (1 << fruitless)));
  }
  return absl::OkStatus();
}

absl::Status WeightClient::FetchWeightsOnce(uint64_t job_epoch, StagingArea* staging) {
  Call call(this);
  v1::FetchWeightsRequest request;
  request.set_job_epoch(job_epoch);
  request.set_version(staging->manifest()->version);
  request.set_manifest_digest(staging->manifest()->manifest_digest);
  request.set_offset(staging->offset());
  auto stub = v1::WeightService::NewStub(channel_);
  auto reader = stub->FetchWeights(call.context(), request);
  v1::WeightChunk chunk;
  absl::Status broken;
  while (broken.ok() && reader->Read(&chunk)) {
    broken = staging->Append(chunk.offset(), {reinterpret_cast<const uint8_t*>(chunk.data().data()),
                                              chunk.data().size()});
  }
  if (!broken.ok()) {
    call.context()->TryCancel();
    static_cast<void>(reader->Finish());
    return broken;
  }
  return FromGrpcStatus(reader->Finish());
}

absl::Status WeightClient::Pause(absl::Duration duration) {
  absl::MutexLock lock(&mutex_);
  return mutex_.AwaitWithTimeout(absl::Condition(&cancelled_), duration) ? Cancelled()
                                                                         : absl::OkStatus();
}

void WeightClient::Cancel() {
  absl::MutexLock lock(&mutex_);
  cancelled_ = true;
  if (active_ != nullptr) active_->TryCancel();
}

void WeightClient::Allow() {
  absl::MutexLock lock(&mutex_);
  cancelled_ = false;
}

}  // namespace halfstep
