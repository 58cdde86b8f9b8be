// SPDX-License-Identifier: Apache-2.0
#include "tests/rollout_server/fake_learner.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <deque>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "common/base/utf8.h"
#include "common/weight_sync/weight_proto.h"
#include "halfstep/v1/rollout_coordination.grpc.pb.h"
#include "halfstep/v1/weights.grpc.pb.h"

namespace halfstep {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(20);
constexpr size_t kChunkBytes = 4096;

using AttachStream = grpc::ServerReaderWriter<v1::LearnerMessage, v1::RolloutMessage>;

}  // namespace

std::vector<BundleFile> TinyModelFiles() {
  nlohmann::json config = {{"architectures", {"Qwen3ForCausalLM"}},
                           {"model_type", "qwen3"},
                           {"vocab_size", 261},
                           {"hidden_size", 48},
                           {"intermediate_size", 80},
                           {"num_hidden_layers", 3},
                           {"num_attention_heads", 4},
                           {"num_key_value_heads", 2},
                           {"head_dim", 16},
                           {"max_position_embeddings", 512},
                           {"rms_norm_eps", 1e-6},
                           {"rope_theta", 10000.0},
                           {"hidden_act", "silu"},
                           {"attention_bias", false},
                           {"tie_word_embeddings", true}};
  nlohmann::json vocab;
  // Printable Latin-1 stands for itself, every other byte for a code point from 256 on.
  char32_t other = 256;
  for (int byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte != 173);
    std::string spelling;
    AppendUtf8(spelling, printable ? static_cast<char32_t>(byte) : other++);
    vocab[spelling] = byte == 0 ? 0 : byte + 1;
  }
  nlohmann::json tokenizer = {
      {"version", "1.0"},
      {"added_tokens",
       {{{"id", 1},
         {"content", "<eos>"},
         {"single_word", false},
         {"lstrip", false},
         {"rstrip", false},
         {"normalized", false},
         {"special", true}}}},
      {"normalizer", nullptr},
      {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}}},
      {"post_processor", nullptr},
      {"decoder", {{"type", "ByteLevel"}}},
      {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", nlohmann::json::array()}}}};
  return {{"config.json", config.dump()},
          {"tokenizer.json", tokenizer.dump()},
          {"generation_config.json", nlohmann::json({{"eos_token_id", 1}}).dump()}};
}

struct FakeLearner::State {
  absl::Mutex mutex;
  std::vector<BundleFile> files ABSL_GUARDED_BY(mutex);
  std::map<uint64_t, std::shared_ptr<const WeightSet>> weights ABSL_GUARDED_BY(mutex);
  Faults faults ABSL_GUARDED_BY(mutex);
  std::vector<uint64_t> fetch_offsets ABSL_GUARDED_BY(mutex);
  int model_fetches ABSL_GUARDED_BY(mutex) = 0;
  AttachStream* stream ABSL_GUARDED_BY(mutex) = nullptr;
  grpc::ServerContext* context ABSL_GUARDED_BY(mutex) = nullptr;
  std::deque<v1::RolloutMessage> heard ABSL_GUARDED_BY(mutex);
};

class FakeLearner::Coordination final : public v1::RolloutCoordinationService::Service {
 public:
  explicit Coordination(std::shared_ptr<State> state) : state_(std::move(state)) {}

  grpc::Status Attach(grpc::ServerContext* context, AttachStream* stream) override {
    {
      absl::MutexLock lock(&state_->mutex);
      state_->stream = stream;
      state_->context = context;
      state_->heard.clear();
    }
    v1::RolloutMessage message;
    while (stream->Read(&message)) {
      absl::MutexLock lock(&state_->mutex);
      if (state_->stream == stream) state_->heard.push_back(message);
    }
    absl::MutexLock lock(&state_->mutex);
    if (state_->stream == stream) {
      state_->stream = nullptr;
      state_->context = nullptr;
    }
    return grpc::Status::OK;
  }

 private:
  const std::shared_ptr<State> state_;
};

class FakeLearner::Weights final : public v1::WeightService::Service {
 public:
  explicit Weights(std::shared_ptr<State> state) : state_(std::move(state)) {}

  grpc::Status FetchWeights(grpc::ServerContext*, const v1::FetchWeightsRequest* request,
                            grpc::ServerWriter<v1::WeightChunk>* writer) override {
    std::shared_ptr<const WeightSet> weights;
    Faults faults;
    {
      absl::MutexLock lock(&state_->mutex);
      state_->fetch_offsets.push_back(request->offset());
      const auto it = state_->weights.find(request->version());
      if (it == state_->weights.end()) return {grpc::StatusCode::NOT_FOUND, "no such version"};
      weights = it->second;
      faults = std::exchange(state_->faults, {});
    }
    std::vector<uint8_t> bytes(weights->bytes().begin(), weights->bytes().end());
    if (faults.flip_a_bit) bytes[bytes.size() / 2] ^= 4;
    const uint64_t end = faults.cut_after_bytes > 0 ? faults.cut_after_bytes : bytes.size();
    for (uint64_t offset = request->offset(); offset < end; offset += kChunkBytes) {
      v1::WeightChunk chunk;
      chunk.set_offset(offset);
      chunk.set_data(bytes.data() + offset, std::min<uint64_t>(kChunkBytes, end - offset));
      if (!writer->Write(chunk)) break;
    }
    if (faults.gone_at_cut) return {grpc::StatusCode::NOT_FOUND, "the version is gone"};
    return grpc::Status::OK;
  }

  grpc::Status FetchModel(grpc::ServerContext*, const v1::FetchModelRequest*,
                          grpc::ServerWriter<v1::ModelFileChunk>* writer) override {
    std::vector<BundleFile> files;
    {
      absl::MutexLock lock(&state_->mutex);
      ++state_->model_fetches;
      files = state_->files;
    }
    for (const BundleFile& file : files) {
      for (size_t offset = 0; offset < file.contents.size(); offset += 100) {
        v1::ModelFileChunk chunk;
        if (offset == 0) chunk.set_file_name(file.name);
        chunk.set_data(file.contents.substr(offset, 100));
        writer->Write(chunk);
      }
    }
    return grpc::Status::OK;
  }

 private:
  const std::shared_ptr<State> state_;
};

struct FakeLearner::Server {
  std::unique_ptr<Coordination> coordination;
  std::unique_ptr<Weights> weights;
  std::unique_ptr<grpc::Server> server;
  int port = 0;
};

FakeLearner::FakeLearner(int port)
    : state_(std::make_shared<State>()), server_(std::make_unique<Server>()) {
  SetModel(TinyModelFiles());
  server_->coordination = std::make_unique<Coordination>(state_);
  server_->weights = std::make_unique<Weights>(state_);
  grpc::ServerBuilder builder;
  builder.AddListeningPort(absl::StrCat("127.0.0.1:", port), grpc::InsecureServerCredentials(),
                           &server_->port);
  builder.RegisterService(server_->coordination.get());
  builder.RegisterService(server_->weights.get());
  server_->server = builder.BuildAndStart();
  EXPECT_NE(server_->server, nullptr);
}

FakeLearner::~FakeLearner() { server_->server->Shutdown(std::chrono::system_clock::now()); }

int FakeLearner::port() const { return server_->port; }
std::string FakeLearner::address() const { return absl::StrCat("127.0.0.1:", port()); }

void FakeLearner::SetModel(std::vector<BundleFile> files) {
  absl::MutexLock lock(&state_->mutex);
  state_->files = std::move(files);
}

void FakeLearner::AddWeights(std::shared_ptr<const WeightSet> weights) {
  absl::MutexLock lock(&state_->mutex);
  const uint64_t version = weights->manifest().version;
  state_->weights[version] = std::move(weights);
}

void FakeLearner::SetFaults(const Faults& faults) {
  absl::MutexLock lock(&state_->mutex);
  state_->faults = faults;
}

std::vector<uint64_t> FakeLearner::fetch_offsets() const {
  absl::MutexLock lock(&state_->mutex);
  return state_->fetch_offsets;
}

int FakeLearner::model_fetches() const {
  absl::MutexLock lock(&state_->mutex);
  return state_->model_fetches;
}

bool FakeLearner::Send(const v1::LearnerMessage& message) {
  absl::MutexLock lock(&state_->mutex);
  return state_->stream != nullptr && state_->stream->Write(message);
}

void FakeLearner::Disconnect() {
  absl::MutexLock lock(&state_->mutex);
  if (state_->context != nullptr) state_->context->TryCancel();
  state_->stream = nullptr;
  state_->context = nullptr;
  state_->heard.clear();
}

v1::RolloutMessage FakeLearner::Await(
    const std::string& what, const std::function<bool(const v1::RolloutMessage&)>& wanted) {
  const absl::Time deadline = absl::Now() + kPatience;
  absl::MutexLock lock(&state_->mutex);
  auto some = [this]()
                  ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_->mutex) { return !state_->heard.empty(); };
  while (state_->mutex.AwaitWithDeadline(absl::Condition(&some), deadline)) {
    v1::RolloutMessage message = std::move(state_->heard.front());
    state_->heard.pop_front();
    if (wanted(message)) return message;
  }
  ADD_FAILURE() << "the rollout server did not send " << what;
  return {};
}

v1::Hello FakeLearner::Welcome() {
  const v1::RolloutMessage hello =
      Await("Hello", [](const v1::RolloutMessage& message) { return message.has_hello(); });
  v1::LearnerMessage message;
  message.mutable_welcome()->set_learner_incarnation("fake");
  message.mutable_welcome()->set_heartbeat_seconds(1);
  message.mutable_welcome()->set_timeout_seconds(60);
  EXPECT_TRUE(Send(message));
  return hello.hello();
}

void FakeLearner::LoadJob(uint64_t epoch, int64_t max_sequence_tokens, const Fp32Parts& fp32) {
  std::vector<BundleFile> files;
  {
    absl::MutexLock lock(&state_->mutex);
    files = state_->files;
  }
  v1::LearnerMessage message;
  v1::LoadJob* load = message.mutable_load_job();
  load->set_job_epoch(epoch);
  load->set_model_digest(BundleDigest(files));
  load->set_precision(v1::PRECISION_FP16);
  load->set_fp32_residual(fp32.residual);
  load->set_fp32_head(fp32.head);
  load->set_profile(v1::PROFILE_BITWISE);
  load->set_max_sequence_tokens(max_sequence_tokens);
  load->set_max_sequences(8);
  EXPECT_TRUE(Send(message));
  Await("JobLoaded", [epoch](const v1::RolloutMessage& heard) {
    return heard.has_job_loaded() && heard.job_loaded().job_epoch() == epoch;
  });
}

void FakeLearner::SendPrepare(uint64_t epoch, const WeightSet& weights) {
  v1::LearnerMessage message;
  message.mutable_prepare_weights()->set_job_epoch(epoch);
  ToProto(weights.manifest(), message.mutable_prepare_weights()->mutable_manifest());
  EXPECT_TRUE(Send(message));
}

void FakeLearner::SendCommit(uint64_t epoch, const WeightSet& weights) {
  v1::LearnerMessage message;
  message.mutable_commit_weights()->set_job_epoch(epoch);
  ToProto(weights.manifest().identity(), message.mutable_commit_weights()->mutable_weights());
  EXPECT_TRUE(Send(message));
}

void FakeLearner::Serve(uint64_t epoch, const WeightSet& weights) {
  SendPrepare(epoch, weights);
  Await("WeightsReady",
        [](const v1::RolloutMessage& message) { return message.has_weights_ready(); });
  SendCommit(epoch, weights);
  Await("Serving", [](const v1::RolloutMessage& message) { return message.has_serving(); });
}

}  // namespace halfstep
