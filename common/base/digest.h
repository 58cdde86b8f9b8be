// SPDX-License-Identifier: Apache-2.0
// XXH3-128 digests: fast, for detecting accidents, not for keeping secrets.
#pragma once

#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

struct XXH3_state_s;

namespace halfstep {

struct Digest {
  std::array<uint8_t, 16> bytes{};  // canonical form: big-endian

  std::string Hex() const;    // 32 lower-case digits
  std::string Bytes() const;  // the 16 bytes, as the wire carries them
  // Nothing unless `text` is 32 hexadecimal digits.
  static std::optional<Digest> FromHex(const std::string& text);
  // Nothing unless `bytes` has 16 bytes.
  static std::optional<Digest> FromBytes(const std::string& bytes);

  friend auto operator<=>(const Digest&, const Digest&) = default;
};

// Digest of a stream of bytes: the same however it is cut into updates. Not thread-safe.
class Digester {
 public:
  Digester();
  Digester(Digester&&) noexcept;
  Digester& operator=(Digester&&) noexcept;
  ~Digester();

  void Update(const void* data, size_t size);
  void Update(const std::string& text) { Update(text.data(), text.size()); }
  // A number in little-endian order, the same on every machine.
  void UpdateInteger(uint64_t value);

  // Of everything so far; more may follow.
  Digest Finish() const;

 private:
  struct FreeState {
    void operator()(XXH3_state_s* state) const;
  };
  std::unique_ptr<XXH3_state_s, FreeState> state_;
};

Digest DigestOf(const void* data, size_t size);
Digest DigestOf(const std::string& text);

}  // namespace halfstep
