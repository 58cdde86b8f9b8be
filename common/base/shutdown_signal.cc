// SPDX-License-Identifier: Apache-2.0
// A signal handler may do next to nothing, so it writes a byte into a pipe that a thread reads.
#include "common/base/shutdown_signal.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>

namespace halfstep {
namespace {

constexpr char kStop = 's';  // somebody asked for a stop
constexpr char kQuit = 'q';  // the ShutdownSignal is being destroyed

// Handlers have no argument of ours, so what they need is global.
std::atomic<int> write_end{-1};
std::atomic<bool> interrupted{false};
int read_end = -1;
struct sigaction previous_term;
struct sigaction previous_int;

void WriteByte(char byte) {
  const int saved_errno = errno;
  // A full pipe already holds what the reader needs to know.
  [[maybe_unused]] const ssize_t written = write(write_end.load(), &byte, 1);
  errno = saved_errno;
}

void HandleSignal(int number) {
  if (number == SIGINT && interrupted.exchange(true)) _exit(128 + SIGINT);
  WriteByte(kStop);
}

}  // namespace

ShutdownSignal::ShutdownSignal() {
  int ends[2];
  if (write_end.load() != -1 || pipe2(ends, O_CLOEXEC) != 0) {
    std::perror("cannot wait for signals");
    std::abort();
  }
  read_end = ends[0];
  fcntl(ends[1], F_SETFL, O_NONBLOCK);
  write_end = ends[1];
  interrupted = false;
  waiter_ = std::thread([this] {
    char byte = 0;
    while (byte != kQuit) {
      if (read(read_end, &byte, 1) != 1) continue;
      if (byte == kStop && !requested_.HasBeenNotified()) requested_.Notify();
    }
  });
  struct sigaction action = {};
  action.sa_handler = HandleSignal;
  action.sa_flags = SA_RESTART;
  sigemptyset(&action.sa_mask);
  sigaction(SIGTERM, &action, &previous_term);
  sigaction(SIGINT, &action, &previous_int);
}

ShutdownSignal::~ShutdownSignal() {
  sigaction(SIGTERM, &previous_term, nullptr);
  sigaction(SIGINT, &previous_int, nullptr);
  // Blocking now: this byte must arrive.
  fcntl(write_end.load(), F_SETFL, 0);
  WriteByte(kQuit);
  waiter_.join();
  close(write_end.exchange(-1));
  close(read_end);
}

void ShutdownSignal::Request() { WriteByte(kStop); }

}  // namespace halfstep
