// SPDX-License-Identifier: Apache-2.0
#include "common/rpc/endpoint.h"

#include <gtest/gtest.h>

#include "common/base/error_reason.h"

namespace halfstep {
namespace {

TEST(EndpointTest, KnowsWhatOnlyThisMachineReaches) {
  for (const char* address : {"127.0.0.1:1", "127.255.0.3:1", "localhost:1", "[::1]:1",
                              "[0:0:0:0:0:0:0:1]:1", "unix:/tmp/socket"}) {
    EXPECT_TRUE(ParseEndpoint(address)->IsLoopback()) << address;
  }
  for (const char* address :
       {"0.0.0.0:1", "[::]:1", "128.0.0.1:1", "192.0.2.1:1", "127.evil.example:1",
        "127.0.0.1.example:1", "127.1:1", "localhost.example:1", "[::ffff:192.0.2.1]:1"}) {
    EXPECT_FALSE(ParseEndpoint(address)->IsLoopback()) << address;
  }
}

TEST(EndpointTest, RefusesWhatIsNoAddress) {
  for (const char* address :
       {"", "host", ":1", "host:", "host:x", "host:65536", "::1:80", "unix:"}) {
    EXPECT_EQ(ReasonOf(ParseEndpoint(address).status()), "BAD_ADDRESS") << address;
  }
}

}  // namespace
}  // namespace halfstep
