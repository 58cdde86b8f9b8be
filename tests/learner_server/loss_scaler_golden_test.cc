// SPDX-License-Identifier: Apache-2.0
// The scaler against traces of the published ones (tests/golden/make_loss_scaler_golden.py).
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "common/base/error_reason.h"
#include "learner_server/training/loss_scaler.h"

namespace halfstep {
namespace {

using Json = nlohmann::json;

// "12a1s" as one outcome per update.
std::vector<bool> ExpandOutcomes(const std::string& runs) {
  std::vector<bool> outcomes;
  int count = 0;
  for (const char c : runs) {
    if (c >= '0' && c <= '9') {
      count = count * 10 + (c - '0');
    } else {
      outcomes.insert(outcomes.end(), count, c == 's');
      count = 0;
    }
  }
  return outcomes;
}

LossScaleOptions OptionsOf(const Json& json) {
  LossScaleOptions options;
  options.initial = json.at("initial");
  options.growth = json.at("growth");
  options.backoff = json.at("backoff");
  options.interval = json.at("interval");
  options.hysteresis = json.at("hysteresis");
  options.minimum = json.at("minimum");
  options.maximum = 0;
  return options;
}

class LossScalerGoldenTest : public testing::TestWithParam<const char*> {
 protected:
  static Json Traces() {
    const std::string path = std::string(std::getenv("HALFSTEP_SOURCE_DIR")) +
                             "/tests/golden/loss_scaler/" + GetParam() + ".json";
    std::ifstream in(path);
    EXPECT_TRUE(in) << path;
    return Json::parse(in);
  }
};

TEST_P(LossScalerGoldenTest, PresetHasThePublishedNumbers) {
  const LossScaleOptions published = OptionsOf(Traces()[0].at("options"));
  const LossScaleOptions preset = *LossScalePreset(GetParam());
  EXPECT_EQ(preset.initial, published.initial);
  EXPECT_EQ(preset.growth, published.growth);
  EXPECT_EQ(preset.backoff, published.backoff);
  EXPECT_EQ(preset.interval, published.interval);
  EXPECT_EQ(preset.hysteresis, published.hysteresis);
  if (published.minimum != 0) {
    EXPECT_EQ(preset.minimum, published.minimum);
  }
}

TEST_P(LossScalerGoldenTest, EveryScaleOfEveryTraceIsTheSame) {
  for (const Json& trace : Traces()) {
    LossScaler scaler(OptionsOf(trace.at("options")));
    const std::vector<bool> outcomes = ExpandOutcomes(trace.at("outcomes"));
    const Json& changes = trace.at("changes");
    ASSERT_EQ(scaler.scale(), changes[0][1]);
    size_t next = 1;
    for (size_t update = 1; update <= outcomes.size(); ++update) {
      const absl::Status status = scaler.Update(outcomes[update - 1]);
      if (next < changes.size() && changes[next][0] == update) ++next;
      ASSERT_EQ(scaler.scale(), changes[next - 1][1])
          << trace.at("options") << " after " << update << " updates of " << trace.at("outcomes");
      // Whether so many overflows are divergence is a question of ours; the floor is theirs too.
      if (trace.at("raised_at") == update) {
        EXPECT_EQ(ReasonOf(status), "LOSS_SCALE_FLOOR") << trace.at("outcomes");
      } else if (!trace.at("raised_at").is_null()) {
        EXPECT_NE(ReasonOf(status), "LOSS_SCALE_FLOOR") << update << trace.at("outcomes");
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Published, LossScalerGoldenTest,
                         testing::Values("default", "torch", "deepspeed", "megatron"),
                         [](const auto& preset) { return std::string(preset.param); });

TEST(LossScalerTracesTest, DeepSpeedTraceReachesTheFloor) {
  const std::string path =
      std::string(std::getenv("HALFSTEP_SOURCE_DIR")) + "/tests/golden/loss_scaler/deepspeed.json";
  std::ifstream in(path);
  int raised = 0;
  for (const Json& trace : Json::parse(in)) raised += !trace.at("raised_at").is_null();
  EXPECT_GT(raised, 0);
}

}  // namespace
}  // namespace halfstep
