// SPDX-License-Identifier: Apache-2.0
// What one suite needs to run over every Communicator: how ranks that are threads form one, and
// tensors with known contents.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/collective/communicator.h"
#include "kernels/device.h"
#include "kernels/tensor.h"

namespace halfstep {

// Forms the communicator of one rank, on the thread that calls it.
using JoinRank = std::function<absl::StatusOr<std::unique_ptr<Communicator>>(int rank)>;

struct CollectiveBackend {
  std::string name;
  Device device = kCpuDevice;
  bool names_peers = true;    // errors say whom it was waited for
  bool in_rank_order = true;  // sums add in the tree over ranks
  // Ranks of one epoch, which must come within thirty seconds.
  std::function<JoinRank(int size, uint64_t epoch)> session;
};

inline std::ostream& operator<<(std::ostream& out, const CollectiveBackend& backend) {
  return out << backend.name;
}

// Instantiated by each backend's test.
class CollectiveSuite : public testing::TestWithParam<CollectiveBackend> {};

inline std::string BackendName(const testing::TestParamInfo<CollectiveBackend>& info) {
  return info.param.name;
}

inline CollectiveCall CallFor(const std::string& label,
                              absl::Duration patience = absl::Seconds(20)) {
  return {label, 7, absl::Now() + patience};
}

// Calls body(communicator) on a thread for each rank of a new epoch, and returns when all are done.
inline void OnRanks(const JoinRank& join, int size,
                    const std::function<void(Communicator&)>& body) {
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank) {
    threads.emplace_back([&join, &body, rank] {
      const auto communicator = join(rank);
      ASSERT_TRUE(communicator.ok()) << communicator.status();
      body(**communicator);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

// `count` elements in memory that the backend takes for its device's.
class Elements {
 public:
  Elements(DType dtype, int64_t count, Device device)
      : dtype_(dtype), count_(count), device_(device), bytes_(count * SizeOf(dtype) + 1) {}

  Tensor tensor() { return {bytes_.data(), dtype_, Shape{count_}, device_}; }
  char* at(int64_t element) { return bytes_.data() + element * SizeOf(dtype_); }
  std::vector<char> bytes() const { return {bytes_.begin(), bytes_.end() - 1}; }
  int64_t count() const { return count_; }

 private:
  DType dtype_;
  int64_t count_;
  Device device_;
  std::vector<char> bytes_;  // one more, so that none of nothing has an address too
};

// Element i of what `rank` contributes: of many magnitudes, so that the order of a sum shows.
inline float ValueOf(int rank, int64_t i) {
  uint32_t bits = static_cast<uint32_t>(i) * 2654435761u + static_cast<uint32_t>(rank) * 40503u;
  bits ^= bits >> 15;
  bits *= 2246822519u;
  bits ^= bits >> 13;
  const float magnitude = static_cast<float>(1 << (bits & 7)) * 0.125f;
  const float fraction = 1.0f + static_cast<float>((bits >> 8) & 0xffff) / 65536.0f;
  return (bits & 0x80000000u ? -magnitude : magnitude) * fraction;
}

template <class T>
Elements Contribution(int rank, int64_t count, Device device) {
  Elements elements(DTypeOf<T>::value, count, device);
  for (int64_t i = 0; i < count; ++i) {
    const T value = FromFloat<T>(ValueOf(rank, i));
    std::memcpy(elements.at(i), &value, sizeof(T));
  }
  return elements;
}

}  // namespace halfstep
