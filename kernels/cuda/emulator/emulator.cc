// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/emulator/emulator.h"

#include <algorithm>
#include <boost/context/fiber.hpp>
#include <boost/context/fixedsize_stack.hpp>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <exception>
#include <memory>
#include <random>
#include <sstream>
#include <vector>

#include "kernels/cuda/emulator/block.h"

namespace halfstep::cuda::emulator {
namespace {

using boost::context::fiber;

constexpr int kWarp = 32;
constexpr size_t kStackBytes = 128 << 10;
constexpr size_t kSharedAlignment = 128;
constexpr size_t kMaxSharedBytes = 227 << 10;  // of a block on Hopper
// Of FP16, BF16 and FP32 these bytes are NaN.
constexpr int kPoison = 0xFF;
constexpr uint64_t kDefaultSeed = 1;

enum class State { kReady, kAtBarrier, kInCollective, kDone };

struct AsyncCopy {
  void* to;
  const void* from;
};

struct Thread {
  fiber resume;  // where it goes on; empty while it runs
  State state = State::kReady;
  std::vector<AsyncCopy> open_group;
  std::deque<std::vector<AsyncCopy>> groups;
};

struct WarpState {
  WarpExchange exchange;
  const char* name = nullptr;
  int arrived = 0;
};

struct Seeds {
  std::mt19937_64 next{[] {
    const char* const text = std::getenv("HALFSTEP_EMULATOR_SEED");
    return text == nullptr ? kDefaultSeed : std::strtoull(text, nullptr, 10);
  }()};
};
thread_local Seeds seeds;
thread_local int64_t matrix_instructions = 0;

class Emulator {
 public:
  Emulator(const LaunchShape& shape, const std::function<void()>& body)
      : shape_(shape),
        body_(body),
        seed_(seeds.next()),
        random_(seed_),
        shared_(shape.shared_bytes + kSharedAlignment),
        warps_(static_cast<size_t>(shape.threads / kWarp)),
        threads_(static_cast<size_t>(shape.threads)) {
    const auto address = reinterpret_cast<uintptr_t>(shared_.data());
    shared_base_ = shared_.data() + (kSharedAlignment - address % kSharedAlignment);
    place_ = {0, shape.threads, 0, 0, shape.grid_x, shape.grid_y};
  }

  void Run();

  const ThreadPlace& place() const { return place_; }
  [[noreturn]] void Fail(const std::string& what) const;
  void Collective(const char* name, const void* input, void* output,
                  void (*exchange)(const WarpExchange&));
  void Barrier();
  unsigned char* SharedMemoryBytes(size_t byte_offset, size_t bytes);
  Thread& current() { return threads_[static_cast<size_t>(place_.thread)]; }

 private:
  void RunBlock();
  // A fiber that runs the body once for every block.
  fiber MakeFiber();
  // From the running thread to the scheduler, until the thread's state is kReady again.
  void Suspend(State state);
  void Release(int thread);
  [[noreturn]] void FailDeadlocked() const;

  const LaunchShape& shape_;
  const std::function<void()>& body_;
  const uint64_t seed_;
  std::mt19937_64 random_;
  std::vector<unsigned char> shared_;
  unsigned char* shared_base_;
  ThreadPlace place_;
  fiber scheduler_;
  std::vector<WarpState> warps_;
  std::vector<int> ready_;
  int at_barrier_ = 0;
  int done_ = 0;
  std::exception_ptr error_;
  std::vector<Thread> threads_;  // destroyed first: their fibers are unwound
};

thread_local Emulator* running = nullptr;

void Emulator::Run() {
  for (Thread& thread : threads_) thread.resume = MakeFiber();
  for (place_.block_y = 0; place_.block_y < shape_.grid_y; ++place_.block_y) {
    for (place_.block_x = 0; place_.block_x < shape_.grid_x; ++place_.block_x) RunBlock();
  }
}

void Emulator::RunBlock() {
  std::memset(shared_base_, kPoison, shape_.shared_bytes);
  ready_.resize(threads_.size());
  for (size_t i = 0; i < threads_.size(); ++i) {
    threads_[i].state = State::kReady;
    ready_[i] = static_cast<int>(i);
  }
  done_ = 0;
  while (done_ < shape_.threads) {
    if (ready_.empty()) FailDeadlocked();
    std::swap(ready_[random_() % ready_.size()], ready_.back());
    place_.thread = ready_.back();
    ready_.pop_back();
    Thread& thread = current();
    thread.resume = std::move(thread.resume).resume();
    if (error_ != nullptr) std::rethrow_exception(error_);
  }
}

fiber Emulator::MakeFiber() {
  return fiber(std::allocator_arg, boost::context::fixedsize_stack(kStackBytes),
               [this](fiber&& scheduler) {
                 scheduler_ = std::move(scheduler);
                 for (;;) {
                   try {
                     body_();
                     if (!current().open_group.empty()) Fail("ends with copies it did not commit");
                     WaitCopyGroups(0);  // what nobody waited for still lands
                   } catch (const std::exception&) {
                     error_ = std::current_exception();
                   }
                   ++done_;
                   Suspend(State::kDone);
                 }
                 return fiber();
               });
}

void Emulator::Suspend(State state) {
  current().state = state;
  scheduler_ = std::move(scheduler_).resume();
}

void Emulator::Release(int thread) {
  threads_[static_cast<size_t>(thread)].state = State::kReady;
  ready_.push_back(thread);
}

void Emulator::Collective(const char* name, const void* input, void* output,
                          void (*exchange)(const WarpExchange&)) {
  const int first = place_.thread / kWarp * kWarp;
  const int lane = place_.thread % kWarp;
  WarpState& warp = warps_[static_cast<size_t>(place_.thread / kWarp)];
  if (warp.arrived == 0) warp.name = name;
  // Names are literals, but those of two translation units may differ in address.
  if (std::strcmp(warp.name, name) != 0) {
    Fail(std::string("the warp has diverged: this lane is at ") + name + ", others at " +
         warp.name);
  }
  warp.exchange.input[lane] = input;
  warp.exchange.output[lane] = output;
  if (++warp.arrived < kWarp) {
    Suspend(State::kInCollective);
    return;
  }
  exchange(warp.exchange);
  warp.arrived = 0;
  for (int l = 0; l < kWarp; ++l) {
    if (l != lane) Release(first + l);
  }
  // So that the last to come is not always the first to go on.
  ready_.push_back(place_.thread);
  Suspend(State::kReady);
}

void Emulator::Barrier() {
  if (++at_barrier_ < shape_.threads) {
    Suspend(State::kAtBarrier);
    return;
  }
  at_barrier_ = 0;
  for (int t = 0; t < shape_.threads; ++t) {
    if (t != place_.thread) Release(t);
  }
  ready_.push_back(place_.thread);
  Suspend(State::kReady);
}

unsigned char* Emulator::SharedMemoryBytes(size_t byte_offset, size_t bytes) {
  if (byte_offset + bytes > shape_.shared_bytes) {
    Fail("asks for shared memory up to byte " + std::to_string(byte_offset + bytes) + " of " +
         std::to_string(shape_.shared_bytes));
  }
  return shared_base_ + byte_offset;
}

void Emulator::Fail(const std::string& what) const {
  std::ostringstream text;
  text << "kernel " << shape_.kernel << ", block " << place_.block_x << ", " << place_.block_y
       << " of " << place_.grid_x << " x " << place_.grid_y << ", thread " << place_.thread
       << " of " << place_.block_threads << ", schedule " << seed_ << ": " << what;
  throw EmulationError(text.str());
}

void Emulator::FailDeadlocked() const {
  const auto list = [this](State state) {
    std::ostringstream text;
    for (size_t i = 0; i < threads_.size(); ++i) {
      if (threads_[i].state == state) text << ' ' << i;
    }
    return text.str().empty() ? " none" : text.str();
  };
  Fail("no thread can go on; at a barrier:" + list(State::kAtBarrier) +
       "; in a collective:" + list(State::kInCollective) + "; returned:" + list(State::kDone));
}

}  // namespace

void Run(const LaunchShape& shape, const std::function<void()>& body) {
  if (shape.threads <= 0 || shape.threads % kWarp != 0 || shape.threads > 1024) {
    throw EmulationError(std::string("kernel ") + shape.kernel + ": a block cannot have " +
                         std::to_string(shape.threads) + " threads");
  }
  if (shape.shared_bytes > kMaxSharedBytes) {
    throw EmulationError(std::string("kernel ") + shape.kernel + ": a block cannot have " +
                         std::to_string(shape.shared_bytes) + " bytes of shared memory");
  }
  if (shape.grid_y >= 65536 || shape.grid_x > INT32_MAX) {
    throw EmulationError(std::string("kernel ") + shape.kernel + ": the grid is too large");
  }
  if (running != nullptr) throw EmulationError("a kernel cannot start a kernel");
  Emulator emulator(shape, body);
  running = &emulator;
  const std::unique_ptr<Emulator*, void (*)(Emulator**)> reset(
      &running, [](Emulator** pointer) { *pointer = nullptr; });
  emulator.Run();
}

void SetSeed(uint64_t seed) { seeds.next.seed(seed); }

int64_t MatrixInstructions() { return matrix_instructions; }

const ThreadPlace& Place() { return running->place(); }
void Fail(const std::string& what) { running->Fail(what); }
void Collective(const char* name, const void* input, void* output,
                void (*exchange)(const WarpExchange&)) {
  running->Collective(name, input, output, exchange);
}
void Barrier() { running->Barrier(); }
unsigned char* SharedMemoryBytes(size_t byte_offset, size_t bytes) {
  return running->SharedMemoryBytes(byte_offset, bytes);
}
void CountMatrixInstruction() { ++matrix_instructions; }

void BeginCopy16(void* to, const void* from) {
  running->current().open_group.push_back({to, from});
}

void EndCopyGroup() {
  Thread& thread = running->current();
  thread.groups.push_back(std::move(thread.open_group));
  thread.open_group.clear();
}

void WaitCopyGroups(size_t pending) {
  Thread& thread = running->current();
  while (thread.groups.size() > pending) {
    for (const AsyncCopy& copy : thread.groups.front()) {
      if (copy.from == nullptr) {
        std::memset(copy.to, 0, 16);
      } else {
        std::memcpy(copy.to, copy.from, 16);
      }
    }
    thread.groups.pop_front();
  }
}

}  // namespace halfstep::cuda::emulator
