// SPDX-License-Identifier: Apache-2.0
// Metrics by prometheus-cpp.
#include "common/metrics/registry.h"

#include <prometheus/family.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <sstream>
#include <utility>

namespace halfstep {
namespace {

prometheus::Histogram::BucketBoundaries BucketsOf(const MetricInfo& info) {
  return {info.buckets.begin(), info.buckets.end()};
}

std::vector<std::string> ValuesOf(const MetricInfo& info) {
  return {info.values.begin(), info.values.end()};
}

// A metric of the family for each label value; `arguments` go to each metric's constructor.
template <class Metric, class... Arguments>
Labelled<Metric> AddEach(prometheus::Family<Metric>& family, const MetricInfo& info,
                         const std::vector<std::string>& values, const Arguments&... arguments) {
  std::map<std::string, Metric*> metrics;
  for (const std::string& value : values) {
    metrics[value] = &family.Add({{info.label, value}}, arguments...);
  }
  return Labelled<Metric>(std::move(metrics));
}

}  // namespace

Registry::Registry() : registry_(std::make_unique<prometheus::Registry>()) {}
Registry::~Registry() = default;

prometheus::Counter& Registry::Counter(const MetricInfo& info) {
  return prometheus::BuildCounter().Name(info.name).Help(info.help).Register(*registry_).Add({});
}

prometheus::Gauge& Registry::Gauge(const MetricInfo& info) {
  return prometheus::BuildGauge().Name(info.name).Help(info.help).Register(*registry_).Add({});
}

prometheus::Histogram& Registry::Histogram(const MetricInfo& info) {
  return prometheus::BuildHistogram()
      .Name(info.name)
      .Help(info.help)
      .Register(*registry_)
      .Add({}, BucketsOf(info));
}

Labelled<prometheus::Counter> Registry::Counters(const MetricInfo& info) {
  return Counters(info, ValuesOf(info));
}

Labelled<prometheus::Gauge> Registry::Gauges(const MetricInfo& info) {
  return Gauges(info, ValuesOf(info));
}

Labelled<prometheus::Histogram> Registry::Histograms(const MetricInfo& info) {
  return Histograms(info, ValuesOf(info));
}

Labelled<prometheus::Counter> Registry::Counters(const MetricInfo& info,
                                                 const std::vector<std::string>& values) {
  return AddEach(prometheus::BuildCounter().Name(info.name).Help(info.help).Register(*registry_),
                 info, values);
}

Labelled<prometheus::Gauge> Registry::Gauges(const MetricInfo& info,
                                             const std::vector<std::string>& values) {
  return AddEach(prometheus::BuildGauge().Name(info.name).Help(info.help).Register(*registry_),
                 info, values);
}

Labelled<prometheus::Histogram> Registry::Histograms(const MetricInfo& info,
                                                     const std::vector<std::string>& values) {
  return AddEach(prometheus::BuildHistogram().Name(info.name).Help(info.help).Register(*registry_),
                 info, values, BucketsOf(info));
}

std::string Registry::Scrape() const {
  std::ostringstream out;
  prometheus::TextSerializer().Serialize(out, registry_->Collect());
  return out.str();
}

}  // namespace halfstep
