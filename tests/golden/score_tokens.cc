// SPDX-License-Identifier: Apache-2.0
// Scores given tokens in FP32 with the learner's forward, for make_demo_golden.py to compare.
//
//   score_tokens MODEL_FOLDER < ROWS
//
// A row {"prompt": [ids], "response": [ids]} on each line of the input, {"log_probs": [...]} on
// each line of the output. Ids are those of the model; nothing else checks them.
#include <cstdint>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "tests/rollout_server/tiny_model.h"
#include "tests/testing/float32_weights.h"

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: score_tokens MODEL_FOLDER < ROWS\n";
    return 2;
  }
  const auto weights = halfstep::LoadFloat32Weights(argv[1]);
  if (!weights.ok()) {
    std::cerr << weights.status() << "\n";
    return 1;
  }
  std::vector<std::pair<std::vector<int32_t>, std::vector<int32_t>>> rows;
  for (std::string line; std::getline(std::cin, line);) {
    const auto row = nlohmann::json::parse(line);
    rows.emplace_back(row.at("prompt"), row.at("response"));
  }
  for (const auto& log_probs : halfstep::LearnerLogProbs(**weights, rows, 1.0f)) {
    std::cout << nlohmann::json{{"log_probs", log_probs}}.dump() << "\n";
  }
  return 0;
}
