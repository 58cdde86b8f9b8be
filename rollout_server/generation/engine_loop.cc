// SPDX-License-Identifier: Apache-2.0
#include "rollout_server/generation/engine_loop.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/base/error_reason.h"
#include "common/base/status_macros.h"
#include "kernels/check.h"

namespace halfstep {
namespace {

int64_t StepTokens(const EngineOptions& options) {
  return std::max(options.max_step_tokens, 2 * options.max_sequences);
}

absl::Status Stopped() { return absl::CancelledError("the engine is stopping"); }

}  // namespace

Engine::Loop::Loop(EngineOptions options, int64_t kv_blocks)
    : options_(std::move(options)),
      threads_(options_.threads),
      workspace_(options_.device),
      stream_(options_.device == kCpuDevice ? nullptr : std::make_unique<Stream>(options_.device)),
      scheduler_({.blocks = kv_blocks,
                  .max_running = options_.max_sequences,
                  .max_waiting = options_.max_outstanding,
                  .max_step_tokens = StepTokens(options_)}),
      runner_({.config = options_.config,
               .dtype = options_.dtype,
               .fp32 = options_.fp32,
               .kv_blocks = kv_blocks,
               .max_draws = options_.max_sequences,
               .max_step_tokens = StepTokens(options_)},
              ExecContext{.device = options_.device,
                          .stream = stream_.get(),
                          .workspace = &workspace_,
                          .threads = &threads_,
                          .profile = options_.profile,
                          .saturated_stores = &saturated_stores_}) {
  local_.kv_blocks_total = local_.kv_blocks_free = kv_blocks;
  local_.last_progress = absl::Now();
  PublishStats();
  absl::MutexLock lock(&join_mutex_);
  thread_ = std::thread([this] { Run(); });
}

Engine::Loop::~Loop() { Stop(); }

// ---- callers' side

void Engine::Loop::SetWeights(std::shared_ptr<const ModelWeights> weights, uint64_t version,
                              std::function<void(const absl::Status&)> done) {
  HALFSTEP_CHECK(weights->dtype() == options_.dtype);
  HALFSTEP_CHECK_GE(weights->rope_table().dim(0), options_.max_sequence_tokens);
  {
    absl::MutexLock lock(&mutex_);
    if (!stopping_) {
      inbox_.weights.push_back({std::move(weights), version, std::move(done)});
      return;
    }
  }
  done(Stopped());
}

absl::StatusOr<GroupHandle> Engine::Loop::Submit(GroupRequest request, GroupCallbacks callbacks) {
  HALFSTEP_RETURN_IF_ERROR(Validate(request));
  absl::MutexLock lock(&mutex_);
  if (stopping_) return absl::UnavailableError("the engine is stopping");
  const uint32_t samples = request.samples;
  if (outstanding_ + samples > options_.max_outstanding) {
    return Error(absl::StatusCode::kResourceExhausted, "ENGINE_FULL",
                 absl::StrCat(outstanding_, " samples are outstanding and ", samples,
                              " more exceed the limit of ", options_.max_outstanding));
  }
  const GroupHandle handle = next_handle_++;
  Group group;
  group.handle = handle;
  group.request = std::make_shared<const GroupRequest>(std::move(request));
  group.callbacks = std::move(callbacks);
  group.queued = absl::Now();
  group.unfinished = samples;
  inbox_.groups.push_back(std::move(group));
  open_[handle] = samples;
  outstanding_ += samples;
  return handle;
}

void Engine::Loop::Cancel(GroupHandle group) {
  absl::MutexLock lock(&mutex_);
  if (open_.count(group) > 0) inbox_.cancels.insert(group);
}

bool Engine::Loop::Drain(absl::Time deadline) {
  absl::MutexLock lock(&mutex_);
  auto empty = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return open_.empty(); };
  return mutex_.AwaitWithDeadline(absl::Condition(&empty), deadline);
}

void Engine::Loop::Stop() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  absl::MutexLock lock(&join_mutex_);
  if (thread_.joinable()) thread_.join();
}

EngineStats Engine::Loop::stats() const {
  absl::MutexLock lock(&mutex_);
  EngineStats stats = stats_;
  stats.groups_outstanding = static_cast<int64_t>(open_.size());
  return stats;
}

// ---- loop thread

void Engine::Loop::Run() {
  bool idle = true;
  Inbox inbox;
  while (TakeInbox(&inbox, idle)) {
    Accept(std::exchange(inbox, {}));
    TrySwap();
    idle = !Step();
    if (!idle) continue;
    // Groups may have ended without a step.
    PublishStats();
    if (options_.on_step) options_.on_step({}, local_);
  }
  FailEverything();
}

bool Engine::Loop::TakeInbox(Inbox* inbox, bool idle) {
  absl::MutexLock lock(&mutex_);
  if (idle) {
    auto work = [this]()
                    ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return stopping_ || !inbox_.empty(); };
    mutex_.Await(absl::Condition(&work));
  }
  *inbox = std::exchange(inbox_, {});
  if (!stopping_) return true;
  inbox_ = std::exchange(*inbox, {});
  return false;
}

void Engine::Loop::Accept(Inbox inbox) {
  for (PendingWeights& weights : inbox.weights) {
    if (pending_) pending_->done(absl::CancelledError("replaced by later weights"));
    pending_ = std::move(weights);
  }
  for (Group& group : inbox.groups) AcceptGroup(std::move(group));
  for (const GroupHandle handle : inbox.cancels) {
    FailGroup(handle, absl::CancelledError("the group was cancelled"));
  }
}

void Engine::Loop::AcceptGroup(Group accepted) {
  const GroupHandle handle = accepted.handle;
  Group& group = groups_[handle];
  group = std::move(accepted);
  const std::optional<uint64_t> version = group.request->version;
  const bool served = weights_ != nullptr && (!version || *version == version_);
  if (served) {
    Start(&group);
  } else if (!pending_ || (version && *version != pending_->version)) {
    FailGroup(handle,
              Error(absl::StatusCode::kFailedPrecondition, "VERSION_NOT_SERVED",
                    absl::StrCat("a group asks for version ",
                                 version ? absl::StrCat(*version) : std::string("any"), ", but ",
                                 weights_ ? absl::StrCat("version ", version_, " is served")
                                          : std::string("no weights are loaded"))));
  }
}

void Engine::Loop::Start(Group* group) {
  const GroupRequest& request = *group->request;
  const auto prompt = static_cast<int64_t>(request.prompt.size());
  group->first =
      scheduler_.AddGroup(prompt, request.samples, prompt + request.sampling.max_new_tokens);
  for (uint32_t i = 0; i < request.samples; ++i) {
    sequences_.emplace(
        group->first + i,
        Running{Sequence(group->request, i, options_.config.eos_token_ids, group->queued), group});
  }
}

bool Engine::Loop::HoldsExactGroups() const {
  return std::any_of(groups_.begin(), groups_.end(), [](const auto& entry) {
    return entry.second.first != 0 && entry.second.request->version.has_value();
  });
}

void Engine::Loop::TrySwap() {
  if (!pending_ || HoldsExactGroups()) return;
  PendingWeights swap = *std::exchange(pending_, std::nullopt);
  // What is in the cache is of the weights that go.
  scheduler_.RecomputeAll();
  weights_ = std::move(swap.weights);
  version_ = swap.version;
  ++local_.weight_swaps;
  local_.last_swap = absl::Now();
  PublishStats();
  if (options_.on_step) options_.on_step({}, local_);
  swap.done(absl::OkStatus());
  // Groups held back for weights that these replaced are told apart by AcceptGroup.
  std::vector<Group> held;
  for (auto& [handle, group] : groups_) {
    if (group.first == 0) held.push_back(std::move(group));
  }
  for (Group& group : held) AcceptGroup(std::move(group));
}

bool Engine::Loop::Step() {
  const absl::Time start = absl::Now();
  scheduler_.Schedule(&plan_);
  if (plan_.empty()) return false;
  for (const PlannedDraw& draw : plan_.draws) {
    sequences_.at(draw.sequence).sequence.MarkStarted(start);
  }
  for (const PlannedChunk& chunk : plan_.chunks) {
    Sequence& sequence = sequences_.at(chunk.sequence).sequence;
    sequence.MarkStarted(start);
    const auto prompt = static_cast<int64_t>(sequence.request().prompt.size());
    local_.prompt_tokens += std::clamp<int64_t>(prompt - chunk.begin, 0, chunk.count);
  }
  const StepTimes before = runner_.times();
  runner_.Run(plan_, *weights_,
              [this](SequenceId id) -> const Sequence& { return sequences_.at(id).sequence; });
  const std::vector<SequenceId> finished = DeliverDraws();
  scheduler_.Commit(plan_, finished);
  FailBrokenGroups();

  const StepTimes& after = runner_.times();
  const absl::Duration model = (after.forward - before.forward) + (after.head - before.head);
  local_.last_progress = absl::Now();
  local_.forward_time += after.forward - before.forward;
  local_.head_time += after.head - before.head;
  local_.prepare_time += local_.last_progress - start - model;
  ++local_.steps;
  local_.tokens_computed += plan_.tokens;
  PublishStats();
  if (options_.on_step) options_.on_step(report_, local_);
  return true;
}

void Engine::Loop::FailBrokenGroups() {
  std::vector<GroupHandle> broken;
  for (const auto& [handle, group] : groups_) {
    if (!group.failure.ok()) broken.push_back(handle);
  }
  for (const GroupHandle handle : broken) FailGroup(handle, groups_.at(handle).failure);
}

std::vector<SequenceId> Engine::Loop::DeliverDraws() {
  const absl::Time now = absl::Now();
  std::vector<SequenceId> finished;
  report_ = {};
  for (size_t i = 0; i < plan_.draws.size(); ++i) {
    const SequenceId id = plan_.draws[i].sequence;
    Running& running = sequences_.at(id);
    Group& group = *running.group;
    DrawnToken token{.id = runner_.tokens()[i],
                     .bytes = {},
                     .log_prob = runner_.log_probs()[i],
                     .version = version_,
                     .time = now};
    if (token.id < 0) {
      group.failure = Error(
          absl::StatusCode::kInternal, "NON_FINITE_LOGITS",
          absl::StrCat("the model gave a non-finite logit for sample ", running.sequence.index(),
                       " of group ", group.request->group, " at version ", version_));
      continue;
    }
    if (!group.request->sampling.stop_strings.empty()) token.bytes = options_.token_bytes(token.id);
    const std::optional<absl::Time> last = running.sequence.last_token_time();
    if (last) {
      report_.next_token.push_back(now - *last);
    } else {
      report_.first_token.push_back(now - running.sequence.queued());
    }
    const std::optional<FinishReason> reason = running.sequence.Append(token);
    ++local_.tokens_generated;
    if (group.callbacks.on_token) {
      group.callbacks.on_token({running.sequence.index(), token.id, token.log_prob, version_});
    }
    if (reason) {
      finished.push_back(id);
      report_.finished.push_back({*reason, now - running.sequence.queued()});
      Finish(id, *reason);
    }
  }
  return finished;
}

void Engine::Loop::Finish(SequenceId id, FinishReason reason) {
  auto node = sequences_.extract(id);
  Running& running = node.mapped();
  Group& group = *running.group;
  ++local_.samples_finished;
  --group.unfinished;
  if (group.failure.ok()) group.callbacks.on_sample(running.sequence.TakeSample(reason));
  if (group.unfinished == 0) EndGroup(group.handle);
}

void Engine::Loop::EndGroup(GroupHandle handle) {
  groups_.erase(handle);
  absl::MutexLock lock(&mutex_);
  const auto open = open_.find(handle);
  outstanding_ -= open->second;
  open_.erase(open);
  inbox_.cancels.erase(handle);
}

void Engine::Loop::FailGroup(GroupHandle handle, const absl::Status& status) {
  const auto it = groups_.find(handle);
  if (it == groups_.end()) return;
  Group& group = it->second;
  if (group.first != 0) {
    for (uint32_t i = 0; i < group.request->samples; ++i) {
      if (sequences_.erase(group.first + i) > 0) scheduler_.Cancel(group.first + i);
    }
  }
  const absl::Status reported = status;  // `status` may belong to the group
  group.callbacks.on_failure(reported);
  EndGroup(handle);
}

void Engine::Loop::FailEverything() {
  Inbox inbox;
  {
    absl::MutexLock lock(&mutex_);
    inbox = std::exchange(inbox_, {});
  }
  for (PendingWeights& weights : inbox.weights) weights.done(Stopped());
  if (pending_) std::exchange(pending_, std::nullopt)->done(Stopped());
  for (Group& group : inbox.groups) {
    const GroupHandle handle = group.handle;
    groups_[handle] = std::move(group);
  }
  while (!groups_.empty()) FailGroup(groups_.begin()->first, Stopped());
  PublishStats();
}

void Engine::Loop::PublishStats() {
  local_.sequences_running = scheduler_.running();
  local_.sequences_waiting = scheduler_.waiting();
  local_.kv_blocks_free = scheduler_.blocks().free();
  local_.prompt_tokens_shared = scheduler_.shared_prompt_tokens();
  local_.preemptions = scheduler_.preemptions();
  if (stream_ != nullptr) saturated_stores_ += stream_->TakeSaturatedStores();
  local_.saturated_stores = saturated_stores_.load(std::memory_order_relaxed);
  local_.has_weights = weights_ != nullptr;
  local_.version = version_;
  absl::MutexLock lock(&mutex_);
  stats_ = local_;
}

}  // namespace halfstep
