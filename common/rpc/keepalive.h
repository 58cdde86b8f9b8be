// SPDX-License-Identifier: Apache-2.0
// Keepalive of both sides in one place: a server ends connections that ping more often than it
// allows, so what clients send and servers accept must fit together.
#pragma once

#include <grpc/grpc.h>

#include <string>
#include <utility>
#include <vector>

namespace halfstep {

using ChannelArguments = std::vector<std::pair<std::string, int>>;

// Trailing metadata carries error details; gRPC's own limit of 8 KiB is too small for a list of
// mistakes.
inline constexpr int kMaxMetadataBytes = 64 * 1024;

inline ChannelArguments ClientKeepalive() {
  return {{GRPC_ARG_KEEPALIVE_TIME_MS, 30'000},
          {GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10'000},
          {GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1},
          {GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0},
          {GRPC_ARG_MAX_METADATA_SIZE, kMaxMetadataBytes}};
}

inline ChannelArguments ServerKeepalive() {
  return {{GRPC_ARG_KEEPALIVE_TIME_MS, 30'000},
          {GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10'000},
          {GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1},
          {GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0},
          {GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 20'000},
          {GRPC_ARG_MAX_METADATA_SIZE, kMaxMetadataBytes}};
}

}  // namespace halfstep
