// SPDX-License-Identifier: Apache-2.0
// RendezvousStore: how ranks that are not connected yet find each other: small values by key, which
// every rank sees. Whoever has a channel between the ranks' processes implements it over that.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace halfstep {

// Thread-safe. Values are some hundred bytes; a key is written once.
class RendezvousStore {
 public:
  virtual ~RendezvousStore() = default;

  virtual absl::Status Set(const std::string& key, const std::string& value) = 0;

  // The value, as soon as somebody has set it. DEADLINE_EXCEEDED when nobody has by `deadline`.
  virtual absl::StatusOr<std::string> Get(const std::string& key, absl::Time deadline) = 0;
};

}  // namespace halfstep
