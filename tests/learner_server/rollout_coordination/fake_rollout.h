// SPDX-License-Identifier: Apache-2.0
// A rollout server as a coordinator test plays it: it remembers what the learner sent and answers
// when told to, with valid samples unless told otherwise.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/model/model_config.h"
#include "common/model/parameter_buffer.h"
#include "common/trajectory/proto_convert.h"
#include "common/weight_sync/weight_set.h"
#include "halfstep/v1/rollout_coordination.pb.h"
#include "learner_server/rollout_coordination/rollout_coordinator.h"

namespace halfstep {

inline constexpr int64_t kVocabSize = 8;

inline std::shared_ptr<const WeightSet> TinyWeights(uint64_t version, float value = 0.5f) {
  ModelConfig config;
  config.vocab_size = kVocabSize;
  config.hidden_size = 4;
  config.intermediate_size = 4;
  config.layers = 1;
  config.heads = 1;
  config.kv_heads = 1;
  config.head_dim = 4;
  ParameterBuffer master(std::make_shared<const ParameterLayout>(config), DType::kFloat32,
                         "master");
  master.view(0).as<float>()[0] = value;
  const OwnedTensor rope("rope", DType::kFloat32, Shape{2, 2, 2});
  return WeightSet::Create(version, master, DType::kFloat16, rope.view());
}

class FakeOutbox final : public RolloutOutbox {
 public:
  bool Send(v1::LearnerMessage message) override {
    if (closed || messages.size() >= bound) return false;
    messages.push_back(std::move(message));
    return true;
  }
  void Close(const absl::Status& why) override {
    if (!closed) closed = why;
  }

  size_t bound = 100000;
  std::vector<v1::LearnerMessage> messages;
  std::optional<absl::Status> closed;
};

class FakeRollout {
 public:
  virtual ~FakeRollout() = default;

  struct Options {
    std::string id = "r";
    std::string incarnation = "1";
    std::string fingerprint = "bits";
    uint64_t groups = 1000;  // capacity
  };

  FakeRollout(RolloutCoordinator* coordinator, Options options)
      : coordinator_(coordinator), options_(std::move(options)) {}

  // Opens a stream and says Hello; whatever was held before is forgotten.
  void Attach() {
    outbox = std::make_shared<FakeOutbox>();
    session = coordinator_->Attach(outbox);
    SayHello();
  }
  void SayHello() {
    seen_ = 0;
    sequence_ = 0;
    finished_ = 0;
    groups.clear();
    sent_.clear();
    v1::RolloutMessage message;
    v1::Hello* hello = message.mutable_hello();
    hello->set_rollout_id(options_.id);
    hello->set_incarnation(options_.incarnation);
    hello->set_numerics_fingerprint(options_.fingerprint);
    Put(std::move(message));
  }
  void Restart() {
    options_.incarnation = absl::StrCat(std::stoi(options_.incarnation) + 1);
    Attach();
  }
  void Close() { coordinator_->OnClosed(session); }

  virtual void Put(v1::RolloutMessage message) {
    coordinator_->OnMessage(session, std::move(message));
  }

  // The next message not yet looked at, if any.
  const v1::LearnerMessage* Next() {
    return seen_ < outbox->messages.size() ? &outbox->messages[seen_++] : nullptr;
  }

  // Looks at everything that came and answers as a good server does, but for generating.
  void Obey() {
    while (const v1::LearnerMessage* message = Next()) Obey(v1::LearnerMessage(*message));
  }
  void Obey(const v1::LearnerMessage& in) {
    v1::RolloutMessage out;
    if (in.has_load_job()) {
      epoch = in.load_job().job_epoch();
      out.mutable_job_loaded()->set_job_epoch(epoch);
      Put(out);
      SendCredit();
    } else if (in.has_unload_job()) {
      while (!groups.empty()) Forget(groups.begin()->first);
      version = UINT64_MAX;
    } else if (in.has_prepare_weights()) {
      v1::WeightsReady* ready = out.mutable_weights_ready();
      ready->set_job_epoch(epoch);
      ready->mutable_weights()->set_version(in.prepare_weights().manifest().version());
      ready->mutable_weights()->set_manifest_digest(
          in.prepare_weights().manifest().manifest_digest());
      Put(out);
    } else if (in.has_commit_weights()) {
      if (!groups.empty()) committed_while_busy = true;
      out.mutable_serving()->set_job_epoch(epoch);
      *out.mutable_serving()->mutable_weights() = in.commit_weights().weights();
      version = in.commit_weights().weights().version();
      Put(out);
    } else if (in.has_assign()) {
      GroupAssignment assignment = *FromProto(in.assign());
      if (assignment.free) {
        assignment.version = version;  // which generates it
      } else if (assignment.version != version) {
        wrong_version = true;
      }
      groups[assignment.key] = assignment;
      ++assigned;
    } else if (in.has_abandon()) {
      for (const uint64_t ordinal : in.abandon().groups()) {
        const Purpose purpose =
            in.abandon().purpose() == v1::PURPOSE_EVAL ? Purpose::kEval : Purpose::kTrain;
        if (groups.contains({purpose, ordinal})) Forget({purpose, ordinal});
        ++abandoned;
      }
      SendCredit();
    } else if (in.has_ack()) {
      acknowledged = in.ack().sequence_number();
    } else if (in.has_released()) {
      released = true;
    }
  }

  static Sample GoodSample(const GroupAssignment& assignment, uint32_t index) {
    Sample sample;
    sample.index = index;
    sample.tokens = {1, 2, 3};
    sample.log_probs = {-0.5f, 0.0f, -1.0f};
    sample.versions = {{assignment.version, 3}};
    return sample;
  }

  // A good sample whose first token tells the stream that it was generated for.
  Sample Generate(const GroupAssignment& assignment, uint32_t index) const {
    Sample sample = GoodSample(assignment, index);
    sample.tokens[0] = static_cast<int32_t>(session % kVocabSize);
    return sample;
  }

  void SendSamples(std::vector<KeyedSample> samples) {
    v1::RolloutMessage message;
    message.mutable_samples()->set_job_epoch(epoch);
    message.mutable_samples()->set_sequence_number(++sequence_);
    for (const KeyedSample& sample : samples)
      ToProto(sample, message.mutable_samples()->add_samples());
    Put(std::move(message));
  }
  // Delivers one; the group is finished once all of its samples were. Keys come by value where the
  // entry that holds them may be erased.
  void SendSample(GroupKey key, uint32_t index) {
    const GroupAssignment assignment = groups.at(key);
    sent_[key].insert(index);
    const bool last = sent_[key].size() == assignment.samples;
    if (last) Forget(key);
    SendSamples({{key, Generate(assignment, index)}});
    if (last) SendCredit();
  }
  // Delivers every sample of a group it holds.
  void Finish(const GroupKey& key) {
    const GroupAssignment assignment = groups.at(key);
    std::vector<KeyedSample> samples;
    for (uint32_t i = 0; i < assignment.samples; ++i) {
      samples.push_back({key, Generate(assignment, i)});
    }
    Forget(key);
    SendSamples(std::move(samples));
    SendCredit();
  }
  void FinishAll() {
    while (!groups.empty()) Finish(groups.begin()->first);
  }
  void SendCredit() {
    v1::RolloutMessage message;
    message.mutable_credit()->set_job_epoch(epoch);
    message.mutable_credit()->set_total_groups(finished_ + options_.groups);
    Put(std::move(message));
  }
  // With `progress`, in seconds of its own clock, unless that is 0.
  void SendHeartbeat(int64_t progress = 0) {
    v1::RolloutMessage message;
    message.mutable_heartbeat();
    if (progress > 0) {
      message.mutable_heartbeat()->mutable_last_progress()->set_seconds(progress);
    }
    Put(std::move(message));
  }

  std::shared_ptr<FakeOutbox> outbox;
  SessionId session = 0;
  uint64_t epoch = 0;
  uint64_t version = UINT64_MAX;
  std::map<GroupKey, GroupAssignment> groups;  // held, assigned on this stream
  uint64_t acknowledged = 0;
  int assigned = 0;
  int abandoned = 0;
  bool released = false;
  bool wrong_version = false;
  bool committed_while_busy = false;

 private:
  void Forget(GroupKey key) {
    groups.erase(key);
    sent_.erase(key);
    ++finished_;
  }

  RolloutCoordinator* coordinator_;
  Options options_;
  std::map<GroupKey, std::set<uint32_t>> sent_;
  size_t seen_ = 0;
  uint64_t sequence_ = 0;
  uint64_t finished_ = 0;
};

// Remembers what it was given.
class RecordingSink final : public SampleSink {
 public:
  void OnSample(const GroupAssignment& assignment, const std::string& rollout_id,
                Sample sample) override {
    ++samples[{assignment.key, sample.index}];
    ++by_rollout[rollout_id];
    streams[assignment.key].insert(sample.tokens[0]);
  }
  void OnGroupLost(const GroupAssignment& assignment, const absl::Status& why) override {
    lost[assignment.key] = why;
  }

  std::map<std::pair<GroupKey, uint32_t>, int> samples;
  std::map<std::string, int> by_rollout;
  std::map<GroupKey, std::set<int32_t>> streams;  // that the samples of a group are of
  std::map<GroupKey, absl::Status> lost;
};

inline GroupKey Train(uint64_t ordinal) { return {Purpose::kTrain, ordinal}; }
inline GroupKey Eval(uint64_t ordinal) { return {Purpose::kEval, ordinal}; }

inline GroupAssignment TinyGroup(const GroupKey& key, uint64_t version, uint32_t samples = 2) {
  GroupAssignment group;
  group.job_epoch = 1;
  group.key = key;
  group.prompt = {1, 2};
  group.samples = samples;
  group.sampling.max_new_tokens = 4;
  group.version = version;
  return group;
}

inline RolloutJob TinyJob(Profile profile = Profile::kBitwise) {
  RolloutJob job;
  job.epoch = 1;
  job.files = {{"config.json", "{}"}};
  job.vocab_size = kVocabSize;
  job.profile = profile;
  job.max_sequence_tokens = 8;
  job.max_sequences = 16;
  return job;
}

}  // namespace halfstep
