// SPDX-License-Identifier: Apache-2.0
// A link-level fake of the symbols of NCCL and of the CUDA runtime that NcclCommunicator uses, for
// ranks that are threads of one process. "Device memory" is the CPU's. It keeps the protocol that
// NCCL's documentation asks of callers and that real hardware punishes by hanging: what breaks it
// is an error and is remembered as a violation.
//
// Work on a stream is done in order, when somebody polls: a collective once all ranks have it at
// the head of their streams. Sums add from the last rank to the first, unlike any tree.
#pragma once

#include <nccl.h>

#include <cstdint>
#include <string>
#include <vector>

namespace halfstep::fake_nccl {

// Forgets faults, violations and communicators. No rank may be at work.
void Reset();

// What callers did that the protocol forbids: a call from a foreign thread, after abort or destroy,
// or on a busy communicator; work enqueued on a stream before NCCL has taken the call before it; a
// blocking configuration; destroy without finalize.
std::vector<std::string> Violations();

// Makes the `call`-th collective call (from 1) of `rank` end in an asynchronous error.
void FailCall(int rank, int call, ncclResult_t error);
// The device of `rank` takes `polls` polls to reach each of its collectives.
void SlowDown(int rank, int polls);

// Communicators and events that were made and are neither destroyed nor aborted.
int Alive();
// The names given to communicators, in the order in which they were made.
std::vector<std::string> Names();

}  // namespace halfstep::fake_nccl
