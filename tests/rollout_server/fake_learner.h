// SPDX-License-Identifier: Apache-2.0
// A learner that says what a test tells it to, over real gRPC on a loopback port, and remembers
// what it hears.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "common/model/fp32_parts.h"
#include "common/weight_sync/weight_set.h"
#include "halfstep/v1/rollout_coordination.pb.h"
#include "rollout_server/model_bundle.h"

namespace halfstep {

// The files of tests/rollout_server/tiny_model.h's model: one token per byte value, and <eos>.
std::vector<BundleFile> TinyModelFiles();

// Thread-safe.
class FakeLearner {
 public:
  // How weights are sent wrongly; each fault happens once.
  struct Faults {
    uint64_t cut_after_bytes = 0;  // ends the stream early, without an error
    bool gone_at_cut = false;      // or with NOT_FOUND, which a client does not try again
    bool flip_a_bit = false;
  };

  // Listens on `port` (0: any free one).
  explicit FakeLearner(int port = 0);
  ~FakeLearner();

  int port() const;
  std::string address() const;

  // What WeightService serves.
  void SetModel(std::vector<BundleFile> files);
  void AddWeights(std::shared_ptr<const WeightSet> weights);
  void SetFaults(const Faults& faults);
  // Offsets that FetchWeights was called with, in order.
  std::vector<uint64_t> fetch_offsets() const;
  int model_fetches() const;

  // Sends on the newest stream; false when there is none.
  bool Send(const v1::LearnerMessage& message);
  // Ends the newest stream with an error.
  void Disconnect();

  // The next message of the newest stream for which `wanted` holds; those before it are dropped.
  // Fails the test and returns an empty message when none comes within 20 seconds.
  v1::RolloutMessage Await(const std::string& what,
                           const std::function<bool(const v1::RolloutMessage&)>& wanted);

  // Answers Hello; returns it.
  v1::Hello Welcome();
  // Loads the tiny model under `epoch` and waits for JobLoaded.
  void LoadJob(uint64_t epoch, int64_t max_sequence_tokens = 64, const Fp32Parts& fp32 = {});
  void SendPrepare(uint64_t epoch, const WeightSet& weights);
  void SendCommit(uint64_t epoch, const WeightSet& weights);
  // Prepares, commits, and waits for Serving.
  void Serve(uint64_t epoch, const WeightSet& weights);

 private:
  struct State;
  class Coordination;
  class Weights;
  struct Server;
  const std::shared_ptr<State> state_;
  std::unique_ptr<Server> server_;
};

}  // namespace halfstep
