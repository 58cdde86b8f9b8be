// SPDX-License-Identifier: Apache-2.0
#include "common/rpc/endpoint.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/base/error_reason.h"

namespace halfstep {
namespace {

constexpr char kUnixPrefix[] = "unix:";

absl::Status BadAddress(const std::string& address) {
  return Error(absl::StatusCode::kInvalidArgument, "BAD_ADDRESS",
               absl::StrCat("'", address,
                            "' is not an address: expected host:port, [ipv6]:port or unix:path"));
}

absl::Status CannotListen(const Endpoint& endpoint, int error_number) {
  std::string way_out = "choose another address";
  if (error_number == EADDRINUSE) way_out = "stop what listens there, or use port 0 for a free one";
  if (error_number == EACCES) way_out = "use a port above 1023";
  if (error_number == EADDRNOTAVAIL) way_out = "use an address of this machine";
  const auto code =
      error_number == EACCES ? absl::StatusCode::kPermissionDenied : absl::StatusCode::kUnavailable;
  return WithReason(absl::Status(code, absl::StrCat("cannot listen on ", endpoint.ToString(), ": ",
                                                    std::strerror(error_number), "; ", way_out)),
                    {error_number == EADDRINUSE ? "ADDRESS_IN_USE" : "CANNOT_LISTEN",
                     {{"address", endpoint.ToString()}}});
}

}  // namespace

bool Endpoint::IsLoopback() const {
  if (is_unix || host == "localhost") return true;
  in_addr v4;
  if (inet_pton(AF_INET, host.c_str(), &v4) == 1) return ntohl(v4.s_addr) >> 24 == 127;
  in6_addr v6;
  return inet_pton(AF_INET6, host.c_str(), &v6) == 1 && IN6_IS_ADDR_LOOPBACK(&v6);
}

std::string Endpoint::ToString() const {
  if (is_unix) return kUnixPrefix + path;
  const bool v6 = host.find(':') != std::string::npos;
  return v6 ? absl::StrCat("[", host, "]:", port) : absl::StrCat(host, ":", port);
}

absl::StatusOr<Endpoint> ParseEndpoint(const std::string& address) {
  Endpoint endpoint;
  if (absl::StartsWith(address, kUnixPrefix)) {
    endpoint.is_unix = true;
    endpoint.path = address.substr(sizeof(kUnixPrefix) - 1);
    if (endpoint.path.empty()) return BadAddress(address);
    return endpoint;
  }
  const size_t colon = address.rfind(':');
  if (colon == std::string::npos || colon == 0) return BadAddress(address);
  endpoint.host = address.substr(0, colon);
  if (endpoint.host.front() == '[' && endpoint.host.back() == ']' && endpoint.host.size() > 2) {
    endpoint.host = endpoint.host.substr(1, endpoint.host.size() - 2);
  } else if (endpoint.host.find(':') != std::string::npos) {
    return BadAddress(address);
  }
  if (!absl::SimpleAtoi(address.substr(colon + 1), &endpoint.port) || endpoint.port < 0 ||
      endpoint.port > 65535) {
    return BadAddress(address);
  }
  return endpoint;
}

absl::Status ProbeListen(const Endpoint& endpoint) {
  if (endpoint.is_unix) return absl::OkStatus();
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  addrinfo* found = nullptr;
  const int problem =
      getaddrinfo(endpoint.host.c_str(), std::to_string(endpoint.port).c_str(), &hints, &found);
  if (problem != 0) {
    return WithReason(absl::InvalidArgumentError(absl::StrCat(
                          "cannot listen on ", endpoint.ToString(), ": ", gai_strerror(problem),
                          "; use an address of this machine, such as 127.0.0.1")),
                      {"BAD_ADDRESS", {{"address", endpoint.ToString()}}});
  }
  const int fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  int error_number = fd < 0 ? errno : 0;
  if (fd >= 0) {
    const int on = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, found->ai_addr, found->ai_addrlen) != 0 || listen(fd, 1) != 0) {
      error_number = errno;
    }
    close(fd);
  }
  freeaddrinfo(found);
  return error_number == 0 ? absl::OkStatus() : CannotListen(endpoint, error_number);
}

}  // namespace halfstep
