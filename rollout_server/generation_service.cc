// SPDX-License-Identifier: Apache-2.0
#include "rollout_server/generation_service.h"

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <deque>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "common/base/build_info.h"
#include "common/base/error_reason.h"
#include "common/base/status_macros.h"
#include "common/rpc/status.h"
#include "common/trajectory/proto_convert.h"
#include "halfstep/v1/generation.grpc.pb.h"

namespace halfstep {
namespace {

constexpr int kMaxCalls = 16;
constexpr uint32_t kMaxSamples = 64;
constexpr size_t kMaxPromptBytes = 1 << 20;

// The request with its prompt as tokens.
absl::StatusOr<GroupRequest> ToGroupRequest(const v1::GenerateRequest& in,
                                            const Tokenizer& tokenizer,
                                            int64_t max_sequence_tokens) {
  GroupRequest request;
  if (in.prompt_case() == v1::GenerateRequest::kText) {
    if (in.text().size() > kMaxPromptBytes) {
      return absl::InvalidArgumentError(
          absl::StrCat("a prompt has at most ", kMaxPromptBytes, " bytes"));
    }
    request.prompt = tokenizer.Encode(in.text());
  } else {
    request.prompt.assign(in.token_ids().ids().begin(), in.token_ids().ids().end());
  }
  v1::SamplingParams sampling = in.sampling();
  if (sampling.max_new_tokens() == 0) {
    sampling.set_max_new_tokens(
        UsualNewTokens(static_cast<int64_t>(request.prompt.size()), max_sequence_tokens));
  }
  HALFSTEP_ASSIGN_OR_RETURN(request.sampling, FromProto(sampling));
  request.samples = in.samples() == 0 ? 1 : in.samples();
  if (request.samples > kMaxSamples) {
    return absl::InvalidArgumentError(absl::StrCat("at most ", kMaxSamples, " samples a call"));
  }
  request.seed = in.seed();
  request.domain = SamplingDomain::kUser;
  return request;
}

// One call. Shared by gRPC, which ends it, and the engine's callbacks.
class GenerateCall : public grpc::ServerWriteReactor<v1::GenerateResponse> {
 public:
  // Counts itself in `calls` while it lives.
  explicit GenerateCall(std::atomic<int>* calls) : calls_(calls) {}

  void Start(const LoadedJob& job, const v1::GenerateRequest& in) {
    tokenizer_ = job.bundle->tokenizer;
    engine_ = job.engine;
    absl::StatusOr<GroupRequest> request =
        ToGroupRequest(in, *tokenizer_, engine_->options().max_sequence_tokens);
    if (!request.ok()) {
      Finish(ToGrpcStatus(request.status()));
      return;
    }
    for (uint32_t i = 0; i < request->samples; ++i) {
      texts_.emplace_back(tokenizer_, SpecialTokens::kOmit);
    }
    unfinished_ = request->samples;
    GroupCallbacks callbacks;
    callbacks.on_token = [self = self_](const GeneratedToken& token) { self->OnToken(token); };
    callbacks.on_sample = [self = self_](const Sample& sample) { self->OnSample(sample); };
    callbacks.on_failure = [self = self_](const absl::Status& why) { self->OnFailure(why); };
    const auto handle = engine_->Submit(*std::move(request), std::move(callbacks));
    if (!handle.ok()) {
      Finish(ToGrpcStatus(handle.status()));
      return;
    }
    absl::MutexLock lock(&mutex_);
    handle_ = *handle;
    if (cancelled_) engine_->Cancel(handle_);
  }

  void Refuse(const absl::Status& status) { Finish(ToGrpcStatus(status)); }

  // The call keeps itself alive until gRPC is done with it.
  static std::shared_ptr<GenerateCall> Make(std::atomic<int>* calls) {
    auto call = std::make_shared<GenerateCall>(calls);
    call->self_ = call;
    return call;
  }

 private:
  void OnToken(const GeneratedToken& token) {
    v1::GenerateResponse response;
    response.set_index(token.index);
    response.add_tokens(token.token);
    response.add_log_probs(token.log_prob);
    response.set_version(token.version);
    response.set_text(texts_[token.index].Push(token.token));
    Queue(std::move(response));
  }

  void OnSample(const Sample& sample) {
    v1::GenerateResponse response;
    response.set_index(sample.index);
    response.set_text(texts_[sample.index].Finish());
    response.set_finish_reason(ToProto(sample.finish_reason));
    if (!sample.versions.empty()) response.set_version(sample.versions.back().version);
    Queue(std::move(response));
    absl::MutexLock lock(&mutex_);
    if (--unfinished_ == 0) End(absl::OkStatus());
  }

  void OnFailure(const absl::Status& why) {
    absl::MutexLock lock(&mutex_);
    End(why);
  }

  // What a call can queue is bounded by its samples and their lengths.
  void Queue(v1::GenerateResponse response) {
    absl::MutexLock lock(&mutex_);
    responses_.push_back(std::move(response));
    WriteNext();
  }

  void End(const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    end_ = status;
    ended_ = true;
    WriteNext();
  }

  void WriteNext() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (writing_ || finished_) return;
    if (!responses_.empty()) {
      writing_ = true;
      current_ = std::move(responses_.front());
      responses_.pop_front();
      StartWrite(&current_);
    } else if (ended_) {
      finished_ = true;
      Finish(ToGrpcStatus(end_));
    }
  }

  void OnWriteDone(bool ok) override {
    absl::MutexLock lock(&mutex_);
    writing_ = false;
    if (!ok) responses_.clear();
    WriteNext();
  }

  void OnCancel() override {
    absl::MutexLock lock(&mutex_);
    cancelled_ = true;
    if (handle_ != 0) engine_->Cancel(handle_);
  }

  void OnDone() override {
    --*calls_;
    // The engine's callbacks may still hold the call.
    const std::shared_ptr<GenerateCall> last = std::move(self_);
  }

  std::atomic<int>* const calls_;
  std::shared_ptr<GenerateCall> self_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  std::shared_ptr<Engine> engine_;
  std::deque<StreamingDecoder> texts_;  // by sample; used on the engine's thread only

  absl::Mutex mutex_;
  GroupHandle handle_ ABSL_GUARDED_BY(mutex_) = 0;
  uint32_t unfinished_ ABSL_GUARDED_BY(mutex_) = 0;
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status end_ ABSL_GUARDED_BY(mutex_);
  std::deque<v1::GenerateResponse> responses_ ABSL_GUARDED_BY(mutex_);
  v1::GenerateResponse current_;
};

class GenerationServiceImpl final : public v1::GenerationService::CallbackService {
 public:
  GenerationServiceImpl(std::string rollout_id, JobSession* session)
      : rollout_id_(std::move(rollout_id)), session_(session) {}

  grpc::ServerWriteReactor<v1::GenerateResponse>* Generate(
      grpc::CallbackServerContext*, const v1::GenerateRequest* request) override {
    const int calls = ++calls_;
    const std::shared_ptr<GenerateCall> call = GenerateCall::Make(&calls_);
    const LoadedJob job = session_->loaded();
    if (calls > kMaxCalls) {
      call->Refuse(Error(absl::StatusCode::kResourceExhausted, "TOO_MANY_CALLS",
                         absl::StrCat("at most ", kMaxCalls, " calls at once")));
    } else if (job.engine == nullptr || !job.serving) {
      call->Refuse(Error(absl::StatusCode::kUnavailable, "NO_WEIGHTS",
                         "no weights are loaded: the learner has not given this server a job"));
    } else {
      call->Start(job, *request);
    }
    return call.get();
  }

  grpc::ServerUnaryReactor* GetServerInfo(grpc::CallbackServerContext* context,
                                          const v1::GetServerInfoRequest*,
                                          v1::ServerInfo* info) override {
    info->set_rollout_id(rollout_id_);
    info->set_build(BuildId());
    const LoadedJob job = session_->loaded();
    if (job.engine != nullptr) {
      const EngineStats stats = job.engine->stats();
      info->set_model_digest(job.bundle->digest);
      info->set_version(stats.version);
      info->set_kv_blocks_total(stats.kv_blocks_total);
      info->set_kv_blocks_free(stats.kv_blocks_free);
      info->set_sequences_running(stats.sequences_running);
      info->set_sequences_waiting(stats.sequences_waiting);
    }
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }

 private:
  const std::string rollout_id_;
  JobSession* const session_;
  std::atomic<int> calls_{0};
};

}  // namespace

std::unique_ptr<grpc::Service> MakeGenerationService(std::string rollout_id, JobSession* session) {
  return std::make_unique<GenerationServiceImpl>(std::move(rollout_id), session);
}

}  // namespace halfstep
