// SPDX-License-Identifier: Apache-2.0
#include "common/rpc/status.h"

#include <gtest/gtest.h>

#include "common/base/error_reason.h"

namespace halfstep {
namespace {

TEST(RpcStatusTest, ReasonMetadataAndViolationsSurviveTheWire) {
  absl::Status status = Error(absl::StatusCode::kInvalidArgument, "BAD_SPEC", "two mistakes");
  status = WithReason(status, {"BAD_SPEC", {{"file", "job.yaml"}}});
  status = WithFieldViolations(
      status, {{"batch.samples", "must be positive", 3, 4}, {"steps", "is required", 0, 0}});
  const absl::Status back = FromGrpcStatus(ToGrpcStatus(status));
  EXPECT_EQ(back.code(), status.code());
  EXPECT_EQ(back.message(), status.message());
  EXPECT_EQ(GetErrorReason(back)->reason, "BAD_SPEC");
  EXPECT_EQ(GetErrorReason(back)->metadata.at("file"), "job.yaml");
  ASSERT_EQ(GetFieldViolations(back).size(), 2u);
  EXPECT_EQ(GetFieldViolations(back)[0].field, "batch.samples");
  EXPECT_EQ(GetFieldViolations(back)[1].description, "is required");
}

TEST(RpcStatusTest, EveryErrorHasAReason) {
  EXPECT_EQ(ReasonOf(FromGrpcStatus(ToGrpcStatus(absl::NotFoundError("no")))), "NOT_FOUND");
}

TEST(RpcStatusTest, OkStaysOk) {
  EXPECT_TRUE(ToGrpcStatus(absl::OkStatus()).ok());
  EXPECT_TRUE(FromGrpcStatus(grpc::Status::OK).ok());
}

TEST(RpcStatusTest, ForeignStatusWithoutDetailsKeepsCodeAndMessage) {
  const absl::Status status =
      FromGrpcStatus(grpc::Status(grpc::StatusCode::UNAVAILABLE, "connection refused"));
  EXPECT_EQ(status, absl::UnavailableError("connection refused"));
}

TEST(RpcStatusTest, ViolationsAreCutToTheirBound) {
  std::vector<FieldViolation> violations(1000, {"field", std::string(1000, 'x'), 0, 0});
  const grpc::Status status =
      ToGrpcStatus(WithFieldViolations(absl::InvalidArgumentError("many"), violations));
  EXPECT_LT(status.error_details().size(), 40'000u);
  EXPECT_GT(GetFieldViolations(FromGrpcStatus(status)).size(), 20u);
}

}  // namespace
}  // namespace halfstep
