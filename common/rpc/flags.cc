// SPDX-License-Identifier: Apache-2.0
#include "common/rpc/flags.h"

#include <CLI/CLI.hpp>

#include <string>

namespace halfstep {

void AddServerFlags(CLI::App& app, ServerOptions& options) {
  app.add_option("--listen", options.listen,
                 "Address to listen on: host:port (0: a free one) or unix:path")
      ->capture_default_str();
  app.add_flag("--insecure", options.insecure,
               "Allow addresses that other machines reach without TLS and credentials, metrics "
               "included");
  app.add_option("--tls-cert", options.tls_cert_file, "PEM file of the server's certificate chain");
  app.add_option("--tls-key", options.tls_key_file, "PEM file of its private key");
  app.add_option("--tls-client-ca", options.tls_client_ca_file,
                 "PEM file of the authorities of client certificates, which become mandatory");
  app.add_option("--identity-file", options.identity_file,
                 "File of lines 'role name': the role of each client certificate's name");
  app.add_option("--token-file", options.token_file,
                 "File of lines 'role token' (admin, submitter, viewer, rollout)");
}

void AddChannelFlags(CLI::App& app, ChannelOptions& options, const std::string& peer) {
  const bool taken = app.get_option_no_throw("--token-file") != nullptr;
  const std::string prefix = taken ? "--" + peer + "-" : "--";
  app.add_option(prefix + "tls-ca", options.tls_ca_file,
                 "PEM file of the authorities of the " + peer + "'s certificate; switches TLS on");
  app.add_option(prefix + "tls-client-cert", options.tls_cert_file,
                 "PEM file of the certificate to show to the " + peer);
  app.add_option(prefix + "tls-client-key", options.tls_key_file, "PEM file of its private key");
  app.add_option(prefix + "token-file", options.token_file,
                 "File whose first line is the bearer token for the " + peer);
  app.add_flag(prefix + "insecure", options.insecure,
               "Allow a token to travel unencrypted to another machine");
}

}  // namespace halfstep
