// SPDX-License-Identifier: Apache-2.0
// How a specification's enums are written in YAML, metrics and messages: the part of the value's
// name after the enum's own, in lower case (ALGORITHM_PRESET_DR_GRPO is dr_grpo).
#pragma once

#include <string>
#include <vector>

namespace google::protobuf {
class EnumDescriptor;
class EnumValueDescriptor;
}  // namespace google::protobuf

namespace halfstep {

namespace v1 {
enum AlgorithmPreset : int;
enum LossScalePreset : int;
enum Objective : int;
enum Precision : int;
enum Profile : int;
enum RewardType : int;
enum Schedule : int;
enum TrainingJob_State : int;
}  // namespace v1

// "unspecified" for the zero value; the number itself for a value that this build does not know.
std::string YamlName(v1::AlgorithmPreset value);
std::string YamlName(v1::LossScalePreset value);
std::string YamlName(v1::Objective value);
std::string YamlName(v1::Precision value);
std::string YamlName(v1::Profile value);
std::string YamlName(v1::RewardType value);
std::string YamlName(v1::Schedule value);
std::string YamlName(v1::TrainingJob_State value);

// For code that works on descriptors.
std::string YamlName(const google::protobuf::EnumValueDescriptor& value);

// Every name but that of the zero value, in the order of the numbers.
std::vector<std::string> YamlNames(const google::protobuf::EnumDescriptor& type);

}  // namespace halfstep
