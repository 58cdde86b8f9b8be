// SPDX-License-Identifier: Apache-2.0
#include "kernels/reference/attention.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

namespace halfstep::reference {
namespace {

// One query of one head: its row, the rows of the keys it sees, and their probabilities.
struct Query {
  int64_t head;
  int64_t kv_head;
  int64_t token;
  int64_t first_key;
  std::vector<double> p;  // of keys first_key ... token
  double lse;
};

const double* At(ConstTensor x, int64_t token, int64_t head) {
  return x.as<double>() + (token * x.dim(1) + head) * x.dim(2);
}
double* At(Tensor x, int64_t token, int64_t head) {
  return x.as<double>() + (token * x.dim(1) + head) * x.dim(2);
}

double Dot(const double* a, const double* b, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

void Softmax(Query& query) {
  const double largest = *std::max_element(query.p.begin(), query.p.end());
  double sum = 0;
  for (double& p : query.p) sum += p = std::exp(p - largest);
  for (double& p : query.p) p /= sum;
  query.lse = largest + std::log(sum);
}

void ForEachQuery(const PackedAttention& in, const std::function<void(const Query&)>& visit) {
  const int32_t* starts = in.cu_seqlens.as<int32_t>();
  const int64_t group = in.q.dim(1) / in.k.dim(1);
  for (int64_t s = 0; s + 1 < in.cu_seqlens.dim(0); ++s) {
    for (int64_t token = starts[s]; token < starts[s + 1]; ++token) {
      for (int64_t head = 0; head < in.q.dim(1); ++head) {
        Query query{head, head / group, token, starts[s], {}, 0};
        for (int64_t key = starts[s]; key <= token; ++key) {
          query.p.push_back(static_cast<double>(in.scale) *
                            Dot(At(in.q, token, head), At(in.k, key, head / group), in.q.dim(2)));
        }
        Softmax(query);
        visit(query);
      }
    }
  }
}

void SetZero(Tensor x) { std::fill_n(x.as<double>(), x.elements(), 0.0); }

}  // namespace

void CausalAttention(const PackedAttention& in, Tensor out, Tensor lse) {
  SetZero(out);
  ForEachQuery(in, [&](const Query& query) {
    double* o = At(out, query.token, query.head);
    for (size_t j = 0; j < query.p.size(); ++j) {
      const double* v = At(in.v, query.first_key + static_cast<int64_t>(j), query.kv_head);
      for (int64_t d = 0; d < in.v.dim(2); ++d) o[d] += query.p[j] * v[d];
    }
    if (!lse.empty()) lse.as<double>()[query.head * in.q.dim(0) + query.token] = query.lse;
  });
}

void CausalAttentionBackward(ConstTensor dout, const PackedAttention& in, Tensor dq, Tensor dk,
                             Tensor dv) {
  SetZero(dq);
  SetZero(dk);
  SetZero(dv);
  const int64_t width = in.q.dim(2);
  ForEachQuery(in, [&](const Query& query) {
    const double* dy = At(dout, query.token, query.head);
    std::vector<double> dp(query.p.size());
    double delta = 0;
    for (size_t j = 0; j < dp.size(); ++j) {
      const int64_t key = query.first_key + static_cast<int64_t>(j);
      dp[j] = Dot(dy, At(in.v, key, query.kv_head), width);
      delta += query.p[j] * dp[j];
    }
    for (size_t j = 0; j < dp.size(); ++j) {
      const int64_t key = query.first_key + static_cast<int64_t>(j);
      const double ds = query.p[j] * (dp[j] - delta) * static_cast<double>(in.scale);
      for (int64_t d = 0; d < width; ++d) {
        At(dq, query.token, query.head)[d] += ds * At(in.k, key, query.kv_head)[d];
        At(dk, key, query.kv_head)[d] += ds * At(in.q, query.token, query.head)[d];
        At(dv, key, query.kv_head)[d] += query.p[j] * dy[d];
      }
    }
  });
}

}  // namespace halfstep::reference
