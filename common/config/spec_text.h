// SPDX-License-Identifier: Apache-2.0
// A specification as text: stored with a run and shown to people.
#pragma once

#include <string>

namespace google::protobuf {
class Message;
}

namespace halfstep {

// YAML that LoadSpec reads back to an equal message. Keys in the order of the schema; what is
// absent is left out.
std::string SpecToYaml(const google::protobuf::Message& spec);

// The same tree as JSON, indented.
std::string SpecToJson(const google::protobuf::Message& spec);

}  // namespace halfstep
