// SPDX-License-Identifier: Apache-2.0
// Corrections of the difference between the policy that generated a response (mu, in the rollout)
// and the learner's: a factor of each token's loss, held constant.
//
// d = log pi - log mu of a token, pi the learner's policy at the start of the batch's training or,
// for policy_gradient, the current one. Exponents are clamped to +-kLogRatioLimit.
//
// A masked token's factor is exactly 0, and the token stays in the denominators of aggregation.h:
// the masks are factors inside a mean over all that was sampled, as in the papers, and with the
// current policy in d they are known only after the forward pass, when the denominators have long
// been fixed. (verl takes what geometric, k3 and veto masks reject out of its token counts; TRL
// does not.)
#pragma once

#include <cstdint>
#include <span>

#include "learner_server/algorithm/log_ratio.h"

namespace halfstep {

enum class CorrectionKind {
  kNone,      // 1
  kTokenIs,   // e^d
  kTokenTis,  // min(e^d, cap): truncated importance sampling, fengyao.notion.site/off-policy-rl
  // With D = the sum of d over the response, the same for all of its tokens:
  kSequenceIs,   // e^D, arXiv 2510.26788
  kSequenceTis,  // min(e^D, cap)
  kSequenceMis,  // e^D if it is at most cap, else 0, richardli.xyz/rl-collapse
  kIcePop,       // e^d if low <= e^d <= high, else 0, arXiv 2510.18855
  // Of whole responses, 1 or 0:
  kGeometricMask,  // low <= e^(mean of d) <= high, verl's seq_mean_k1
  kK3Mask,         // mean of e^d - 1 - d at most k3_limit, verl's seq_mean_k3
  kVeto,           // every e^d at least min_ratio, miles
};

// "none", "token_is", "token_tis", "sequence_is", "sequence_tis", "sequence_mis", "icepop",
// "geometric_mask", "k3_mask", "veto".
const char* Name(CorrectionKind kind);

// Whether all tokens of a response have the same factor.
bool IsSequenceLevel(CorrectionKind kind);

// Fields that a kind does not name are not read.
struct CorrectionOptions {
  CorrectionKind kind = CorrectionKind::kNone;
  double cap = 2;
  double low = 0.5;
  double high = 5;
  double k3_limit = 0.01;
  double min_ratio = 1e-4;
  bool normalize = false;  // divide the factors by their mean over the step
};

// With the bounds in use by its authors: cap 2 for token_tis, 3 for sequence_tis and sequence_mis;
// 0.5 and 5 for icepop; 0.999 and 1.001 for geometric_mask; 0.01 for k3_mask; 1e-4 for veto.
CorrectionOptions DefaultCorrection(CorrectionKind kind);

struct CorrectionMetrics {
  double mean = 1;  // of the factors over tokens
  double max = 1;
  double effective_sample_size = 1;  // (mean w)^2 / mean(w^2) over tokens; 0 when all are masked
  double masked_share = 0;           // of the tokens
};

// Of a step's factors before normalisation. Not thread-safe.
class CorrectionStatistics {
 public:
  // The factors of one response.
  void Add(std::span<const double> weights);
  CorrectionMetrics Summarize() const;
  // What to multiply the factors of the step by: 1, or with `normalize` the reciprocal of their
  // mean over tokens or, for sequence-level kinds, over responses; 1 when all are masked.
  double Scale(const CorrectionOptions& options) const;

 private:
  int64_t tokens_ = 0;
  int64_t sequences_ = 0;
  int64_t masked_ = 0;
  double sum_ = 0;
  double squares_ = 0;
  double sequence_sum_ = 0;  // of the mean factor of each response
  double max_ = 0;
};

// Writes the factor of each token of one response to `weights`. All three have the same length;
// `learner` are log pi, `behaviour` are log mu.
void CorrectionWeights(const CorrectionOptions& options, std::span<const float> learner,
                       std::span<const float> behaviour, std::span<double> weights);

}  // namespace halfstep
