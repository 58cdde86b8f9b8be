// SPDX-License-Identifier: Apache-2.0
// Names from the descriptors, so that a value is spelled in one place.
#include "common/config/enum_names.h"

#include <google/protobuf/descriptor.h>

#include "absl/strings/ascii.h"
#include "halfstep/v1/training_job.pb.h"

namespace halfstep {
namespace {

// "AlgorithmPreset" -> "ALGORITHM_PRESET_".
std::string PrefixOf(const google::protobuf::EnumDescriptor& type) {
  std::string prefix;
  for (const char c : type.name()) {
    if (absl::ascii_isupper(static_cast<unsigned char>(c)) && !prefix.empty()) prefix += '_';
    prefix += absl::ascii_toupper(static_cast<unsigned char>(c));
  }
  return prefix + "_";
}

template <class Enum>
std::string NameOf(Enum value) {
  const google::protobuf::EnumValueDescriptor* found =
      google::protobuf::GetEnumDescriptor<Enum>()->FindValueByNumber(value);
  return found == nullptr ? std::to_string(static_cast<int>(value)) : YamlName(*found);
}

}  // namespace

std::string YamlName(const google::protobuf::EnumValueDescriptor& value) {
  const std::string prefix = PrefixOf(*value.type());
  const std::string& name = value.name();
  return absl::AsciiStrToLower(name.rfind(prefix, 0) == 0 ? name.substr(prefix.size()) : name);
}

std::vector<std::string> YamlNames(const google::protobuf::EnumDescriptor& type) {
  std::vector<std::string> names;
  for (int i = 0; i < type.value_count(); ++i) {
    if (type.value(i)->number() != 0) names.push_back(YamlName(*type.value(i)));
  }
  return names;
}

std::string YamlName(v1::AlgorithmPreset value) { return NameOf(value); }
std::string YamlName(v1::LossScalePreset value) { return NameOf(value); }
std::string YamlName(v1::Objective value) { return NameOf(value); }
std::string YamlName(v1::Precision value) { return NameOf(value); }
std::string YamlName(v1::Profile value) { return NameOf(value); }
std::string YamlName(v1::RewardType value) { return NameOf(value); }
std::string YamlName(v1::Schedule value) { return NameOf(value); }
std::string YamlName(v1::TrainingJob_State value) { return NameOf(value); }

}  // namespace halfstep
