// SPDX-License-Identifier: Apache-2.0
#include "cli/mismatch_study.h"

#include <algorithm>
#include <new>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/error_reason.h"
#include "common/base/status_macros.h"
#include "kernels/check.h"
#include "kernels/thread_pool.h"
#include "kernels/workspace.h"
#include "learner_server/training/score_responses.h"
#include "rollout_server/generation/token_scorer.h"

namespace halfstep {
namespace {

constexpr DType kPrecisions[] = {DType::kFloat16, DType::kBFloat16, DType::kFloat32};
constexpr int64_t kMaxSequences = 256;  // scored at once, as LocalGenerator samples them
constexpr int64_t kDriftPoints = 100;

absl::Status CheckCells(const MismatchStudyOptions& options) {
  if (options.profile != Profile::kBitwise) return absl::OkStatus();
  for (const MismatchCell& cell : options.cells) {
    if (!cell.rollout || *cell.rollout == cell.learner) continue;
    return Error(absl::StatusCode::kInvalidArgument, "UNEQUAL_PRECISIONS",
                 absl::StrCat("profile bitwise needs equal precisions, and the rollout's is ",
                              Name(*cell.rollout), " where the learner's is ", Name(cell.learner),
                              "; choose profile fast, or one precision for both"));
  }
  return absl::OkStatus();
}

// The work of a study, which counts responses: each is sampled once and scored a few times.
class Study {
 public:
  // Greedy decoding, temperature 0, reports log-probs at temperature 1.
  Study(const LocalModel& model, float temperature, const MismatchStudyOptions& options)
      : model_(model),
        temperature_(temperature > 0 ? temperature : 1),
        options_(options),
        threads_(ThreadsOrAll(options.threads)) {
    for (const MismatchCell& cell : options.cells) learners_.insert(cell.learner);
    // Everybody's distance to FP32 is asked for.
    learners_.insert(DType::kFloat32);
  }

  absl::Status Sample(const GenerateOrder& order) {
    for (const DType rollout : kPrecisions) {
      const bool wanted =
          std::any_of(options_.cells.begin(), options_.cells.end(),
                      [&](const MismatchCell& cell) { return cell.rollout == rollout; });
      if (wanted) sets_.emplace_back().rollout = rollout;
    }
    CountWork(static_cast<int64_t>(order.prompts.size()) * order.samples);
    for (SampledSet& set : sets_) HALFSTEP_RETURN_IF_ERROR(SampleOne(order, &set));
    return absl::OkStatus();
  }

  void Take(std::vector<TrainSequence> sequences) {
    sets_.emplace_back().sequences = std::move(sequences);
    CountWork(static_cast<int64_t>(sets_[0].sequences.size()));
  }

  absl::Status Score() {
    int64_t longest = 0;
    for (const SampledSet& set : sets_) {
      for (const TrainSequence& sequence : set.sequences) {
        longest = std::max(longest, static_cast<int64_t>(sequence.tokens.size()));
      }
    }
    for (const DType dtype : learners_) {
      HALFSTEP_ASSIGN_OR_RETURN(const auto weights,
                                LoadLocalWeights(model_, dtype, longest, threads_));
      try {
        for (SampledSet& set : sets_) {
          if (LearnerScores(set, dtype)) {
            HALFSTEP_RETURN_IF_ERROR(ScoreByLearner(*weights, &set));
          }
          if (dtype == DType::kFloat32 && RolloutScores(set)) {
            HALFSTEP_RETURN_IF_ERROR(ScoreByRollout(*weights, longest, &set));
          }
        }
      } catch (const std::bad_alloc&) {
        return OutOfMemory(model_, dtype);
      }
    }
    return absl::OkStatus();
  }

  std::vector<SampledSet> TakeSets() { return std::move(sets_); }

 private:
  bool LearnerScores(const SampledSet& set, DType learner) const {
    if (learner == DType::kFloat32) return true;
    const MismatchCell cell{set.rollout, learner};
    return std::find(options_.cells.begin(), options_.cells.end(), cell) != options_.cells.end();
  }

  static bool RolloutScores(const SampledSet& set) {
    return set.rollout && *set.rollout != DType::kFloat32;
  }

  void CountWork(int64_t responses) {
    for (const SampledSet& set : sets_) {
      if (set.rollout) total_ += responses;
      if (RolloutScores(set)) total_ += responses;
      for (const DType learner : learners_) {
        if (LearnerScores(set, learner)) total_ += responses;
      }
    }
  }

  // Whether to go on, with `part` responses of the stage done.
  bool Tell(const std::string& stage, int64_t part) const {
    return options_.on_progress == nullptr || options_.on_progress(stage, done_ + part, total_);
  }

  absl::Status SampleOne(const GenerateOrder& order, SampledSet* set) {
    const std::string stage = absl::StrCat("sampling ", order.prompts.size() * order.samples,
                                           " responses in ", Name(*set->rollout));
    for (const PromptText& prompt : order.prompts) {
      TrainSequence sequence;
      sequence.tokens = model_.tokenizer->Encode(prompt.text);
      sequence.prompt_tokens = static_cast<int64_t>(sequence.tokens.size());
      set->sequences.insert(set->sequences.end(), order.samples, sequence);
    }
    int64_t finished = 0;
    LocalGenerator generator(model_, {.dtype = *set->rollout,
                                      .fp32 = options_.fp32,
                                      .threads = threads_,
                                      .profile = options_.profile});
    HALFSTEP_RETURN_IF_ERROR(generator.Generate(
        order,
        [&](const Piece& piece) {
          TrainSequence& sequence = set->sequences[piece.prompt * order.samples + piece.index];
          sequence.tokens.insert(sequence.tokens.end(), piece.tokens.begin(), piece.tokens.end());
          sequence.behaviour.insert(sequence.behaviour.end(), piece.log_probs.begin(),
                                    piece.log_probs.end());
          finished += piece.finish_reason.has_value();
        },
        [&] { return Tell(stage, finished); }));
    done_ += finished;
    return absl::OkStatus();
  }

  absl::Status ScoreByLearner(const ModelWeights& weights, SampledSet* set) {
    const std::string stage = absl::StrCat("scoring ", Origin(*set), " by the learner's engine in ",
                                           Name(weights.dtype()));
    if (!Tell(stage, 0)) return absl::CancelledError("interrupted");
    ScoreOptions score;
    score.fp32 = options_.fp32;
    score.temperature = temperature_;
    score.go_on = [&](int64_t sequences) { return Tell(stage, sequences); };
    Context context(threads_, options_.profile);
    HALFSTEP_ASSIGN_OR_RETURN(set->learner[weights.dtype()],
                              ScoreResponses(context.ctx, weights, set->sequences, score));
    done_ += static_cast<int64_t>(set->sequences.size());
    return absl::OkStatus();
  }

  absl::Status ScoreByRollout(const ModelWeights& weights, int64_t longest, SampledSet* set) {
    const std::string stage =
        absl::StrCat("scoring ", Origin(*set), " by the rollout's engine in fp32");
    if (!Tell(stage, 0)) return absl::CancelledError("interrupted");
    const auto count = static_cast<int64_t>(set->sequences.size());
    TokenScorerOptions scorer_options;
    scorer_options.config = model_.folder.config;
    scorer_options.dtype = weights.dtype();
    scorer_options.fp32 = options_.fp32;
    scorer_options.max_sequence_tokens = longest;
    scorer_options.max_sequences = std::min(count, kMaxSequences);
    std::vector<GivenTokens> given;
    for (const TrainSequence& sequence : set->sequences) {
      given.push_back({sequence.tokens, sequence.prompt_tokens});
    }
    Context context(threads_, options_.profile);
    HALFSTEP_ASSIGN_OR_RETURN(const auto scorer, TokenScorer::Create(context.ctx, scorer_options));
    HALFSTEP_ASSIGN_OR_RETURN(set->rollout_fp32,
                              scorer->Score(weights, given, temperature_,
                                            [&](int64_t done) { return Tell(stage, done); }));
    done_ += count;
    return absl::OkStatus();
  }

  static std::string Origin(const SampledSet& set) {
    return set.rollout ? absl::StrCat("those in ", Name(*set.rollout)) : "external responses";
  }

  // What a pass runs on.
  struct Context {
    Context(int threads, Profile profile) : pool(threads) {
      ctx.workspace = &workspace;
      ctx.threads = &pool;
      ctx.profile = profile;
    }
    ThreadPool pool;
    Workspace workspace;
    ExecContext ctx;
  };

  const LocalModel& model_;
  const float temperature_;
  const MismatchStudyOptions& options_;
  const int threads_;
  std::set<DType> learners_;
  std::vector<SampledSet> sets_;
  int64_t done_ = 0;  // responses of finished stages
  int64_t total_ = 0;
};

MismatchEstimate Compare(const ResponseLogProbs& learner, const ResponseLogProbs& behaviour,
                         const BootstrapOptions& bootstrap) {
  std::vector<MismatchStatistics> responses(learner.size());
  for (size_t i = 0; i < learner.size(); ++i) responses[i].Add(learner[i], behaviour[i]);
  return EstimateMismatch(responses, bootstrap);
}

ResponseLogProbs BehaviourOf(const SampledSet& set) {
  ResponseLogProbs log_probs;
  for (const TrainSequence& sequence : set.sequences) log_probs.push_back(sequence.behaviour);
  return log_probs;
}

}  // namespace

std::vector<MismatchCell> PrecisionMatrix() {
  std::vector<MismatchCell> cells;
  for (const DType rollout : kPrecisions) {
    for (const DType learner : kPrecisions) cells.push_back({rollout, learner});
  }
  return cells;
}

absl::StatusOr<std::vector<SampledSet>> SampleAndScore(const LocalModel& model,
                                                       const GenerateOrder& order,
                                                       const MismatchStudyOptions& options) {
  HALFSTEP_RETURN_IF_ERROR(CheckCells(options));
  Study study(model, order.sampling.temperature, options);
  HALFSTEP_RETURN_IF_ERROR(study.Sample(order));
  HALFSTEP_RETURN_IF_ERROR(study.Score());
  return study.TakeSets();
}

absl::StatusOr<std::vector<SampledSet>> ScoreExternal(const LocalModel& model,
                                                      std::vector<TrainSequence> sequences,
                                                      float temperature,
                                                      const MismatchStudyOptions& options) {
  Study study(model, temperature, options);
  study.Take(std::move(sequences));
  HALFSTEP_RETURN_IF_ERROR(study.Score());
  return study.TakeSets();
}

std::vector<MismatchResult> AnalyzeMismatch(const std::vector<SampledSet>& sets,
                                            const std::vector<MismatchCell>& cells, int64_t seeds,
                                            const BootstrapOptions& bootstrap) {
  // One for each set, whatever the learner.
  std::vector<std::optional<MismatchEstimate>> rollout_own;
  for (const SampledSet& set : sets) {
    rollout_own.emplace_back();
    if (set.rollout_fp32.empty()) continue;
    rollout_own.back() = Compare(BehaviourOf(set), set.rollout_fp32, bootstrap);
  }
  std::vector<MismatchResult> results;
  for (const MismatchCell& cell : cells) {
    const auto set = std::find_if(sets.begin(), sets.end(), [&](const SampledSet& one) {
      return one.rollout == cell.rollout;
    });
    HALFSTEP_CHECK(set != sets.end());
    const size_t count = set->sequences.size();
    const ResponseLogProbs& learner = set->learner.at(cell.learner);
    const ResponseLogProbs behaviour = BehaviourOf(*set);
    std::vector<LogProbPair> pairs;
    for (size_t i = 0; i < count; ++i) pairs.push_back({learner[i], behaviour[i]});
    MismatchResult& result = results.emplace_back();
    result.cell = cell;
    result.mismatch = Compare(learner, behaviour, bootstrap);
    result.rollout_own = rollout_own[static_cast<size_t>(set - sets.begin())];
    if (cell.learner != DType::kFloat32) {
      result.learner_own = Compare(learner, set->learner.at(DType::kFloat32), bootstrap);
    }
    const size_t part = count / static_cast<size_t>(seeds);
    for (size_t first = 0; first < part * static_cast<size_t>(seeds); first += part) {
      MismatchStatistics statistics;
      for (size_t i = first; i < first + part; ++i) statistics.Add(learner[i], behaviour[i]);
      result.by_seed.push_back(statistics.Summarize());
    }
    result.density = ProbabilityDensity(pairs);
    result.quantiles = MagnitudeQuantiles(pairs, kQuantileShares);
    result.drift = SequenceDrift(pairs, kDriftPoints);
  }
  return results;
}

}  // namespace halfstep
