// SPDX-License-Identifier: Apache-2.0
// Command-line flags of servers and clients, spelt the same in every binary.
#pragma once

#include "common/rpc/channel.h"
#include "common/rpc/server.h"

namespace CLI {
class App;
}

namespace halfstep {

// --listen, --insecure, --tls-cert, --tls-key, --tls-client-ca, --identity-file, --token-file.
// `options` must outlive parsing.
void AddServerFlags(CLI::App& app, ServerOptions& options);

// --tls-ca, --tls-client-cert, --tls-client-key, --token-file, --insecure, for a client of the
// learner. Flags that `app` has already by AddServerFlags get the prefix "learner-".
void AddChannelFlags(CLI::App& app, ChannelOptions& options);

}  // namespace halfstep
