// SPDX-License-Identifier: Apache-2.0
// Tells ThreadSanitizer about absl::Mutex and its kin. Debian's Abseil is not built with it, so it
// sees neither who holds a mutex nor that a notification happened, and takes every use of either
// for a race. Linked into each executable of the tsan preset, these definitions stand before the
// library's, call them, and say what they order: a lock is acquired after, and released before, the
// real call.
#include <dlfcn.h>
#include <sanitizer/tsan_interface.h>

#include <cstdlib>

#include "absl/synchronization/blocking_counter.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"

extern "C" void AnnotateIgnoreReadsBegin(const char* file, int line);
extern "C" void AnnotateIgnoreReadsEnd(const char* file, int line);

namespace {

// The library's definition of a symbol.
template <class Function>
Function Real(const char* symbol) {
  void* found = dlsym(RTLD_NEXT, symbol);
  if (found == nullptr) std::abort();
  return reinterpret_cast<Function>(found);
}

void Acquire(const void* address) { __tsan_acquire(const_cast<void*>(address)); }

}  // namespace

#define ABSL_SYMBOL(rest) "_ZN4absl7debian3" rest
#define ABSL_CONST_SYMBOL(rest) "_ZNK4absl7debian3" rest
#define REAL(symbol, ...) static const auto real = Real<__VA_ARGS__>(symbol)

namespace absl {
ABSL_NAMESPACE_BEGIN

// ---- exclusive and shared locks

void Mutex::Lock() {
  REAL(ABSL_SYMBOL("5Mutex4LockEv"), void (*)(Mutex*));
  real(this);
  __tsan_acquire(this);
}

void Mutex::Unlock() {
  REAL(ABSL_SYMBOL("5Mutex6UnlockEv"), void (*)(Mutex*));
  __tsan_release(this);
  real(this);
}

bool Mutex::TryLock() {
  REAL(ABSL_SYMBOL("5Mutex7TryLockEv"), bool (*)(Mutex*));
  const bool locked = real(this);
  if (locked) __tsan_acquire(this);
  return locked;
}

void Mutex::ReaderLock() {
  REAL(ABSL_SYMBOL("5Mutex10ReaderLockEv"), void (*)(Mutex*));
  real(this);
  __tsan_acquire(this);
}

void Mutex::ReaderUnlock() {
  REAL(ABSL_SYMBOL("5Mutex12ReaderUnlockEv"), void (*)(Mutex*));
  __tsan_release(this);
  real(this);
}

bool Mutex::ReaderTryLock() {
  REAL(ABSL_SYMBOL("5Mutex13ReaderTryLockEv"), bool (*)(Mutex*));
  const bool locked = real(this);
  if (locked) __tsan_acquire(this);
  return locked;
}

// ---- waiting for a condition, the mutex being given up meanwhile

void Mutex::Await(const Condition& condition) {
  REAL(ABSL_SYMBOL("5Mutex5AwaitERKNS0_9ConditionE"), void (*)(Mutex*, const Condition&));
  __tsan_release(this);
  real(this, condition);
  __tsan_acquire(this);
}

bool Mutex::AwaitWithTimeout(const Condition& condition, Duration timeout) {
  REAL(ABSL_SYMBOL("5Mutex16AwaitWithTimeoutERKNS0_9ConditionENS0_8DurationE"),
       bool (*)(Mutex*, const Condition&, Duration));
  __tsan_release(this);
  const bool holds = real(this, condition, timeout);
  __tsan_acquire(this);
  return holds;
}

bool Mutex::AwaitWithDeadline(const Condition& condition, Time deadline) {
  REAL(ABSL_SYMBOL("5Mutex17AwaitWithDeadlineERKNS0_9ConditionENS0_4TimeE"),
       bool (*)(Mutex*, const Condition&, Time));
  __tsan_release(this);
  const bool holds = real(this, condition, deadline);
  __tsan_acquire(this);
  return holds;
}

void Mutex::LockWhen(const Condition& condition) {
  REAL(ABSL_SYMBOL("5Mutex8LockWhenERKNS0_9ConditionE"), void (*)(Mutex*, const Condition&));
  real(this, condition);
  __tsan_acquire(this);
}

bool Mutex::LockWhenWithTimeout(const Condition& condition, Duration timeout) {
  REAL(ABSL_SYMBOL("5Mutex19LockWhenWithTimeoutERKNS0_9ConditionENS0_8DurationE"),
       bool (*)(Mutex*, const Condition&, Duration));
  const bool holds = real(this, condition, timeout);
  __tsan_acquire(this);
  return holds;
}

bool Mutex::LockWhenWithDeadline(const Condition& condition, Time deadline) {
  REAL(ABSL_SYMBOL("5Mutex20LockWhenWithDeadlineERKNS0_9ConditionENS0_4TimeE"),
       bool (*)(Mutex*, const Condition&, Time));
  const bool holds = real(this, condition, deadline);
  __tsan_acquire(this);
  return holds;
}

// Whoever unlocks a mutex evaluates the conditions of its waiters, after its release was announced.
// It still holds the mutex, so its reads are no races.
bool Condition::Eval() const {
  REAL(ABSL_CONST_SYMBOL("9Condition4EvalEv"), bool (*)(const Condition*));
  AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
  const bool holds = real(this);
  AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  return holds;
}

void CondVar::Wait(Mutex* mutex) {
  REAL(ABSL_SYMBOL("7CondVar4WaitEPNS0_5MutexE"), void (*)(CondVar*, Mutex*));
  __tsan_release(mutex);
  real(this, mutex);
  __tsan_acquire(mutex);
}

bool CondVar::WaitWithTimeout(Mutex* mutex, Duration timeout) {
  REAL(ABSL_SYMBOL("7CondVar15WaitWithTimeoutEPNS0_5MutexENS0_8DurationE"),
       bool (*)(CondVar*, Mutex*, Duration));
  __tsan_release(mutex);
  const bool timed_out = real(this, mutex, timeout);
  __tsan_acquire(mutex);
  return timed_out;
}

bool CondVar::WaitWithDeadline(Mutex* mutex, Time deadline) {
  REAL(ABSL_SYMBOL("7CondVar16WaitWithDeadlineEPNS0_5MutexENS0_4TimeE"),
       bool (*)(CondVar*, Mutex*, Time));
  __tsan_release(mutex);
  const bool timed_out = real(this, mutex, deadline);
  __tsan_acquire(mutex);
  return timed_out;
}

// ---- notifications: waiting for one takes the mutex only when it has not happened yet

void Notification::Notify() {
  REAL(ABSL_SYMBOL("12Notification6NotifyEv"), void (*)(Notification*));
  // HasBeenNotified is inline and reads the flag behind the mutex.
  __tsan_release(&notified_yet_);
  real(this);
}

void Notification::WaitForNotification() const {
  REAL(ABSL_CONST_SYMBOL("12Notification19WaitForNotificationEv"), void (*)(const Notification*));
  real(this);
  Acquire(&notified_yet_);
}

bool Notification::WaitForNotificationWithTimeout(Duration timeout) const {
  REAL(ABSL_CONST_SYMBOL("12Notification30WaitForNotificationWithTimeoutENS0_8DurationE"),
       bool (*)(const Notification*, Duration));
  const bool notified = real(this, timeout);
  if (notified) Acquire(&notified_yet_);
  return notified;
}

bool Notification::WaitForNotificationWithDeadline(Time deadline) const {
  REAL(ABSL_CONST_SYMBOL("12Notification31WaitForNotificationWithDeadlineENS0_4TimeE"),
       bool (*)(const Notification*, Time));
  const bool notified = real(this, deadline);
  if (notified) Acquire(&notified_yet_);
  return notified;
}

bool BlockingCounter::DecrementCount() {
  REAL(ABSL_SYMBOL("15BlockingCounter14DecrementCountEv"), bool (*)(BlockingCounter*));
  __tsan_release(this);
  return real(this);
}

void BlockingCounter::Wait() {
  REAL(ABSL_SYMBOL("15BlockingCounter4WaitEv"), void (*)(BlockingCounter*));
  real(this);
  __tsan_acquire(this);
}

ABSL_NAMESPACE_END
}  // namespace absl
