// SPDX-License-Identifier: Apache-2.0
#include "common/trajectory/proto_convert.h"

#include <limits>

#include "common/base/error_reason.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "halfstep/v1/rollout_coordination.pb.h"
#include "halfstep/v1/trajectory.pb.h"

namespace halfstep {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

SamplingParams SomeSampling() {
  SamplingParams params;
  params.temperature = 0.75f;
  params.top_k = 5;
  params.top_p = 0.9f;
  params.min_p = 0.1f;
  params.max_new_tokens = 33;
  params.stop_token_ids = {2, 7};
  params.stop_strings = {"\n\n"};
  return params;
}

GroupAssignment SomeAssignment() {
  GroupAssignment assignment;
  assignment.job_epoch = 4;
  assignment.key = {Purpose::kEval, 12};
  assignment.prompt = {1, 2, 3};
  assignment.samples = 8;
  assignment.sampling = SomeSampling();
  assignment.seed = std::numeric_limits<uint64_t>::max();
  assignment.version = 9;
  return assignment;
}

KeyedSample SomeSample() {
  KeyedSample keyed;
  keyed.key = {Purpose::kTrain, 12};
  keyed.sample.index = 3;
  keyed.sample.tokens = {5, 6, 7};
  keyed.sample.log_probs = {-0.5f, -1e-30f, -7.25f};
  keyed.sample.versions = {{8, 1}, {9, 2}};
  keyed.sample.finish_reason = FinishReason::kLength;
  keyed.sample.queue_time = absl::Milliseconds(1500);
  keyed.sample.generation_time = absl::Nanoseconds(7);
  return keyed;
}

v1::Assign AssignProto() {
  v1::Assign proto;
  ToProto(SomeAssignment(), &proto);
  return proto;
}

v1::Sample SampleProto() {
  v1::Sample proto;
  ToProto(SomeSample(), &proto);
  return proto;
}

template <class Proto>
void ExpectRefused(const Proto& proto, const std::string& reason, const std::string& message) {
  const absl::Status status = FromProto(proto).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_EQ(ReasonOf(status), reason) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(message));
}

TEST(ProtoConvertTest, AssignmentSurvivesTheWire) {
  const GroupAssignment got = FromProto(AssignProto()).value();
  const GroupAssignment want = SomeAssignment();
  EXPECT_EQ(got.job_epoch, want.job_epoch);
  EXPECT_EQ(got.key, want.key);
  EXPECT_EQ(got.prompt, want.prompt);
  EXPECT_EQ(got.samples, want.samples);
  EXPECT_EQ(got.seed, want.seed);
  EXPECT_EQ(got.version, want.version);
  EXPECT_EQ(got.sampling.temperature, want.sampling.temperature);
  EXPECT_EQ(got.sampling.top_k, want.sampling.top_k);
  EXPECT_EQ(got.sampling.top_p, want.sampling.top_p);
  EXPECT_EQ(got.sampling.min_p, want.sampling.min_p);
  EXPECT_EQ(got.sampling.max_new_tokens, want.sampling.max_new_tokens);
  EXPECT_EQ(got.sampling.stop_token_ids, want.sampling.stop_token_ids);
  EXPECT_EQ(got.sampling.stop_strings, want.sampling.stop_strings);
}

TEST(ProtoConvertTest, SampleSurvivesTheWireToTheLastBit) {
  const KeyedSample got = FromProto(SampleProto()).value();
  const KeyedSample want = SomeSample();
  EXPECT_EQ(got.key, want.key);
  EXPECT_EQ(got.sample.index, want.sample.index);
  EXPECT_EQ(got.sample.tokens, want.sample.tokens);
  EXPECT_EQ(got.sample.log_probs, want.sample.log_probs);
  EXPECT_THAT(got.sample.versions, ElementsAre(VersionRun{8, 1}, VersionRun{9, 2}));
  EXPECT_EQ(got.sample.finish_reason, want.sample.finish_reason);
  EXPECT_EQ(got.sample.queue_time, want.sample.queue_time);
  EXPECT_EQ(got.sample.generation_time, want.sample.generation_time);
}

TEST(ProtoConvertTest, ASampleWithoutTokensIsPossible) {
  KeyedSample keyed = SomeSample();
  keyed.sample.tokens.clear();
  keyed.sample.log_probs.clear();
  keyed.sample.versions.clear();
  v1::Sample proto;
  ToProto(keyed, &proto);
  EXPECT_TRUE(FromProto(proto)->sample.tokens.empty());
  proto.clear_segments();
  EXPECT_TRUE(FromProto(proto)->sample.tokens.empty());
}

TEST(ProtoConvertTest, RefusesMalformedAssignments) {
  v1::Assign proto = AssignProto();
  proto.clear_purpose();
  ExpectRefused(proto, "MALFORMED_ASSIGNMENT", "no purpose");
  proto = AssignProto();
  proto.clear_prompt_tokens();
  ExpectRefused(proto, "MALFORMED_ASSIGNMENT", "empty prompt");
  proto = AssignProto();
  proto.set_prompt_tokens(0, -1);
  ExpectRefused(proto, "MALFORMED_ASSIGNMENT", "negative token id");
  for (const uint32_t samples : {0u, (1u << 24) + 1}) {
    proto = AssignProto();
    proto.set_samples(samples);
    ExpectRefused(proto, "MALFORMED_ASSIGNMENT", "samples");
  }
}

TEST(ProtoConvertTest, RefusesImpossibleSampling) {
  const auto refused = [](auto change, const std::string& message) {
    v1::Assign proto = AssignProto();
    change(proto.mutable_sampling());
    ExpectRefused(proto, "INVALID_SAMPLING", message);
  };
  refused([](v1::SamplingParams* p) { p->set_temperature(-1); }, "temperature");
  refused([](v1::SamplingParams* p) { p->set_temperature(NAN); }, "temperature");
  refused([](v1::SamplingParams* p) { p->set_top_k(-1); }, "top_k");
  refused([](v1::SamplingParams* p) { p->set_top_p(1.5); }, "top_p");
  refused([](v1::SamplingParams* p) { p->set_top_p(NAN); }, "top_p");
  refused([](v1::SamplingParams* p) { p->set_min_p(-0.5); }, "min_p");
  refused([](v1::SamplingParams* p) { p->set_max_new_tokens(0); }, "max_new_tokens");
  refused([](v1::SamplingParams* p) { p->add_stop_token_ids(-3); }, "stop token id");
  refused([](v1::SamplingParams* p) { p->add_stop_strings(std::string()); }, "empty stop string");
  refused(
      [](v1::SamplingParams* p) {
        for (int i = 0; i < 65; ++i) p->add_stop_strings(std::string("x"));
      },
      "more than 64");
}

TEST(ProtoConvertTest, AbsentTopPIsOff) {
  v1::SamplingParams proto;
  ToProto(SomeSampling(), &proto);
  proto.clear_top_p();
  EXPECT_EQ(FromProto(proto)->top_p, 1);
}

TEST(ProtoConvertTest, RefusesMalformedSamples) {
  v1::Sample proto = SampleProto();
  proto.clear_purpose();
  ExpectRefused(proto, "MALFORMED_SAMPLE", "purpose");
  proto = SampleProto();
  proto.clear_finish_reason();
  ExpectRefused(proto, "MALFORMED_SAMPLE", "finish reason");
  proto = SampleProto();
  proto.mutable_segments(0)->add_log_probs(-1);
  ExpectRefused(proto, "MALFORMED_SAMPLE", "3 tokens with 4 log-probs");
  proto = SampleProto();
  proto.mutable_segments(0)->set_tokens(1, -1);
  ExpectRefused(proto, "MALFORMED_SAMPLE", "negative token id");
  proto = SampleProto();
  proto.mutable_versions(0)->set_count(2);
  ExpectRefused(proto, "MALFORMED_SAMPLE", "version runs of 4 tokens for 3");
  proto = SampleProto();
  proto.add_versions();
  ExpectRefused(proto, "MALFORMED_SAMPLE", "run of no tokens");
}

TEST(ProtoConvertTest, SegmentsOfAnEnvironmentAreUnimplemented) {
  v1::Sample proto = SampleProto();
  proto.add_segments()->set_origin(v1::Segment::ORIGIN_ENVIRONMENT);
  EXPECT_EQ(FromProto(proto).status().code(), absl::StatusCode::kUnimplemented);
  proto = SampleProto();
  proto.mutable_segments(0)->set_origin(v1::Segment::ORIGIN_ENVIRONMENT);
  EXPECT_EQ(FromProto(proto).status().code(), absl::StatusCode::kUnimplemented);
}

TEST(TrajectoryTest, OutcomesAndReasonsHaveTheNamesOfTheMetrics) {
  EXPECT_STREQ(Name(RewardOutcome::kScore), "score");
  EXPECT_STREQ(Name(RewardOutcome::kUnscorable), "unscorable");
  EXPECT_STREQ(Name(RewardOutcome::kTimeout), "timeout");
  EXPECT_STREQ(Name(RewardOutcome::kError), "error");
  EXPECT_STREQ(Name(FinishReason::kStop), "stop");
  EXPECT_STREQ(Name(FinishReason::kLength), "length");
  EXPECT_STREQ(Name(FinishReason::kCancelled), "cancelled");
}

}  // namespace
}  // namespace halfstep
