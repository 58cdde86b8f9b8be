// SPDX-License-Identifier: Apache-2.0
// A walk over the YAML tree and the message's descriptor side by side. It goes only where the
// schema goes, so that neither depth nor aliases of the text can make it run away.
#include "common/config/parse_spec.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>
#include <yaml-cpp/yaml.h>

#include <cmath>
#include <set>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/nearest.h"
#include "common/config/enum_names.h"

namespace halfstep {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

std::string Join(const std::string& path, const std::string& key) {
  return path.empty() ? key : absl::StrCat(path, ".", key);
}

// What stands in the text, for a message.
std::string Describe(const YAML::Node& node) {
  switch (node.Type()) {
    case YAML::NodeType::Scalar:
      return absl::StrCat("'", node.Scalar().substr(0, 80), "'");
    case YAML::NodeType::Sequence:
      return "a list";
    case YAML::NodeType::Map:
      return "a group of keys";
    default:
      return "nothing";
  }
}

bool IsQuoted(const YAML::Node& node) { return node.Tag() == "!"; }

class Parser {
 public:
  explicit Parser(ParseResult& result) : result_(result) {}

  void ReadMessage(const YAML::Node& node, const std::string& path, Message* message);

  void Add(const YAML::Mark& mark, const std::string& path, const std::string& description) {
    result_.violations.push_back({path, description, mark.line + 1, mark.column + 1});
    result_.meant.push_back(path);
  }

  // About the value of a key. A value that is missing has no place, so its key's is given.
  void AddValue(const YAML::Node& node, const std::string& path, const std::string& description) {
    Add(node.Mark(), path, description);
    const auto place = result_.places.find(path);
    if (!node.IsNull() || place == result_.places.end()) return;
    result_.violations.back().line = place->second.line;
    result_.violations.back().column = place->second.column;
  }

 private:
  void ReadKey(const YAML::Node& key, const YAML::Node& value, const std::string& path,
               Message* message);
  void ReadField(const YAML::Node& node, const std::string& path, const FieldDescriptor* field,
                 Message* message);
  void ReadList(const YAML::Node& node, const std::string& path, const FieldDescriptor* field,
                Message* message);
  void ReadMap(const YAML::Node& node, const std::string& path, const FieldDescriptor* field,
               Message* message);
  void ReadValue(const YAML::Node& node, const std::string& path, const FieldDescriptor* field,
                 Message* message);
  void ReadEnum(const YAML::Node& node, const std::string& path, const FieldDescriptor* field,
                Message* message);
  void ReadNumber(const YAML::Node& node, const std::string& path, const FieldDescriptor* field,
                  Message* message);

  void AddType(const YAML::Node& node, const std::string& path, const std::string& expected) {
    AddValue(node, path, absl::StrCat("'", path, "' takes ", expected, ", not ", Describe(node)));
  }

  ParseResult& result_;
};

void Parser::ReadMessage(const YAML::Node& node, const std::string& path, Message* message) {
  if (!node.IsMap()) {
    std::vector<std::string> keys;
    const Descriptor& type = *message->GetDescriptor();
    for (int i = 0; i < type.field_count(); ++i) keys.push_back(type.field(i)->name());
    const std::string name = path.empty() ? "a job" : absl::StrCat("'", path, "'");
    AddValue(
        node, path,
        absl::StrCat(name, " takes keys (", absl::StrJoin(keys, ", "), "), not ", Describe(node)));
    return;
  }
  std::set<std::string> seen;
  for (const auto& entry : node) {
    const std::string key = entry.first.IsScalar() ? entry.first.Scalar() : "";
    if (!seen.insert(key).second) {
      Add(entry.first.Mark(), Join(path, key),
          absl::StrCat("key '", Join(path, key), "' is given twice; keep one"));
      continue;
    }
    ReadKey(entry.first, entry.second, path, message);
  }
}

void Parser::ReadKey(const YAML::Node& key, const YAML::Node& value, const std::string& path,
                     Message* message) {
  if (!key.IsScalar()) {
    Add(key.Mark(), path, absl::StrCat("a key is a word, not ", Describe(key)));
    return;
  }
  const Descriptor& type = *message->GetDescriptor();
  const FieldDescriptor* field = type.FindFieldByName(key.Scalar());
  if (field != nullptr) {
    result_.places[Join(path, field->name())] = {key.Mark().line + 1, key.Mark().column + 1};
    ReadField(value, Join(path, field->name()), field, message);
    return;
  }
  std::vector<std::string> accepted;
  for (int i = 0; i < type.field_count(); ++i) accepted.push_back(type.field(i)->name());
  const std::string nearest = Nearest(key.Scalar(), accepted);
  const std::string full = Join(path, key.Scalar().substr(0, 80));
  const std::string where = path.empty() ? "accepted are " : absl::StrCat("'", path, "' takes ");
  Add(key.Mark(), full,
      absl::StrCat("unknown key '", full, "'",
                   nearest.empty() ? absl::StrCat("; ", where, absl::StrJoin(accepted, ", "))
                                   : absl::StrCat("; did you mean '", nearest, "'?")));
  if (!nearest.empty()) result_.meant.push_back(Join(path, nearest));
}

void Parser::ReadField(const YAML::Node& node, const std::string& path,
                       const FieldDescriptor* field, Message* message) {
  if (field->is_map()) return ReadMap(node, path, field, message);
  if (field->is_repeated()) return ReadList(node, path, field, message);
  if (field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
    return ReadMessage(node, path, message->GetReflection()->MutableMessage(message, field));
  }
  ReadValue(node, path, field, message);
}

void Parser::ReadList(const YAML::Node& node, const std::string& path, const FieldDescriptor* field,
                      Message* message) {
  if (!node.IsSequence()) {
    AddType(node, path, "a list, such as [a, b]");
    return;
  }
  for (const auto& item : node) ReadValue(item, path, field, message);
}

void Parser::ReadMap(const YAML::Node& node, const std::string& path, const FieldDescriptor* field,
                     Message* message) {
  if (!node.IsMap()) {
    AddType(node, path, "a group of 'key: value' lines");
    return;
  }
  const Descriptor& entry_type = *field->message_type();
  std::set<std::string> seen;
  for (const auto& entry : node) {
    if (!entry.first.IsScalar()) {
      Add(entry.first.Mark(), path, absl::StrCat("a key is a word, not ", Describe(entry.first)));
      continue;
    }
    const std::string key_path = Join(path, entry.first.Scalar());
    result_.places[key_path] = {entry.first.Mark().line + 1, entry.first.Mark().column + 1};
    if (!seen.insert(entry.first.Scalar()).second) {
      Add(entry.first.Mark(), key_path,
          absl::StrCat("key '", key_path, "' is given twice; keep one"));
      continue;
    }
    Message* added = message->GetReflection()->AddMessage(message, field);
    ReadValue(entry.first, key_path, entry_type.map_key(), added);
    ReadValue(entry.second, key_path, entry_type.map_value(), added);
  }
}

void Parser::ReadValue(const YAML::Node& node, const std::string& path,
                       const FieldDescriptor* field, Message* message) {
  const google::protobuf::Reflection& reflection = *message->GetReflection();
  switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_STRING:
      if (!node.IsScalar()) return AddType(node, path, "a text");
      if (field->is_repeated()) {
        reflection.AddString(message, field, node.Scalar());
      } else {
        reflection.SetString(message, field, node.Scalar());
      }
      return;
    case FieldDescriptor::CPPTYPE_BOOL:
      if (!node.IsScalar() || IsQuoted(node) ||
          (node.Scalar() != "true" && node.Scalar() != "false")) {
        return AddType(node, path, "true or false");
      }
      reflection.SetBool(message, field, node.Scalar() == "true");
      return;
    case FieldDescriptor::CPPTYPE_ENUM:
      return ReadEnum(node, path, field, message);
    default:
      return ReadNumber(node, path, field, message);
  }
}

void Parser::ReadEnum(const YAML::Node& node, const std::string& path, const FieldDescriptor* field,
                      Message* message) {
  const std::vector<std::string> accepted = YamlNames(*field->enum_type());
  const std::string expected = absl::StrJoin(accepted, ", ");
  if (!node.IsScalar()) return AddType(node, path, absl::StrCat("one of ", expected));
  for (int i = 0; i < field->enum_type()->value_count(); ++i) {
    const google::protobuf::EnumValueDescriptor* value = field->enum_type()->value(i);
    if (value->number() == 0 || node.Scalar() != YamlName(*value)) continue;
    message->GetReflection()->SetEnum(message, field, value);
    return;
  }
  Add(node.Mark(), path,
      absl::StrCat("'", path, "' takes one of ", expected, ", not ", Describe(node),
                   DidYouMean(node.Scalar(), accepted)));
}

// A whole number or a number, by the field's type; INT64 and UINT64 and DOUBLE are what the schema
// has.
void Parser::ReadNumber(const YAML::Node& node, const std::string& path,
                        const FieldDescriptor* field, Message* message) {
  const google::protobuf::Reflection& reflection = *message->GetReflection();
  const bool is_real = field->cpp_type() == FieldDescriptor::CPPTYPE_DOUBLE;
  double real = 0;
  const bool readable = node.IsScalar() && !IsQuoted(node) &&
                        absl::SimpleAtod(node.Scalar(), &real) && std::isfinite(real);
  if (is_real) {
    if (!readable) return AddType(node, path, "a number");
    if (field->is_repeated()) {
      reflection.AddDouble(message, field, real);
    } else {
      reflection.SetDouble(message, field, real);
    }
    return;
  }
  int64_t signed_value = 0;
  uint64_t unsigned_value = 0;
  if (readable && field->cpp_type() == FieldDescriptor::CPPTYPE_INT64 &&
      absl::SimpleAtoi(node.Scalar(), &signed_value)) {
    if (field->is_repeated()) {
      reflection.AddInt64(message, field, signed_value);
    } else {
      reflection.SetInt64(message, field, signed_value);
    }
  } else if (readable && field->cpp_type() == FieldDescriptor::CPPTYPE_UINT64 &&
             absl::SimpleAtoi(node.Scalar(), &unsigned_value)) {
    reflection.SetUInt64(message, field, unsigned_value);
  } else if (field->cpp_type() == FieldDescriptor::CPPTYPE_UINT64) {
    AddType(node, path, "a whole number from 0 to 18446744073709551615");
  } else {
    AddType(node, path, "a whole number");
  }
}

}  // namespace

ParseResult ParseYaml(const std::string& text, google::protobuf::Message* message) {
  ParseResult result;
  Parser parser(result);
  try {
    const std::vector<YAML::Node> documents = YAML::LoadAll(text);
    if (documents.empty()) {
      parser.Add(YAML::Mark(), "", "the file is empty; a job needs at least model, steps and data");
    } else if (documents.size() > 1) {
      parser.Add(documents[1].Mark(), "", "the file holds more than one document; keep one");
    } else {
      parser.ReadMessage(documents[0], "", message);
    }
  } catch (const YAML::Exception& error) {
    parser.Add(error.mark, "", absl::StrCat("not YAML: ", error.msg));
  }
  return result;
}

}  // namespace halfstep
