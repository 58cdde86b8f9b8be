// SPDX-License-Identifier: Apache-2.0
#include "cli/progress_bar.h"

#include <algorithm>
#include <string>

namespace halfstep {
namespace {

constexpr int kWidth = 40;
constexpr char kClearLine[] = "\r\033[K";

}  // namespace

void ProgressBar::Draw(int64_t done, int64_t total, std::optional<absl::Duration> left) {
  if (!terminal_ || total <= 0) return;
  Clear();
  const int filled = static_cast<int>(kWidth * std::min(done, total) / total);
  out_ << "[" << std::string(filled, '#') << std::string(kWidth - filled, '.') << "] " << done
       << "/" << total;
  if (left) out_ << ", " << absl::FormatDuration(absl::Floor(*left, absl::Seconds(1))) << " left";
  out_.flush();
  drawn_ = true;
}

void ProgressBar::Clear() {
  if (!drawn_) return;
  out_ << kClearLine;
  out_.flush();
  drawn_ = false;
}

}  // namespace halfstep
