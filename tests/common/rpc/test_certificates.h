// SPDX-License-Identifier: Apache-2.0
// Certificates for tests, made on the spot so that none is stored and none expires.
#pragma once

#include <memory>
#include <string>

namespace halfstep {

struct PemPair {
  std::string certificate;
  std::string key;
};

// A certificate authority that lives for one test.
class TestAuthority {
 public:
  TestAuthority();
  ~TestAuthority();

  const std::string& certificate() const { return certificate_; }
  // For `common_name`, valid for 127.0.0.1 and localhost for an hour.
  PemPair Issue(const std::string& common_name) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
  std::string certificate_;
};

}  // namespace halfstep
