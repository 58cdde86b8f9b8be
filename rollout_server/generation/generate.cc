// SPDX-License-Identifier: Apache-2.0
#include "rollout_server/generation/generate.h"

#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "common/base/error_reason.h"

namespace halfstep {
namespace {

// Shared with callbacks, which may come after GenerateAll has given up.
struct Collection {
  absl::Mutex mutex;
  std::vector<std::vector<Sample>> samples ABSL_GUARDED_BY(mutex);
  std::vector<size_t> missing ABSL_GUARDED_BY(mutex);
  size_t open ABSL_GUARDED_BY(mutex) = 0;  // groups submitted and not ended
  size_t ended ABSL_GUARDED_BY(mutex) = 0;
  absl::Status failure ABSL_GUARDED_BY(mutex);
};

GroupCallbacks CallbacksFor(const std::shared_ptr<Collection>& collection, size_t group) {
  GroupCallbacks callbacks;
  callbacks.on_sample = [collection, group](Sample sample) {
    absl::MutexLock lock(&collection->mutex);
    const uint32_t index = sample.index;
    collection->samples[group][index] = std::move(sample);
    if (--collection->missing[group] > 0) return;
    --collection->open;
    ++collection->ended;
  };
  callbacks.on_failure = [collection](const absl::Status& status) {
    absl::MutexLock lock(&collection->mutex);
    if (collection->failure.ok()) collection->failure = status;
    --collection->open;
  };
  return callbacks;
}

// Waits until fewer than `below` groups are open; the failure of one of them, or DEADLINE_EXCEEDED.
absl::Status AwaitOpenBelow(Collection* collection, size_t below, absl::Time deadline) {
  absl::MutexLock lock(&collection->mutex);
  auto ready = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(collection->mutex) {
    return collection->open < below || !collection->failure.ok();
  };
  if (!collection->mutex.AwaitWithDeadline(absl::Condition(&ready), deadline)) {
    return absl::DeadlineExceededError(absl::StrCat("generation: ", collection->ended, " of ",
                                                    collection->samples.size(),
                                                    " groups were done before the deadline"));
  }
  return collection->failure;
}

}  // namespace

absl::StatusOr<std::vector<std::vector<Sample>>> GenerateAll(Engine* engine,
                                                             std::vector<GroupRequest> requests,
                                                             absl::Time deadline) {
  auto collection = std::make_shared<Collection>();
  {
    absl::MutexLock lock(&collection->mutex);
    for (const GroupRequest& request : requests) {
      collection->samples.emplace_back(request.samples);
      collection->missing.push_back(request.samples);
    }
  }
  std::vector<GroupHandle> handles;
  absl::Status status;
  for (size_t i = 0; i < requests.size() && status.ok();) {
    size_t open;
    {
      absl::MutexLock lock(&collection->mutex);
      open = ++collection->open;
    }
    const auto handle = engine->Submit(requests[i], CallbacksFor(collection, i));
    if (handle.ok()) {
      handles.push_back(*handle);
      ++i;
      continue;
    }
    {
      absl::MutexLock lock(&collection->mutex);
      --collection->open;
    }
    const bool full = ReasonOf(handle.status()) == "ENGINE_FULL";
    // A full engine has room again once one of the groups ends, if any of them are ours.
    status =
        full && open > 1 ? AwaitOpenBelow(collection.get(), open - 1, deadline) : handle.status();
  }
  if (status.ok()) status = AwaitOpenBelow(collection.get(), 1, deadline);
  if (!status.ok()) {
    for (const GroupHandle handle : handles) engine->Cancel(handle);
    return status;
  }
  absl::MutexLock lock(&collection->mutex);
  return std::move(collection->samples);
}

}  // namespace halfstep
