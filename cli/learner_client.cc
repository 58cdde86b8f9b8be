// SPDX-License-Identifier: Apache-2.0
#include "cli/learner_client.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <utility>

#include "absl/time/clock.h"
#include "cli/client_call.h"
#include "common/base/status_macros.h"
#include "halfstep/v1/training_job.grpc.pb.h"

namespace halfstep {
namespace {

constexpr absl::Duration kAskInterval = absl::Milliseconds(100);
constexpr absl::Duration kAttachInterval = absl::Milliseconds(500);
// A stream that lasted so long was attached to a learner.
constexpr absl::Duration kAlive = absl::Seconds(5);
// A stream that has lasted so long is attached anew; it costs nothing and bounds every wait.
constexpr absl::Duration kStreamDeadline = absl::Hours(1);

bool WorthAttachingAgain(const absl::Status& status) {
  return status.code() == absl::StatusCode::kUnavailable ||
         status.code() == absl::StatusCode::kDeadlineExceeded;
}

}  // namespace

struct LearnerClient::Impl {
  Peer learner;
  std::unique_ptr<v1::TrainingJobService::Stub> stub;

  template <class Request, class Response>
  absl::StatusOr<Response> Call(grpc::Status (v1::TrainingJobService::Stub::*method)(
                                    grpc::ClientContext*, const Request&, Response*),
                                const Request& request) {
    Response response;
    const auto context = MakeContext(learner.timeout);
    HALFSTEP_RETURN_IF_ERROR(
        ExplainCall((stub.get()->*method)(context.get(), request, &response), learner));
    return response;
  }

  // One stream, from after `cursor`, which follows the events seen.
  absl::Status WatchOnce(const std::string& name, const WatchOptions& options, int64_t* cursor) {
    v1::WatchTrainingJobRequest request;
    request.set_name(name);
    request.set_cursor(*cursor);
    const auto context = MakeContext(kStreamDeadline);
    const Canceller canceller(context.get(), options.go_on);
    const auto reader = stub->WatchTrainingJob(context.get(), request);
    v1::TrainingJobEvent event;
    while (reader->Read(&event)) {
      if (event.cursor() <= *cursor) continue;
      *cursor = event.cursor();
      if (!options.on_event(event)) {
        context->TryCancel();
        break;
      }
    }
    return ExplainCall(reader->Finish(), learner);
  }
};

LearnerClient::LearnerClient(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

LearnerClient::~LearnerClient() = default;

absl::StatusOr<std::unique_ptr<LearnerClient>> LearnerClient::Make(const ChannelOptions& channel,
                                                                   absl::Duration timeout) {
  auto impl = std::make_unique<Impl>();
  impl->learner = {"learner", "halfstep-learner", "--learner", channel.target, timeout};
  HALFSTEP_ASSIGN_OR_RETURN(auto connection, MakeChannel(channel));
  impl->stub = v1::TrainingJobService::NewStub(connection);
  return std::unique_ptr<LearnerClient>(new LearnerClient(std::move(impl)));
}

absl::StatusOr<v1::TrainingJob> LearnerClient::Create(const v1::CreateTrainingJobRequest& request) {
  return impl_->Call(&v1::TrainingJobService::Stub::CreateTrainingJob, request);
}

absl::StatusOr<v1::TrainingJob> LearnerClient::Get(const std::string& name) {
  v1::GetTrainingJobRequest request;
  request.set_name(name);
  return impl_->Call(&v1::TrainingJobService::Stub::GetTrainingJob, request);
}

absl::StatusOr<v1::TrainingJob> LearnerClient::Pause(const std::string& name) {
  v1::PauseTrainingJobRequest request;
  request.set_name(name);
  return impl_->Call(&v1::TrainingJobService::Stub::PauseTrainingJob, request);
}

absl::StatusOr<v1::TrainingJob> LearnerClient::Resume(const std::string& name) {
  v1::ResumeTrainingJobRequest request;
  request.set_name(name);
  return impl_->Call(&v1::TrainingJobService::Stub::ResumeTrainingJob, request);
}

absl::StatusOr<v1::TrainingJob> LearnerClient::Cancel(const std::string& name) {
  v1::CancelTrainingJobRequest request;
  request.set_name(name);
  return impl_->Call(&v1::TrainingJobService::Stub::CancelTrainingJob, request);
}

absl::StatusOr<v1::ListTrainingJobsResponse> LearnerClient::List(
    const v1::ListTrainingJobsRequest& request) {
  return impl_->Call(&v1::TrainingJobService::Stub::ListTrainingJobs, request);
}

absl::Status LearnerClient::Watch(const std::string& name, const WatchOptions& options) {
  int64_t cursor = options.cursor;
  absl::Time failing_since = absl::InfiniteFuture();
  for (;;) {
    const absl::Time attached = absl::Now();
    const int64_t cursor_before = cursor;
    const absl::Status status = impl_->WatchOnce(name, options, &cursor);
    if (status.ok()) return status;
    if (!options.go_on()) return absl::CancelledError("interrupted");
    const absl::Time now = absl::Now();
    const bool was_alive = cursor > cursor_before || now - attached > kAlive;
    failing_since = was_alive ? now : std::min(failing_since, attached);
    if (!WorthAttachingAgain(status) || now - failing_since > options.patience) return status;
    while (absl::Now() < now + kAttachInterval && options.go_on()) absl::SleepFor(kAskInterval);
  }
}

}  // namespace halfstep
