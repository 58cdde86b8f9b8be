// SPDX-License-Identifier: Apache-2.0
#include "common/rpc/guarded_service.h"

#include <google/protobuf/descriptor.h>
#include <grpcpp/impl/codegen/method_handler.h>
#include <grpcpp/impl/rpc_service_method.h>
#include <grpcpp/server_context.h>

#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/rpc/status.h"
#include "kernels/check.h"

namespace halfstep {
namespace {

CallerEvidence EvidenceOf(const grpc::ServerContextBase& context) {
  CallerEvidence evidence;
  const auto header = context.client_metadata().find("authorization");
  if (header != context.client_metadata().end()) {
    evidence.authorization.assign(header->second.data(), header->second.size());
  }
  const auto auth = context.auth_context();
  if (auth != nullptr && auth->IsPeerAuthenticated()) {
    for (const grpc::string_ref& name : auth->GetPeerIdentity()) {
      evidence.identities.emplace_back(name.data(), name.size());
    }
    for (const grpc::string_ref& name : auth->FindPropertyValues("x509_common_name")) {
      evidence.identities.emplace_back(name.data(), name.size());
    }
  }
  return evidence;
}

class GuardedHandler : public grpc::internal::MethodHandler {
 public:
  GuardedHandler(std::string method, MethodHandler* inner, const Authorizer* authorizer)
      : method_(std::move(method)), inner_(inner), authorizer_(authorizer) {}

  void RunHandler(const HandlerParameter& parameter) override {
    const absl::Status verdict = authorizer_->Check(method_, EvidenceOf(*parameter.server_context));
    if (verdict.ok()) return inner_->RunHandler(parameter);
    // With a failed status the generated handler releases the request and ends the call without
    // calling the service; the interceptor puts the verdict in place of the status it ends with.
    inner_->RunHandler(HandlerParameter(parameter.call, parameter.server_context, parameter.request,
                                        ToGrpcStatus(verdict), parameter.internal_data,
                                        parameter.call_requester));
  }

  void* Deserialize(grpc_call* call, grpc_byte_buffer* request, grpc::Status* status,
                    void** handler_data) override {
    return inner_->Deserialize(call, request, status, handler_data);
  }

 private:
  const std::string method_;
  MethodHandler* const inner_;
  const Authorizer* const authorizer_;
};

grpc::internal::RpcMethod::RpcType TypeOf(const google::protobuf::MethodDescriptor& method) {
  using grpc::internal::RpcMethod;
  if (method.client_streaming()) {
    return method.server_streaming() ? RpcMethod::BIDI_STREAMING : RpcMethod::CLIENT_STREAMING;
  }
  return method.server_streaming() ? RpcMethod::SERVER_STREAMING : RpcMethod::NORMAL_RPC;
}

class AuthInterceptor : public grpc::experimental::Interceptor {
 public:
  AuthInterceptor(const Authorizer* authorizer, grpc::experimental::ServerRpcInfo* info)
      : authorizer_(authorizer), info_(info) {}

  void Intercept(grpc::experimental::InterceptorBatchMethods* batch) override {
    using grpc::experimental::InterceptionHookPoints;
    if (batch->QueryInterceptionHookPoint(InterceptionHookPoints::PRE_SEND_STATUS)) {
      const absl::Status verdict =
          authorizer_->Check(info_->method(), EvidenceOf(*info_->server_context()));
      if (!verdict.ok()) batch->ModifySendStatus(ToGrpcStatus(verdict));
    }
    batch->Proceed();
  }

 private:
  const Authorizer* const authorizer_;
  grpc::experimental::ServerRpcInfo* const info_;
};

}  // namespace

GuardedService::GuardedService(grpc::Service* inner,
                               const google::protobuf::ServiceDescriptor& descriptor,
                               const Authorizer* authorizer) {
  HALFSTEP_CHECK(inner->has_callback_methods() && !inner->has_synchronous_methods() &&
                 !inner->has_async_methods());
  // GetHandler is protected; a member pointer named through this class reaches it in another
  // service.
  const auto get_handler = &GuardedService::GetHandler;
  for (int i = 0; i < descriptor.method_count(); ++i) {
    const google::protobuf::MethodDescriptor& method = *descriptor.method(i);
    const std::string name = absl::StrCat("/", descriptor.full_name(), "/", method.name());
    names_.push_back(name);
    AddMethod(new grpc::internal::RpcServiceMethod(names_.back().c_str(), TypeOf(method), nullptr));
    MarkMethodCallback(i, new GuardedHandler(name, (inner->*get_handler)(i), authorizer));
  }
}

grpc::experimental::Interceptor* AuthInterceptorFactory::CreateServerInterceptor(
    grpc::experimental::ServerRpcInfo* info) {
  const std::string method = info->method();
  if (absl::StartsWith(method, "/grpc.health.") || absl::StartsWith(method, "/grpc.reflection.")) {
    return nullptr;
  }
  return new AuthInterceptor(authorizer_, info);
}

}  // namespace halfstep
