// SPDX-License-Identifier: Apache-2.0
// A linked list of symbols and a heap of candidate merges, some of them outdated.
#include "common/tokenizer/bpe.h"

#include <queue>
#include <tuple>

namespace halfstep {
namespace {

constexpr int32_t kNone = -1;

struct Symbol {
  int32_t id;  // kNone once merged into its left neighbour
  int32_t previous;
  int32_t next;
};

struct Candidate {
  int32_t rank;
  int32_t position;  // of the left symbol
  int32_t id;        // of the token to be made
  // The heap gives the largest first: lowest rank, then leftmost.
  bool operator<(const Candidate& other) const {
    return std::tie(rank, position) > std::tie(other.rank, other.position);
  }
};

class Merger {
 public:
  Merger(const Bpe& bpe, absl::string_view piece) : bpe_(bpe) {
    symbols_.reserve(piece.size());
    const int32_t size = static_cast<int32_t>(piece.size());
    for (int32_t i = 0; i < size; ++i) {
      const int32_t id = bpe.byte_ids[static_cast<uint8_t>(piece[i])];
      symbols_.push_back({id, i - 1, i + 1 < size ? i + 1 : kNone});
    }
    for (int32_t i = 0; i + 1 < size; ++i) Consider(i);
  }

  void Run() {
    while (!candidates_.empty()) {
      const Candidate candidate = candidates_.top();
      candidates_.pop();
      const Bpe::Merge* merge = MergeAt(candidate.position);
      if (merge == nullptr || merge->id != candidate.id) continue;  // a neighbour has changed since
      Join(candidate.position, merge->id);
    }
  }

  void Append(std::vector<int32_t>& out) const {
    for (const Symbol& symbol : symbols_) {
      if (symbol.id != kNone) out.push_back(symbol.id);
    }
  }

 private:
  // The merge of the symbol at `position` with its right neighbour, if there is one.
  const Bpe::Merge* MergeAt(int32_t position) const {
    const Symbol& left = symbols_[position];
    if (left.id == kNone || left.next == kNone) return nullptr;
    const auto found = bpe_.merges.find(Bpe::PairKey(left.id, symbols_[left.next].id));
    return found == bpe_.merges.end() ? nullptr : &found->second;
  }

  void Consider(int32_t position) {
    const Bpe::Merge* merge = MergeAt(position);
    if (merge != nullptr) candidates_.push({merge->rank, position, merge->id});
  }

  void Join(int32_t position, int32_t id) {
    Symbol& left = symbols_[position];
    Symbol& right = symbols_[left.next];
    left.id = id;
    left.next = right.next;
    right.id = kNone;
    if (left.next != kNone) symbols_[left.next].previous = position;
    if (left.previous != kNone) Consider(left.previous);
    Consider(position);
  }

  const Bpe& bpe_;
  std::vector<Symbol> symbols_;
  std::priority_queue<Candidate> candidates_;
};

}  // namespace

void Bpe::Encode(absl::string_view piece, std::vector<int32_t>& out) const {
  if (!whole_ids.empty()) {
    const auto whole = whole_ids.find(piece);
    if (whole != whole_ids.end()) {
      out.push_back(whole->second);
      return;
    }
  }
  Merger merger(*this, piece);
  merger.Run();
  merger.Append(out);
}

}  // namespace halfstep
