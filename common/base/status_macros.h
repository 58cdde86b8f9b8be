// SPDX-License-Identifier: Apache-2.0
// Passing an absl::Status up to the caller.
#pragma once

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

// Returns from the enclosing function when the expression is a status that is not OK.
#define HALFSTEP_RETURN_IF_ERROR(expression)       \
  do {                                             \
    ::absl::Status halfstep_status = (expression); \
    if (!halfstep_status.ok()) [[unlikely]]        \
      return halfstep_status;                      \
  } while (false)

#define HALFSTEP_CONCAT_INNER_(a, b) a##b
#define HALFSTEP_CONCAT_(a, b) HALFSTEP_CONCAT_INNER_(a, b)

// HALFSTEP_ASSIGN_OR_RETURN(auto value, Compute()): the value of a StatusOr, or return its status.
#define HALFSTEP_ASSIGN_OR_RETURN(target, ...) \
  HALFSTEP_ASSIGN_OR_RETURN_(HALFSTEP_CONCAT_(halfstep_result_, __LINE__), target, __VA_ARGS__)
#define HALFSTEP_ASSIGN_OR_RETURN_(result, target, ...) \
  auto result = (__VA_ARGS__);                          \
  if (!result.ok()) [[unlikely]]                        \
    return std::move(result).status();                  \
  target = *std::move(result)
