// SPDX-License-Identifier: Apache-2.0
// Calls any method of a server by name, and lists what a server has by reflection.
#pragma once

#include <grpcpp/channel.h>
#include <grpcpp/support/status.h>

#include <memory>
#include <string>
#include <vector>

namespace halfstep {

// Sends one empty message and returns how the call ended.
grpc::Status CallWithEmptyMessage(const std::shared_ptr<grpc::Channel>& channel,
                                  const std::string& method, const std::string& authorization);

// Full names of all methods of the services that the server lists, in the form "/service/method".
std::vector<std::string> ListMethods(const std::shared_ptr<grpc::Channel>& channel);

}  // namespace halfstep
