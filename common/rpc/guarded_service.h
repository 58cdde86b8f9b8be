// SPDX-License-Identifier: Apache-2.0
// Puts the authorizer in front of every method of a callback service: a denied call never reaches
// the handler, whoever wrote it.
#pragma once

#include <grpcpp/impl/service_type.h>
#include <grpcpp/support/server_interceptor.h>

#include <deque>
#include <string>

#include "common/rpc/auth.h"

namespace google::protobuf {
class ServiceDescriptor;
}

namespace halfstep {

// Registered with the server in place of `inner`. Denied calls end through AuthInterceptorFactory,
// which the same server must have: gRPC lets a method handler end a call without its handler, and
// lets an interceptor say with which status.
class GuardedService : public grpc::Service {
 public:
  // `inner` serves `descriptor` with the callback API; it and `authorizer` must outlive this.
  GuardedService(grpc::Service* inner, const google::protobuf::ServiceDescriptor& descriptor,
                 const Authorizer* authorizer);

 private:
  std::deque<std::string> names_;  // gRPC keeps pointers to them
};

// Gives denied calls of guarded services the authorizer's status.
class AuthInterceptorFactory : public grpc::experimental::ServerInterceptorFactoryInterface {
 public:
  // `authorizer` must outlive the server.
  explicit AuthInterceptorFactory(const Authorizer* authorizer) : authorizer_(authorizer) {}
  // Nothing for health and reflection, which everybody may call.
  grpc::experimental::Interceptor* CreateServerInterceptor(
      grpc::experimental::ServerRpcInfo* info) override;

 private:
  const Authorizer* const authorizer_;
};

}  // namespace halfstep
