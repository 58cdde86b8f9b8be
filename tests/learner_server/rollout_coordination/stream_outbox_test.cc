// SPDX-License-Identifier: Apache-2.0
#include "learner_server/rollout_coordination/stream_outbox.h"

#include <gtest/gtest.h>

#include <optional>
#include <string>
#include <vector>

namespace halfstep {
namespace {

class FakeWriter final : public StreamWriter {
 public:
  void Write(const v1::LearnerMessage* message) override { written.push_back(*message); }
  void End(const absl::Status& why) override { ended = why; }
  void Cancel() override { ++cancelled; }

  std::vector<v1::LearnerMessage> written;
  std::optional<absl::Status> ended;
  int cancelled = 0;
};

v1::LearnerMessage Ack(uint64_t number) {
  v1::LearnerMessage message;
  message.mutable_ack()->set_sequence_number(number);
  return message;
}
v1::LearnerMessage Assign(uint64_t group) {
  v1::LearnerMessage message;
  message.mutable_assign()->set_group(group);
  return message;
}

class StreamOutboxTest : public ::testing::Test {
 protected:
  FakeWriter writer;
  StreamOutbox outbox{&writer, {4, 1000}};
};

TEST_F(StreamOutboxTest, WritesOneAfterAnother) {
  EXPECT_TRUE(outbox.Send(Assign(1)));
  EXPECT_TRUE(outbox.Send(Assign(2)));
  EXPECT_EQ(writer.written.size(), 1u);
  outbox.Written(true);
  ASSERT_EQ(writer.written.size(), 2u);
  EXPECT_EQ(writer.written[1].assign().group(), 2u);
  outbox.Written(true);
  EXPECT_EQ(writer.written.size(), 2u);
}

TEST_F(StreamOutboxTest, KeepsOnlyTheLastOfWaitingAcknowledgements) {
  for (uint64_t number = 1; number <= 100; ++number) EXPECT_TRUE(outbox.Send(Ack(number)));
  outbox.Written(true);
  ASSERT_EQ(writer.written.size(), 2u);
  EXPECT_EQ(writer.written[0].ack().sequence_number(), 1u);
  EXPECT_EQ(writer.written[1].ack().sequence_number(), 100u);
}

TEST_F(StreamOutboxTest, IsBoundedInMessagesAndBytes) {
  for (uint64_t i = 1; i <= 4; ++i) EXPECT_TRUE(outbox.Send(Assign(i)));
  EXPECT_FALSE(outbox.Send(Assign(5)));
  outbox.Written(true);
  EXPECT_TRUE(outbox.Send(Assign(5)));
  outbox.Written(true);
  v1::LearnerMessage large;
  large.mutable_load_job()->set_model_digest(std::string(2000, 'x'));
  EXPECT_FALSE(outbox.Send(large));
}

TEST_F(StreamOutboxTest, ClosesAfterWhatIsQueued) {
  EXPECT_TRUE(outbox.Send(Assign(1)));
  EXPECT_TRUE(outbox.Send(Assign(2)));
  outbox.Close(absl::AbortedError("replaced"));
  outbox.Close(absl::UnknownError("later"));
  EXPECT_FALSE(outbox.Send(Assign(3)));
  outbox.Written(true);
  EXPECT_FALSE(writer.ended);
  outbox.Written(true);
  ASSERT_TRUE(writer.ended);
  EXPECT_EQ(*writer.ended, absl::AbortedError("replaced"));
}

TEST_F(StreamOutboxTest, EndsWhenAWriteFails) {
  EXPECT_TRUE(outbox.Send(Assign(1)));
  EXPECT_TRUE(outbox.Send(Assign(2)));
  outbox.Written(false);
  EXPECT_EQ(writer.written.size(), 1u);
  ASSERT_TRUE(writer.ended);
  EXPECT_EQ(writer.ended->code(), absl::StatusCode::kUnavailable);
}

TEST_F(StreamOutboxTest, CancelsAWriteThatNeverEnds) {
  const absl::Time start = absl::UnixEpoch();
  EXPECT_TRUE(outbox.Send(Assign(1)));
  outbox.CancelIfStuck(start, absl::Seconds(5));
  outbox.Close(absl::AbortedError("full"));
  outbox.CancelIfStuck(start + absl::Seconds(60), absl::Seconds(5));
  EXPECT_EQ(writer.cancelled, 0) << "the grace starts with the close";
  outbox.CancelIfStuck(start + absl::Seconds(65), absl::Seconds(5));
  EXPECT_EQ(writer.cancelled, 1);
  outbox.Written(false);
  EXPECT_TRUE(writer.ended);
  outbox.CancelIfStuck(start + absl::Seconds(99), absl::Seconds(5));
  EXPECT_EQ(writer.cancelled, 1);
}

TEST_F(StreamOutboxTest, TouchesNothingAfterDetach) {
  outbox.Detach();
  EXPECT_FALSE(outbox.Send(Assign(1)));
  outbox.Close(absl::OkStatus());
  EXPECT_TRUE(writer.written.empty());
  EXPECT_FALSE(writer.ended);
}

}  // namespace
}  // namespace halfstep
