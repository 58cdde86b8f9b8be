// SPDX-License-Identifier: Apache-2.0
// The metrics of one server: made from names.h, printed for Prometheus.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "common/metrics/names.h"
#include "prometheus/counter.h"
#include "prometheus/gauge.h"
#include "prometheus/histogram.h"

namespace prometheus {
class Registry;
}

namespace halfstep {

// One metric per value of a label. Copies refer to the same metrics. Thread-safe.
template <class Metric>
class Labelled {
 public:
  explicit Labelled(std::map<std::string, Metric*> metrics) : metrics_(std::move(metrics)) {}

  // An unknown value counts under "other", or, where there is no such value, under the first one: a
  // metric is never worth a crash.
  Metric& operator[](const std::string& value) const {
    auto found = metrics_.find(value);
    if (found == metrics_.end()) found = metrics_.find("other");
    return *(found == metrics_.end() ? metrics_.begin() : found)->second;
  }

  // Gauges only: 1 for `value`, 0 for the others; none is 1 when `value` is unknown.
  void SetOnly(const std::string& value) const {
    for (const auto& [name, metric] : metrics_) metric->Set(name == value ? 1 : 0);
  }

 private:
  std::map<std::string, Metric*> metrics_;
};

// Owns the metrics; what it returns lives as long as it does. Thread-safe.
class Registry {
 public:
  Registry();
  ~Registry();
  Registry(const Registry&) = delete;
  Registry& operator=(const Registry&) = delete;

  prometheus::Counter& Counter(const MetricInfo& info);
  prometheus::Gauge& Gauge(const MetricInfo& info);
  prometheus::Histogram& Histogram(const MetricInfo& info);

  // One metric for each of info.values.
  Labelled<prometheus::Counter> Counters(const MetricInfo& info);
  Labelled<prometheus::Gauge> Gauges(const MetricInfo& info);
  Labelled<prometheus::Histogram> Histograms(const MetricInfo& info);

  // The same for a label whose values are known at run time only; `values` is not empty.
  Labelled<prometheus::Counter> Counters(const MetricInfo& info,
                                         const std::vector<std::string>& values);
  Labelled<prometheus::Gauge> Gauges(const MetricInfo& info,
                                     const std::vector<std::string>& values);
  Labelled<prometheus::Histogram> Histograms(const MetricInfo& info,
                                             const std::vector<std::string>& values);

  // Everything in Prometheus' text format.
  std::string Scrape() const;

 private:
  std::unique_ptr<prometheus::Registry> registry_;
};

}  // namespace halfstep
