// SPDX-License-Identifier: Apache-2.0
#include "tests/common/rpc/generic_call.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/descriptor.pb.h>
#include <google/protobuf/dynamic_message.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include <chrono>

#include "absl/strings/str_cat.h"
#include "kernels/check.h"

namespace halfstep {
namespace {

constexpr char kReflection[] = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo";

// Sends `message` as the only one and collects the answers.
grpc::Status Exchange(const std::shared_ptr<grpc::Channel>& channel, const std::string& method,
                      const std::string& authorization, const std::string& message,
                      std::vector<std::string>* answers) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
  if (!authorization.empty()) context.AddMetadata("authorization", authorization);
  grpc::CompletionQueue queue;
  const auto wait = [&queue] {
    void* tag = nullptr;
    bool ok = false;
    HALFSTEP_CHECK(queue.Next(&tag, &ok));
    return ok;
  };
  grpc::GenericStub stub(channel);
  auto call = stub.PrepareCall(&context, method, &queue);
  call->StartCall(nullptr);
  if (wait()) {
    grpc::Slice slice(message);
    call->WriteLast(grpc::ByteBuffer(&slice, 1), grpc::WriteOptions(), nullptr);
    wait();
  }
  for (;;) {
    grpc::ByteBuffer buffer;
    call->Read(&buffer, nullptr);
    if (!wait()) break;
    grpc::Slice slice;
    HALFSTEP_CHECK(buffer.DumpToSingleSlice(&slice).ok());
    answers->emplace_back(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  grpc::Status status;
  call->Finish(&status, nullptr);
  wait();
  return status;
}

// One question to the reflection service, built through the descriptors that the server library
// registers.
std::unique_ptr<google::protobuf::Message> AskReflection(
    const std::shared_ptr<grpc::Channel>& channel, const std::string& field,
    const std::string& value) {
  const auto* pool = google::protobuf::DescriptorPool::generated_pool();
  auto* factory = google::protobuf::MessageFactory::generated_factory();
  const auto prototype = [&](const char* name) {
    return std::unique_ptr<google::protobuf::Message>(
        factory->GetPrototype(pool->FindMessageTypeByName(name))->New());
  };
  auto request = prototype("grpc.reflection.v1alpha.ServerReflectionRequest");
  request->GetReflection()->SetString(request.get(),
                                      request->GetDescriptor()->FindFieldByName(field), value);
  std::vector<std::string> answers;
  const grpc::Status status =
      Exchange(channel, kReflection, "", request->SerializeAsString(), &answers);
  HALFSTEP_CHECK(status.ok() && answers.size() == 1);
  auto response = prototype("grpc.reflection.v1alpha.ServerReflectionResponse");
  HALFSTEP_CHECK(response->ParseFromString(answers[0]));
  return response;
}

const google::protobuf::Message& Sub(const google::protobuf::Message& message, const char* field) {
  return message.GetReflection()->GetMessage(message,
                                             message.GetDescriptor()->FindFieldByName(field));
}

std::vector<std::string> ListServices(const std::shared_ptr<grpc::Channel>& channel) {
  const auto response = AskReflection(channel, "list_services", "*");
  const google::protobuf::Message& list = Sub(*response, "list_services_response");
  const auto* services = list.GetDescriptor()->FindFieldByName("service");
  std::vector<std::string> names;
  for (int i = 0; i < list.GetReflection()->FieldSize(list, services); ++i) {
    const auto& service = list.GetReflection()->GetRepeatedMessage(list, services, i);
    names.push_back(service.GetReflection()->GetString(
        service, service.GetDescriptor()->FindFieldByName("name")));
  }
  return names;
}

}  // namespace

grpc::Status CallWithEmptyMessage(const std::shared_ptr<grpc::Channel>& channel,
                                  const std::string& method, const std::string& authorization) {
  std::vector<std::string> answers;
  return Exchange(channel, method, authorization, "", &answers);
}

std::vector<std::string> ListMethods(const std::shared_ptr<grpc::Channel>& channel) {
  std::vector<std::string> methods;
  for (const std::string& service : ListServices(channel)) {
    const auto response = AskReflection(channel, "file_containing_symbol", service);
    const google::protobuf::Message& files = Sub(*response, "file_descriptor_response");
    const auto* field = files.GetDescriptor()->FindFieldByName("file_descriptor_proto");
    for (int i = 0; i < files.GetReflection()->FieldSize(files, field); ++i) {
      google::protobuf::FileDescriptorProto file;
      HALFSTEP_CHECK(
          file.ParseFromString(files.GetReflection()->GetRepeatedString(files, field, i)));
      for (const auto& candidate : file.service()) {
        if (absl::StrCat(file.package(), ".", candidate.name()) != service) continue;
        for (const auto& method : candidate.method()) {
          methods.push_back(absl::StrCat("/", service, "/", method.name()));
        }
      }
    }
  }
  return methods;
}

}  // namespace halfstep
