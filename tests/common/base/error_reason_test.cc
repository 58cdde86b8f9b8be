// SPDX-License-Identifier: Apache-2.0
#include "common/base/error_reason.h"

#include "common/base/status_macros.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace halfstep {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::Pair;

TEST(ErrorReasonTest, IsReadBackWithMetadata) {
  const absl::Status status =
      WithReason(absl::NotFoundError("gone"),
                 {"VERSION_GONE", {{"version", "3"}, {"empty", ""}, {"odd", "1:2\n"}}});
  const auto reason = GetErrorReason(status);
  ASSERT_TRUE(reason.has_value());
  EXPECT_EQ(reason->reason, "VERSION_GONE");
  EXPECT_THAT(reason->metadata,
              ElementsAre(Pair("empty", ""), Pair("odd", "1:2\n"), Pair("version", "3")));
}

TEST(ErrorReasonTest, ErrorCarriesCodeReasonAndMessage) {
  const absl::Status status = Error(absl::StatusCode::kAborted, "DIVERGED", "20 skips in a row");
  EXPECT_EQ(status.code(), absl::StatusCode::kAborted);
  EXPECT_EQ(status.message(), "20 skips in a row");
  EXPECT_EQ(ReasonOf(status), "DIVERGED");
}

TEST(ErrorReasonTest, IsAbsentWhereNoneWasAttached) {
  EXPECT_FALSE(GetErrorReason(absl::InternalError("x")).has_value());
  EXPECT_EQ(ReasonOf(absl::OkStatus()), "");
  EXPECT_THAT(GetFieldViolations(absl::InternalError("x")), IsEmpty());
}

TEST(ErrorReasonTest, DoesNotTurnOkIntoAnError) {
  EXPECT_TRUE(WithReason(absl::OkStatus(), {"X", {}}).ok());
  EXPECT_TRUE(WithContext(absl::OkStatus(), "reading").ok());
}

TEST(ErrorReasonTest, FieldViolationsAreReadBackInOrder) {
  const FieldViolation first{"batch.samples", "must be above 1", 12, 3};
  const FieldViolation second{"model", "is required", 0, 0};
  const absl::Status status =
      WithFieldViolations(absl::InvalidArgumentError("2 mistakes"), {first, second});
  EXPECT_THAT(GetFieldViolations(status), ElementsAre(first, second));
}

TEST(ErrorReasonTest, ContextKeepsCodeReasonAndViolations) {
  const absl::Status status = WithContext(
      WithFieldViolations(Error(absl::StatusCode::kNotFound, "R", "no file"), {{"a", "b"}}),
      "loading model");
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(status.message(), "loading model: no file");
  EXPECT_EQ(ReasonOf(status), "R");
  EXPECT_EQ(GetFieldViolations(status).size(), 1u);
}

TEST(ErrorReasonTest, DamagedPayloadIsIgnored) {
  absl::Status status = absl::InternalError("x");
  status.SetPayload("type.halfstep.dev/reason", absl::Cord("99:short"));
  EXPECT_FALSE(GetErrorReason(status).has_value());
  status.SetPayload("type.halfstep.dev/field_violations", absl::Cord("1:a1:b1:x1:y"));
  EXPECT_THAT(GetFieldViolations(status), IsEmpty());
}

absl::StatusOr<int> Half(int value) {
  if (value % 2 != 0) return absl::InvalidArgumentError("odd");
  return value / 2;
}

absl::StatusOr<int> Quarter(int value) {
  HALFSTEP_ASSIGN_OR_RETURN(const int half, Half(value));
  HALFSTEP_ASSIGN_OR_RETURN(const int quarter, Half(half));
  return quarter;
}

absl::Status CheckQuarter(int value) {
  HALFSTEP_RETURN_IF_ERROR(Quarter(value).status());
  return absl::OkStatus();
}

TEST(StatusMacrosTest, PassErrorsUpAndValuesOn) {
  EXPECT_EQ(Quarter(8).value(), 2);
  EXPECT_EQ(Quarter(6).status().message(), "odd");
  EXPECT_TRUE(CheckQuarter(4).ok());
  EXPECT_FALSE(CheckQuarter(5).ok());
}

}  // namespace
}  // namespace halfstep
