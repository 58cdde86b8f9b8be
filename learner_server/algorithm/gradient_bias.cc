// SPDX-License-Identifier: Apache-2.0
#include "learner_server/algorithm/gradient_bias.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "kernels/check.h"

namespace halfstep {
namespace {

constexpr double kStandardErrors = 2;
// Elements of every gradient that are looked at together: they stay in the cache.
constexpr size_t kChunk = 512;

// u' M v for a symmetric M. Terms without weight are left out, so that the products of what does
// not take part, finite or not, do not either.
double QuadraticForm(const std::vector<double>& products, const Combination& u,
                     const Combination& v) {
  HALFSTEP_CHECK_EQ(products.size(), u.size() * v.size());
  double sum = 0;
  for (size_t i = 0; i < u.size(); ++i) {
    for (size_t j = 0; j < v.size(); ++j) {
      if (u[i] != 0 && v[j] != 0) sum += u[i] * v[j] * products[i * v.size() + j];
    }
  }
  return sum;
}

Combination Only(size_t estimator, size_t estimators) {
  Combination combination(estimators, 0.0);
  combination[estimator] = 1;
  return combination;
}

Combination Difference(size_t estimator, size_t other, size_t estimators) {
  Combination combination = Only(estimator, estimators);
  combination[other] -= 1;
  return combination;
}

size_t EstimatorsOf(const JackknifeMoments& moments) {
  return static_cast<size_t>(
      std::lround(std::sqrt(static_cast<double>(moments.all.within.size()))));
}

template <class A, class B>
double Dot(const A* a, const B* b, size_t count) {
  double sum = 0;
  for (size_t i = 0; i < count; ++i) sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return sum;
}

// Of batch b: with itself, and with the sums over all batches.
struct BatchProducts {
  std::vector<double> own;       // g_i . g_j
  std::vector<double> with_sum;  // g_i . S_j
};

std::vector<BatchProducts> ComputeProducts(std::span<const std::vector<SharedGradient>> batches) {
  const size_t estimators = batches[0].size();
  const size_t elements = batches[0][0]->size();
  std::vector<BatchProducts> products(batches.size());
  for (BatchProducts& product : products) {
    product.own.resize(estimators * estimators);
    product.with_sum.resize(estimators * estimators);
  }
  std::vector<std::vector<double>> sums(estimators, std::vector<double>(kChunk));
  for (size_t first = 0; first < elements; first += kChunk) {
    const size_t count = std::min(kChunk, elements - first);
    for (size_t i = 0; i < estimators; ++i) {
      std::fill(sums[i].begin(), sums[i].end(), 0.0);
      for (const auto& batch : batches) {
        const float* gradient = batch[i]->data() + first;
        for (size_t k = 0; k < count; ++k) sums[i][k] += static_cast<double>(gradient[k]);
      }
    }
    for (size_t b = 0; b < batches.size(); ++b) {
      for (size_t i = 0; i < estimators; ++i) {
        const float* gradient = batches[b][i]->data() + first;
        for (size_t j = 0; j < estimators; ++j) {
          products[b].own[i * estimators + j] +=
              Dot(gradient, batches[b][j]->data() + first, count);
          products[b].with_sum[i * estimators + j] += Dot(gradient, sums[j].data(), count);
        }
      }
    }
  }
  return products;
}

// The norm of the expectation of `difference`, in units of ||g*||.
BiasFigure RelativeNorm(const JackknifeMoments& moments, const Combination& difference,
                        const Combination& exact) {
  const Interval squares = Jackknife(moments, [&](const GradientMoments& m) {
    return MeanProduct(m, difference, difference) / MeanProduct(m, exact, exact);
  });
  return {.norm = RootOf(squares), .batches_apart = BatchesApart(moments, difference)};
}

}  // namespace

double MeanProduct(const GradientMoments& moments, const Combination& u, const Combination& v) {
  const auto batches = static_cast<double>(moments.batches);
  return (QuadraticForm(moments.of_sums, u, v) - QuadraticForm(moments.within, u, v)) /
         (batches * (batches - 1));
}

double TotalVariance(const GradientMoments& moments, const Combination& u) {
  const auto batches = static_cast<double>(moments.batches);
  return (QuadraticForm(moments.within, u, u) - QuadraticForm(moments.of_sums, u, u) / batches) /
         (batches - 1);
}

JackknifeMoments ComputeGradientMoments(std::span<const std::vector<SharedGradient>> batches) {
  HALFSTEP_CHECK(batches.size() >= 3);
  const size_t estimators = batches[0].size();
  for (const auto& batch : batches) {
    HALFSTEP_CHECK_EQ(batch.size(), estimators);
    for (const SharedGradient& gradient : batch) {
      HALFSTEP_CHECK_EQ(gradient->size(), batches[0][0]->size());
    }
  }
  std::vector<BatchProducts> products = ComputeProducts(batches);
  const size_t entries = estimators * estimators;
  JackknifeMoments moments;
  moments.all.batches = static_cast<int64_t>(batches.size());
  moments.all.of_sums.resize(entries);
  moments.all.within.resize(entries);
  for (const BatchProducts& product : products) {
    for (size_t e = 0; e < entries; ++e) {
      moments.all.of_sums[e] += product.with_sum[e];
      moments.all.within[e] += product.own[e];
    }
  }
  for (BatchProducts& product : products) {
    GradientMoments& without = moments.without.emplace_back(moments.all);
    --without.batches;
    for (size_t i = 0; i < estimators; ++i) {
      for (size_t j = 0; j < estimators; ++j) {
        const size_t e = i * estimators + j;
        // (S_i - g_i) . (S_j - g_j)
        without.of_sums[e] +=
            product.own[e] - (product.with_sum[e] + product.with_sum[j * estimators + i]);
        without.within[e] -= product.own[e];
      }
    }
    moments.of_batch.push_back(std::move(product.own));
  }
  return moments;
}

Interval Jackknife(const JackknifeMoments& moments,
                   const std::function<double(const GradientMoments&)>& figure) {
  const auto batches = static_cast<double>(moments.without.size());
  std::vector<double> left_out;
  double mean = 0;
  for (const GradientMoments& without : moments.without) {
    left_out.push_back(figure(without));
    mean += left_out.back() / batches;
  }
  double squares = 0;
  for (const double one : left_out) squares += (one - mean) * (one - mean);
  const double error = std::sqrt(squares * (batches - 1) / batches);
  const double value = figure(moments.all);
  return {.value = value,
          .low = value - kStandardErrors * error,
          .high = value + kStandardErrors * error};
}

int64_t BatchesApart(const JackknifeMoments& moments, const Combination& combination) {
  return std::count_if(moments.of_batch.begin(), moments.of_batch.end(),
                       [&](const std::vector<double>& products) {
                         return QuadraticForm(products, combination, combination) != 0;
                       });
}

Interval RootOf(const Interval& squares) {
  const auto root = [](double square) { return std::sqrt(std::max(0.0, square)); };
  return {.value = root(squares.value), .low = root(squares.low), .high = root(squares.high)};
}

Interval ExactNorm(const JackknifeMoments& moments, const GradientRoles& roles) {
  const Combination exact = Only(roles.exact, EstimatorsOf(moments));
  return RootOf(
      Jackknife(moments, [&](const GradientMoments& m) { return MeanProduct(m, exact, exact); }));
}

std::optional<GradientFigures> DescribeEstimator(const JackknifeMoments& moments, size_t estimator,
                                                 const GradientRoles& roles) {
  if (ExactNorm(moments, roles).low <= 0) return std::nullopt;
  const size_t estimators = EstimatorsOf(moments);
  const Combination exact = Only(roles.exact, estimators);
  const Combination own = Only(estimator, estimators);
  GradientFigures figures;
  figures.bias = RelativeNorm(moments, Difference(estimator, roles.exact, estimators), exact);
  figures.paired_bias =
      RelativeNorm(moments, Difference(estimator, roles.unbiased, estimators), exact);
  figures.cosine = Jackknife(moments, [&](const GradientMoments& m) {
    return MeanProduct(m, own, exact) /
           std::sqrt(MeanProduct(m, own, own) * MeanProduct(m, exact, exact));
  });
  figures.deviation = RootOf(Jackknife(moments, [&](const GradientMoments& m) {
    return TotalVariance(m, own) / MeanProduct(m, exact, exact);
  }));
  figures.variance_ratio = Jackknife(moments, [&](const GradientMoments& m) {
    return TotalVariance(m, own) / TotalVariance(m, exact);
  });
  return figures;
}

}  // namespace halfstep
