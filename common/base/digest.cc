// SPDX-License-Identifier: Apache-2.0
// XXH3-128 by libxxhash.
#include "common/base/digest.h"

#include <xxhash.h>

#include <cstring>
#include <new>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"

namespace halfstep {
namespace {

Digest Canonical(XXH128_hash_t hash) {
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, hash);
  Digest digest;
  std::memcpy(digest.bytes.data(), canonical.digest, digest.bytes.size());
  return digest;
}

}  // namespace

std::string Digest::Bytes() const {
  return std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

std::string Digest::Hex() const { return absl::BytesToHexString(Bytes()); }

std::optional<Digest> Digest::FromHex(const std::string& text) {
  if (text.size() != 32) return std::nullopt;
  for (const char c : text) {
    if (!absl::ascii_isxdigit(static_cast<unsigned char>(c))) return std::nullopt;
  }
  return FromBytes(absl::HexStringToBytes(text));
}

std::optional<Digest> Digest::FromBytes(const std::string& bytes) {
  Digest digest;
  if (bytes.size() != digest.bytes.size()) return std::nullopt;
  std::memcpy(digest.bytes.data(), bytes.data(), bytes.size());
  return digest;
}

void Digester::FreeState::operator()(XXH3_state_s* state) const { XXH3_freeState(state); }

Digester::Digester() : state_(XXH3_createState()) {
  if (state_ == nullptr) throw std::bad_alloc();
  XXH3_128bits_reset(state_.get());
}

Digester::Digester(Digester&&) noexcept = default;
Digester& Digester::operator=(Digester&&) noexcept = default;
Digester::~Digester() = default;

void Digester::Update(const void* data, size_t size) {
  if (size > 0) XXH3_128bits_update(state_.get(), data, size);
}

void Digester::UpdateInteger(uint64_t value) {
  uint8_t bytes[8];
  for (int i = 0; i < 8; ++i) bytes[i] = static_cast<uint8_t>(value >> (8 * i));
  Update(bytes, sizeof(bytes));
}

Digest Digester::Finish() const { return Canonical(XXH3_128bits_digest(state_.get())); }

Digest DigestOf(const void* data, size_t size) { return Canonical(XXH3_128bits(data, size)); }

Digest DigestOf(const std::string& text) { return DigestOf(text.data(), text.size()); }

}  // namespace halfstep
