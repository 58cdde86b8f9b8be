// SPDX-License-Identifier: Apache-2.0
// The files of a model folder as they travel from the learner to its rollouts.
#pragma once

#include <string>

#include "common/base/digest.h"

namespace halfstep {

// The digest that LoadJob names and a rollout compares: over every file in the order sent.
class ModelFilesDigester {
 public:
  void Add(const std::string& name, const std::string& contents) {
    digester_.UpdateInteger(name.size());
    digester_.Update(name);
    digester_.UpdateInteger(contents.size());
    digester_.Update(contents);
  }
  // Hexadecimal.
  std::string Finish() const { return digester_.Finish().Hex(); }

 private:
  Digester digester_;
};

}  // namespace halfstep
