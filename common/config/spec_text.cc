// SPDX-License-Identifier: Apache-2.0
// Message -> tree -> text. Every JSON scalar is a YAML scalar, so both spellings share the tree.
#include "common/config/spec_text.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>

#include <map>
#include <nlohmann/json.hpp>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "common/config/enum_names.h"

namespace halfstep {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using Json = nlohmann::ordered_json;

Json ToTree(const Message& message);

Json ValueOf(const Message& message, const FieldDescriptor* field) {
  const google::protobuf::Reflection& reflection = *message.GetReflection();
  switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_MESSAGE:
      return ToTree(reflection.GetMessage(message, field));
    case FieldDescriptor::CPPTYPE_ENUM:
      return YamlName(*reflection.GetEnum(message, field));
    case FieldDescriptor::CPPTYPE_BOOL:
      return reflection.GetBool(message, field);
    case FieldDescriptor::CPPTYPE_INT64:
      return reflection.GetInt64(message, field);
    case FieldDescriptor::CPPTYPE_UINT64:
      return reflection.GetUInt64(message, field);
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return reflection.GetDouble(message, field);
    default:
      return reflection.GetString(message, field);
  }
}

Json ListOf(const Message& message, const FieldDescriptor* field) {
  const google::protobuf::Reflection& reflection = *message.GetReflection();
  Json list = Json::array();
  for (int i = 0; i < reflection.FieldSize(message, field); ++i) {
    if (field->cpp_type() == FieldDescriptor::CPPTYPE_DOUBLE) {
      list.push_back(reflection.GetRepeatedDouble(message, field, i));
    } else if (field->cpp_type() == FieldDescriptor::CPPTYPE_INT64) {
      list.push_back(reflection.GetRepeatedInt64(message, field, i));
    } else {
      list.push_back(reflection.GetRepeatedString(message, field, i));
    }
  }
  return list;
}

Json MapOf(const Message& message, const FieldDescriptor* field) {
  const google::protobuf::Reflection& reflection = *message.GetReflection();
  std::map<std::string, Json> sorted;
  for (int i = 0; i < reflection.FieldSize(message, field); ++i) {
    const Message& entry = reflection.GetRepeatedMessage(message, field, i);
    sorted[ValueOf(entry, field->message_type()->map_key()).get<std::string>()] =
        ValueOf(entry, field->message_type()->map_value());
  }
  Json map = Json::object();
  for (auto& [key, value] : sorted) map[key] = std::move(value);
  return map;
}

Json ToTree(const Message& message) {
  const google::protobuf::Reflection& reflection = *message.GetReflection();
  Json tree = Json::object();
  for (int i = 0; i < message.GetDescriptor()->field_count(); ++i) {
    const FieldDescriptor* field = message.GetDescriptor()->field(i);
    if (field->is_repeated()) {
      if (reflection.FieldSize(message, field) == 0) continue;
      tree[field->name()] = field->is_map() ? MapOf(message, field) : ListOf(message, field);
    } else if (reflection.HasField(message, field)) {
      tree[field->name()] = ValueOf(message, field);
    }
  }
  return tree;
}

// Whether YAML reads the text as itself without quotes.
bool IsPlain(const std::string& text) {
  static const char* const kReserved[] = {"true", "false", "null", "yes", "no",
                                          "on",   "off",   "y",    "n"};
  if (text.empty() || !absl::ascii_isalpha(static_cast<unsigned char>(text[0]))) return false;
  for (const char* word : kReserved) {
    if (absl::AsciiStrToLower(text) == word) return false;
  }
  for (const char c : text) {
    if (!absl::ascii_isalnum(static_cast<unsigned char>(c)) && c != '_' && c != '-' && c != '.' &&
        c != '/') {
      return false;
    }
  }
  return true;
}

std::string Scalar(const Json& value) {
  if (value.is_string() && IsPlain(value.get<std::string>())) return value.get<std::string>();
  return value.dump(-1, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace);
}

void AppendYaml(std::string& out, const Json& tree, int indent) {
  for (const auto& [key, value] : tree.items()) {
    absl::StrAppend(&out, std::string(indent, ' '), Scalar(key), ":");
    if (value.is_object() && !value.empty()) {
      out += "\n";
      AppendYaml(out, value, indent + 2);
    } else if (value.is_array()) {
      std::string list;
      for (const Json& item : value) absl::StrAppend(&list, list.empty() ? "" : ", ", Scalar(item));
      absl::StrAppend(&out, " [", list, "]\n");
    } else {
      absl::StrAppend(&out, " ", Scalar(value), "\n");
    }
  }
}

}  // namespace

std::string SpecToYaml(const Message& spec) {
  std::string out;
  AppendYaml(out, ToTree(spec), 0);
  return out;
}

std::string SpecToJson(const Message& spec) {
  return ToTree(spec).dump(2, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace);
}

}  // namespace halfstep
