// SPDX-License-Identifier: Apache-2.0
// Field by field.
#include "common/trajectory/proto_convert.h"

#include <cmath>
#include <cstdint>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/error_reason.h"
#include "common/base/status_macros.h"
#include "halfstep/v1/rollout_coordination.pb.h"
#include "halfstep/v1/trajectory.pb.h"

namespace halfstep {
namespace {

constexpr uint32_t kMaxSamples = 1u << 24;  // a sample's index has 24 bits in its random key
constexpr int kMaxStops = 64;

absl::Status Invalid(const char* reason, const std::string& message) {
  return Error(absl::StatusCode::kInvalidArgument, reason, message);
}

v1::Purpose ToProto(Purpose purpose) {
  return purpose == Purpose::kTrain ? v1::PURPOSE_TRAIN : v1::PURPOSE_EVAL;
}

std::optional<Purpose> FromProto(v1::Purpose purpose) {
  if (purpose == v1::PURPOSE_TRAIN) return Purpose::kTrain;
  if (purpose == v1::PURPOSE_EVAL) return Purpose::kEval;
  return std::nullopt;
}

void ToProto(absl::Duration duration, google::protobuf::Duration* out) {
  const int64_t seconds = absl::IDivDuration(duration, absl::Seconds(1), &duration);
  out->set_seconds(seconds);
  out->set_nanos(static_cast<int32_t>(absl::ToInt64Nanoseconds(duration)));
}

absl::Duration FromProto(const google::protobuf::Duration& duration) {
  return absl::Seconds(duration.seconds()) + absl::Nanoseconds(duration.nanos());
}

template <class T>
void CopyTo(const std::vector<T>& from, google::protobuf::RepeatedField<T>* to) {
  to->Assign(from.begin(), from.end());
}

bool AnyNegative(const google::protobuf::RepeatedField<int32_t>& ids) {
  for (const int32_t id : ids) {
    if (id < 0) return true;
  }
  return false;
}

absl::Status CheckSegments(const v1::Sample& proto) {
  if (proto.segments_size() > 1) {
    return absl::UnimplementedError(absl::StrCat("a sample of ", proto.segments_size(),
                                                 " segments; one policy segment is supported"));
  }
  for (const v1::Segment& segment : proto.segments()) {
    if (segment.origin() != v1::Segment::ORIGIN_POLICY) {
      return absl::UnimplementedError("a segment that is not of the policy is not supported");
    }
    if (segment.tokens_size() != segment.log_probs_size()) {
      return Invalid("MALFORMED_SAMPLE", absl::StrCat(segment.tokens_size(), " tokens with ",
                                                      segment.log_probs_size(), " log-probs"));
    }
    if (AnyNegative(segment.tokens())) return Invalid("MALFORMED_SAMPLE", "a negative token id");
  }
  return absl::OkStatus();
}

absl::Status CheckVersions(const v1::Sample& proto, size_t tokens) {
  uint64_t counted = 0;
  for (const v1::VersionRun& run : proto.versions()) {
    if (run.count() == 0) return Invalid("MALFORMED_SAMPLE", "a version run of no tokens");
    counted += run.count();
  }
  if (counted == tokens) return absl::OkStatus();
  return Invalid("MALFORMED_SAMPLE",
                 absl::StrCat("version runs of ", counted, " tokens for ", tokens, " tokens"));
}

}  // namespace

v1::FinishReason ToProto(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return v1::FINISH_REASON_STOP;
    case FinishReason::kLength:
      return v1::FINISH_REASON_LENGTH;
    case FinishReason::kCancelled:
      return v1::FINISH_REASON_CANCELLED;
  }
  return v1::FINISH_REASON_UNSPECIFIED;
}

std::optional<FinishReason> FromProto(v1::FinishReason reason) {
  switch (reason) {
    case v1::FINISH_REASON_STOP:
      return FinishReason::kStop;
    case v1::FINISH_REASON_LENGTH:
      return FinishReason::kLength;
    case v1::FINISH_REASON_CANCELLED:
      return FinishReason::kCancelled;
    default:
      return std::nullopt;
  }
}

void ToProto(const SamplingParams& params, v1::SamplingParams* out) {
  out->Clear();
  out->set_temperature(params.temperature);
  out->set_top_k(params.top_k);
  out->set_top_p(params.top_p);
  out->set_min_p(params.min_p);
  out->set_max_new_tokens(params.max_new_tokens);
  CopyTo(params.stop_token_ids, out->mutable_stop_token_ids());
  for (const std::string& stop : params.stop_strings) out->add_stop_strings(stop);
}

void ToProto(const GroupAssignment& assignment, v1::Assign* out) {
  out->Clear();
  out->set_job_epoch(assignment.job_epoch);
  out->set_purpose(ToProto(assignment.key.purpose));
  out->set_group(assignment.key.ordinal);
  CopyTo(assignment.prompt, out->mutable_prompt_tokens());
  out->set_samples(assignment.samples);
  ToProto(assignment.sampling, out->mutable_sampling());
  out->set_seed(assignment.seed);
  // The learner sees to it that a free group begins late enough.
  out->set_version(assignment.free ? 0 : assignment.version);
  out->set_free(assignment.free);
}

void ToProto(const KeyedSample& keyed, v1::Sample* out) {
  const Sample& sample = keyed.sample;
  out->Clear();
  out->set_purpose(ToProto(keyed.key.purpose));
  out->set_group(keyed.key.ordinal);
  out->set_index(sample.index);
  v1::Segment* segment = out->add_segments();
  segment->set_origin(v1::Segment::ORIGIN_POLICY);
  CopyTo(sample.tokens, segment->mutable_tokens());
  CopyTo(sample.log_probs, segment->mutable_log_probs());
  for (const VersionRun& run : sample.versions) {
    v1::VersionRun* added = out->add_versions();
    added->set_version(run.version);
    added->set_count(run.count);
  }
  out->set_finish_reason(ToProto(sample.finish_reason));
  ToProto(sample.queue_time, out->mutable_queue_time());
  ToProto(sample.generation_time, out->mutable_generation_time());
}

absl::StatusOr<SamplingParams> FromProto(const v1::SamplingParams& proto) {
  const auto invalid = [](const std::string& message) {
    return Invalid("INVALID_SAMPLING", message);
  };
  if (!std::isfinite(proto.temperature()) || proto.temperature() < 0) {
    return invalid(absl::StrCat("temperature ", proto.temperature(), " is not 0 or above"));
  }
  if (proto.top_k() < 0) return invalid(absl::StrCat("top_k ", proto.top_k(), " is negative"));
  if (!(proto.top_p() >= 0 && proto.top_p() <= 1)) {
    return invalid(absl::StrCat("top_p ", proto.top_p(), " is not between 0 and 1"));
  }
  if (!(proto.min_p() >= 0 && proto.min_p() <= 1)) {
    return invalid(absl::StrCat("min_p ", proto.min_p(), " is not between 0 and 1"));
  }
  if (proto.max_new_tokens() <= 0) {
    return invalid(absl::StrCat("max_new_tokens ", proto.max_new_tokens(), " is not above 0"));
  }
  if (proto.stop_token_ids_size() > kMaxStops || proto.stop_strings_size() > kMaxStops) {
    return invalid(absl::StrCat("more than ", kMaxStops, " stop tokens or strings"));
  }
  if (AnyNegative(proto.stop_token_ids())) return invalid("a negative stop token id");
  for (const std::string& stop : proto.stop_strings()) {
    if (stop.empty()) return invalid("an empty stop string");
  }
  SamplingParams params;
  params.temperature = proto.temperature();
  params.top_k = proto.top_k();
  params.top_p = proto.top_p() == 0 ? 1 : proto.top_p();
  params.min_p = proto.min_p();
  params.max_new_tokens = proto.max_new_tokens();
  params.stop_token_ids.assign(proto.stop_token_ids().begin(), proto.stop_token_ids().end());
  params.stop_strings.assign(proto.stop_strings().begin(), proto.stop_strings().end());
  return params;
}

absl::StatusOr<GroupAssignment> FromProto(const v1::Assign& proto) {
  const auto malformed = [&proto](const std::string& message) {
    return Invalid("MALFORMED_ASSIGNMENT", absl::StrCat("group ", proto.group(), ": ", message));
  };
  const std::optional<Purpose> purpose = FromProto(proto.purpose());
  if (!purpose) return malformed("no purpose");
  if (proto.prompt_tokens().empty()) return malformed("an empty prompt");
  if (AnyNegative(proto.prompt_tokens())) return malformed("a negative token id in the prompt");
  if (proto.samples() == 0 || proto.samples() > kMaxSamples) {
    return malformed(absl::StrCat(proto.samples(), " samples"));
  }
  GroupAssignment assignment;
  HALFSTEP_ASSIGN_OR_RETURN(assignment.sampling, FromProto(proto.sampling()));
  assignment.job_epoch = proto.job_epoch();
  assignment.key = GroupKey{*purpose, proto.group()};
  assignment.prompt.assign(proto.prompt_tokens().begin(), proto.prompt_tokens().end());
  assignment.samples = proto.samples();
  assignment.seed = proto.seed();
  assignment.version = proto.version();
  assignment.free = proto.free();
  return assignment;
}

absl::StatusOr<KeyedSample> FromProto(const v1::Sample& proto) {
  const std::optional<Purpose> purpose = FromProto(proto.purpose());
  const std::optional<FinishReason> reason = FromProto(proto.finish_reason());
  if (!purpose || !reason) {
    return Invalid("MALFORMED_SAMPLE", "a sample without purpose or finish reason");
  }
  HALFSTEP_RETURN_IF_ERROR(CheckSegments(proto));
  KeyedSample keyed;
  keyed.key = GroupKey{*purpose, proto.group()};
  Sample& sample = keyed.sample;
  sample.index = proto.index();
  if (proto.segments_size() == 1) {
    const v1::Segment& segment = proto.segments(0);
    sample.tokens.assign(segment.tokens().begin(), segment.tokens().end());
    sample.log_probs.assign(segment.log_probs().begin(), segment.log_probs().end());
  }
  HALFSTEP_RETURN_IF_ERROR(CheckVersions(proto, sample.tokens.size()));
  for (const v1::VersionRun& run : proto.versions()) {
    sample.versions.push_back(VersionRun{run.version(), run.count()});
  }
  sample.finish_reason = *reason;
  sample.queue_time = FromProto(proto.queue_time());
  sample.generation_time = FromProto(proto.generation_time());
  return keyed;
}

}  // namespace halfstep
