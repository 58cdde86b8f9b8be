// SPDX-License-Identifier: Apache-2.0
// Command-line flags of servers and clients, spelt the same in every binary.
#pragma once

#include <string>

#include "common/rpc/channel.h"
#include "common/rpc/server.h"

namespace CLI {
class App;
}

namespace halfstep {

// --listen, --insecure, --tls-cert, --tls-key, --tls-client-ca, --identity-file, --token-file.
// `options` must outlive parsing.
void AddServerFlags(CLI::App& app, ServerOptions& options);

// --tls-ca, --tls-client-cert, --tls-client-key, --token-file, --insecure, for a client of `peer`,
// as help calls it. On an `app` that has AddServerFlags they get the prefix "PEER-".
void AddChannelFlags(CLI::App& app, ChannelOptions& options, const std::string& peer = "learner");

}  // namespace halfstep
