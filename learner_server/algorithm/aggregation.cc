// SPDX-License-Identifier: Apache-2.0
#include "learner_server/algorithm/aggregation.h"

#include "kernels/check.h"

namespace halfstep {

const char* Name(Aggregation aggregation) {
  switch (aggregation) {
    case Aggregation::kTokenMean:
      return "token_mean";
    case Aggregation::kSequenceMeanTokenMean:
      return "sequence_mean_token_mean";
    case Aggregation::kSequenceMeanTokenSum:
      return "sequence_mean_token_sum";
    case Aggregation::kSequenceMeanTokenSumNorm:
      return "sequence_mean_token_sum_norm";
  }
  return "?";
}

double TokenWeight(Aggregation aggregation, const LossDenominators& denominators,
                   int64_t sequence_tokens) {
  HALFSTEP_CHECK_GT(denominators.tokens, 0);
  HALFSTEP_CHECK_GT(denominators.sequences, 0);
  HALFSTEP_CHECK_GT(denominators.constant_length, 0);
  HALFSTEP_CHECK_GT(sequence_tokens, 0);
  const double sequences = static_cast<double>(denominators.sequences);
  switch (aggregation) {
    case Aggregation::kTokenMean:
      return 1.0 / static_cast<double>(denominators.tokens);
    case Aggregation::kSequenceMeanTokenMean:
      return 1.0 / (sequences * static_cast<double>(sequence_tokens));
    case Aggregation::kSequenceMeanTokenSum:
      return 1.0 / sequences;
    case Aggregation::kSequenceMeanTokenSumNorm:
      return 1.0 / (sequences * static_cast<double>(denominators.constant_length));
  }
  return 0;
}

}  // namespace halfstep
