// SPDX-License-Identifier: Apache-2.0
#include "common/base/digest.h"

#include "gtest/gtest.h"

namespace halfstep {
namespace {

TEST(DigestTest, OfNothingIsTheKnownValueOfXxh3) {
  EXPECT_EQ(DigestOf("").Hex(), "99aa06d3014798d86001c324468d497f");
}

TEST(DigestTest, DoesNotDependOnHowTheBytesAreCut) {
  std::string data;
  for (int i = 0; i < 5000; ++i) data.push_back(static_cast<char>(i * 7));
  Digester digester;
  for (size_t at = 0; at < data.size();) {
    const size_t size = std::min<size_t>(at % 97, data.size() - at);
    digester.Update(data.data() + at, size);
    at += size == 0 ? (digester.Update(data.data() + at, 1), 1) : size;
  }
  EXPECT_EQ(digester.Finish(), DigestOf(data));
}

TEST(DigestTest, FinishMayBeFollowedByMore) {
  Digester digester;
  digester.Update("ab");
  EXPECT_EQ(digester.Finish(), DigestOf("ab"));
  digester.Update("c");
  EXPECT_EQ(digester.Finish(), DigestOf("abc"));
}

TEST(DigestTest, IntegersAreLittleEndian) {
  Digester digester;
  digester.UpdateInteger(0x0102030405060708);
  EXPECT_EQ(digester.Finish(), DigestOf("\x08\x07\x06\x05\x04\x03\x02\x01"));
}

TEST(DigestTest, SurvivesHexAndBytes) {
  const Digest digest = DigestOf("x");
  EXPECT_EQ(Digest::FromHex(digest.Hex()), digest);
  EXPECT_EQ(Digest::FromBytes(digest.Bytes()), digest);
}

TEST(DigestTest, RefusesWhatIsNotADigest) {
  EXPECT_FALSE(Digest::FromHex("12").has_value());
  EXPECT_FALSE(Digest::FromHex(std::string(32, 'g')).has_value());
  EXPECT_FALSE(Digest::FromBytes("short").has_value());
}

}  // namespace
}  // namespace halfstep
