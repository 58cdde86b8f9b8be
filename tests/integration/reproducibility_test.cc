// SPDX-License-Identifier: Apache-2.0
// One small job through the real binaries: whatever the number of rollouts and whoever is killed,
// the weights and the whole training state come out the same, to the last bit.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <regex>
#include <sstream>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "cli/child_process.h"
#include "tests/testing/temp_dir.h"

namespace halfstep {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

constexpr absl::Duration kPatience = absl::Seconds(200);
constexpr int kSteps = 6;
constexpr int kPrompts = 16;
constexpr int kSamples = 4;

std::string Environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "." : value;
}

class ReproducibilityTest : public ::testing::Test {
 protected:
  struct Options {
    int rollouts = 2;
    int lag = 0;
    std::string preset = "dr_grpo";
    std::string victim = "";  // the process to kill with SIGKILL in the middle; empty: none
  };

  void SetUp() override {
    const fs::path demo = fs::path(Environment("HALFSTEP_SOURCE_DIR")) / "deploy/examples/demo";
    for (const char* name : {"model", "train.jsonl"}) {
      fs::copy(demo / name, fs::path(dir_.path()) / name, fs::copy_options::recursive);
    }
  }

  // The figures that `halfstep train` prints at the end.
  nlohmann::json Run(const Options& options) {
    const std::string name = absl::StrCat("run-", ++runs_);
    std::ofstream(dir_ / (name + ".yaml"))
        << "model: model\noutput_dir: " << name << "\nsteps: " << kSteps
        << "\ndata: {train: train.jsonl}\nreward: {type: numeric}\n"
        << "algorithm: {preset: " << options.preset << "}\n"
        << "sampling: {max_new_tokens: 40}\nbatch: {prompts: " << kPrompts
        << ", samples: " << kSamples << ", lag: " << options.lag
        << "}\noptimizer: {learning_rate: 3e-4}\ncheckpoint: {every_steps: 2}\n";
    const std::string log = dir_ / (name + ".log");
    auto process = ChildProcess::Start(
        {Environment("HALFSTEP_BINARY_DIR") + "/bin/halfstep", "train", dir_ / (name + ".yaml"),
         "--root", dir_.path(), "--rollouts", absl::StrCat(options.rollouts), "--format", "json"},
        log);
    EXPECT_TRUE(process.ok()) << process.status();
    if (!options.victim.empty()) KillInTheMiddle(options.victim, log, *process);
    EXPECT_TRUE(process->WaitUntil(absl::Now() + kPatience)) << Read(log);
    const std::string text = Read(log);
    const std::string restart = options.victim + " ended with signal 9 (Killed); restarting it";
    if (!options.victim.empty()) {
      EXPECT_THAT(text, HasSubstr(restart));
    }
    EXPECT_EQ(process->how(), "exit code 0") << text;
    const size_t object = text.rfind("\n{");
    return nlohmann::json::parse(object == std::string::npos ? "" : text.substr(object), nullptr,
                                 /*allow_exceptions=*/false);
  }

  // Kills the victim when the third step is over; a rollout while it generates for a later one.
  void KillInTheMiddle(const std::string& victim, const std::string& log, ChildProcess& process) {
    const absl::Time deadline = absl::Now() + kPatience;
    const auto wait_until = [&](const std::function<bool()>& happened) {
      while (!happened() && absl::Now() < deadline && !process.Ended()) {
        std::this_thread::sleep_for(std::chrono::milliseconds(2));
      }
    };
    wait_until([&] { return Read(log).find("step 3/") != std::string::npos; });
    if (victim != "learner") {
      const auto ports = nlohmann::json::parse(Read(dir_ / ".halfstep/logs/" + victim + ".ports"));
      const std::string address = ports["http"];
      wait_until([&] { return IsGenerating(address); });
    }
    std::smatch match;
    const std::string text = Read(log);
    ASSERT_TRUE(std::regex_search(text, match, std::regex(victim + ": process ([0-9]+)"))) << text;
    ASSERT_EQ(kill(std::stoi(match[1]), SIGKILL), 0) << std::strerror(errno);
  }

  // What the rollout's metrics say.
  static bool IsGenerating(const std::string& http_address) {
    const std::string name = "\nhalfstep_rollout_num_requests_running ";
    const std::string page = HttpGet(http_address, "/metrics");
    const size_t at = page.find(name);
    return at != std::string::npos && std::atof(page.c_str() + at + name.size()) > 0;
  }

  // Of a server on loopback; empty when it does not answer.
  static std::string HttpGet(const std::string& address, const std::string& path) {
    sockaddr_in to = {};
    to.sin_family = AF_INET;
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    to.sin_port = htons(static_cast<uint16_t>(std::stoi(address.substr(address.rfind(':') + 1))));
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    std::string answer;
    if (connect(fd, reinterpret_cast<const sockaddr*>(&to), sizeof(to)) == 0) {
      const std::string request = absl::StrCat("GET ", path, " HTTP/1.0\r\n\r\n");
      if (write(fd, request.data(), request.size()) > 0) {
        char buffer[4096];
        for (ssize_t size; (size = read(fd, buffer, sizeof(buffer))) > 0;)
          answer.append(buffer, size);
      }
    }
    close(fd);
    return answer;
  }

  static std::string Read(const std::string& path) {
    std::ostringstream text;
    text << std::ifstream(path).rdbuf();
    return text.str();
  }

  static void ExpectExactAndComplete(const nlohmann::json& run) {
    EXPECT_EQ(run["state"], "succeeded");
    EXPECT_EQ(run["steps"], kSteps);
    EXPECT_EQ(run["max_abs_logprob_diff"], 0.0);
    EXPECT_GT(run["tokens_trained"], 0);
    int64_t samples = 0;
    for (const auto& [rollout, count] : run["samples_by_rollout"].items()) {
      samples += count.get<int64_t>();
    }
    EXPECT_EQ(samples, kSteps * kPrompts * kSamples);
  }

  static void ExpectEqual(const nlohmann::json& a, const nlohmann::json& b) {
    EXPECT_EQ(a["weights_digest"], b["weights_digest"]);
    EXPECT_EQ(a["state_digest"], b["state_digest"]);
    EXPECT_EQ(a["tokens_trained"], b["tokens_trained"]);
  }

  TempDir dir_;
  int runs_ = 0;
};

TEST_F(ReproducibilityTest, TheNumberOfRolloutsDoesNotMatter) {
  const auto one = Run({.rollouts = 1});
  ExpectExactAndComplete(one);
  EXPECT_EQ(one["tokens_compared"], one["tokens_trained"]);
  for (const int rollouts : {2, 3}) {
    const auto several = Run({.rollouts = rollouts});
    ExpectExactAndComplete(several);
    ExpectEqual(one, several);
    ASSERT_EQ(several["samples_by_rollout"].size(), static_cast<size_t>(rollouts));
    for (const auto& [rollout, count] : several["samples_by_rollout"].items()) {
      EXPECT_GE(count.get<int64_t>(), kSteps * kPrompts * kSamples / rollouts / 5) << rollout;
    }
  }
}

// Which prompts a batch takes follows from its scores.
TEST_F(ReproducibilityTest, WithDynamicSamplingToo) {
  const auto one = Run({.rollouts = 1, .preset = "dapo"});
  EXPECT_EQ(one["state"], "succeeded");
  EXPECT_EQ(one["max_abs_logprob_diff"], 0.0);
  int64_t samples = 0;
  for (const auto& [rollout, count] : one["samples_by_rollout"].items()) {
    samples += count.get<int64_t>();
  }
  EXPECT_GT(samples, kSteps * kPrompts * kSamples) << "some groups were replaced";
  ExpectEqual(one, Run({.rollouts = 3, .preset = "dapo"}));
}

TEST_F(ReproducibilityTest, AKilledRolloutDoesNotMatter) {
  const auto undisturbed = Run({});
  const auto disturbed = Run({.victim = "rollout-0"});
  ExpectExactAndComplete(disturbed);
  ExpectEqual(undisturbed, disturbed);
  EXPECT_GT(disturbed["groups_reassigned"], 0);
}

TEST_F(ReproducibilityTest, AKilledLearnerDoesNotMatter) {
  const auto undisturbed = Run({});
  const auto disturbed = Run({.victim = "learner"});
  ExpectExactAndComplete(disturbed);
  ExpectEqual(undisturbed, disturbed);
  EXPECT_GT(disturbed["groups_reassigned"], 0);
}

TEST_F(ReproducibilityTest, WithAScheduledLagToo) {
  const auto one = Run({.rollouts = 1, .lag = 1});
  const auto disturbed = Run({.rollouts = 2, .lag = 1, .victim = "learner"});
  EXPECT_EQ(disturbed["state"], "succeeded");
  ExpectEqual(one, disturbed);
  EXPECT_GT(disturbed["groups_reassigned"], 0);
}

}  // namespace
}  // namespace halfstep
