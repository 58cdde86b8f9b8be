// SPDX-License-Identifier: Apache-2.0
// YAML to TrainingJobSpec by reflection: a key is a proto field, an enum value its suffix in lower
// case.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "common/base/error_reason.h"

namespace google::protobuf {
class Message;
}

namespace halfstep {

struct SourcePlace {
  int line = 0;  // from 1
  int column = 0;
};

// Where each field was written, by its path ("batch.samples").
using SourcePlaces = std::map<std::string, SourcePlace>;

struct ParseResult {
  // Every unknown or repeated key, wrong type, unknown enum value and number out of its type's
  // range, in the order of the text.
  std::vector<FieldViolation> violations;
  SourcePlaces places;
  // Fields that were evidently meant, though they could not be read: whoever misses one of them
  // need not say so.
  std::vector<std::string> meant;
};

// Fills `message` as far as the text can be understood. Text that is no YAML is one violation.
ParseResult ParseYaml(const std::string& text, google::protobuf::Message* message);

}  // namespace halfstep
