// SPDX-License-Identifier: Apache-2.0
#include "cli/gradient_study.h"

#include <algorithm>
#include <map>
#include <new>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "common/base/error_reason.h"
#include "common/base/memory.h"
#include "common/base/status_macros.h"
#include "common/tokenizer/tokenizer.h"
#include "kernels/thread_pool.h"
#include "kernels/workspace.h"
#include "learner_server/algorithm/advantage.h"
#include "learner_server/algorithm/presets.h"
#include "learner_server/training/loss_gradient.h"
#include "learner_server/training/rollout_source.h"
#include "learner_server/training/score_responses.h"
#include "rollout_server/generation/generate.h"

namespace halfstep {
namespace {

// Estimators of a cell: these two, then the corrections.
constexpr GradientRoles kRoles{.exact = 0, .unbiased = 1};
constexpr size_t kFirstCorrection = 2;

// An engine that is slower than this for one batch stands still.
constexpr absl::Duration kBatchDeadline = absl::Hours(1);

std::string CellName(const GradientCell& cell) {
  return absl::StrCat(Name(cell.rollout), "/", Name(cell.learner));
}

absl::Status CheckOptions(const JobInputs& inputs, const GradientStudyOptions& options) {
  if (options.prompts > inputs.eval->size()) {
    return Error(absl::StatusCode::kInvalidArgument, "TOO_FEW_PROMPTS",
                 absl::StrCat("a batch of ", options.prompts, " prompts needs as many rows, and ",
                              "there are ", inputs.eval->size(), "; ask for fewer"));
  }
  for (const GradientCell& cell : options.cells) {
    if (options.profile == Profile::kFast || cell.rollout == cell.learner) continue;
    return Error(absl::StatusCode::kInvalidArgument, "UNEQUAL_PRECISIONS",
                 absl::StrCat("profile bitwise needs equal precisions, and cell ", CellName(cell),
                              " has not; choose profile fast, or one precision for both"));
  }
  if (options.rollout_model != nullptr) {
    const ModelConfig& other = options.rollout_model->folder.config;
    if (other.vocab_size != inputs.model.config.vocab_size ||
        other.max_positions < inputs.max_sequence_tokens) {
      return Error(absl::StatusCode::kInvalidArgument, "ROLLOUT_MODEL_MISMATCH",
                   absl::StrCat(options.rollout_model->folder.directory, " has ", other.vocab_size,
                                " tokens and ", other.max_positions, " positions where ",
                                inputs.model.directory, " has ", inputs.model.config.vocab_size,
                                " and needs ", inputs.max_sequence_tokens,
                                "; give a checkpoint of the same model"));
    }
  }
  const size_t kept = (options.corrections.size() + kFirstCorrection) *
                      static_cast<size_t>(options.batches) *
                      static_cast<size_t>(inputs.model.layout->buffer_elements()) * sizeof(float);
  const size_t free = FreeMemoryBytes();
  if (free > 0 && kept > free) {
    return Error(
        absl::StatusCode::kResourceExhausted, "OUT_OF_MEMORY",
        absl::StrCat("the gradients of ", options.batches, " batches and ",
                     options.corrections.size(), " corrections can take ", ShowBytes(kept),
                     ", and ", ShowBytes(free), " are free; ask for fewer batches or corrections"));
  }
  return absl::OkStatus();
}

struct SampledBatch {
  std::vector<TrainSequence> sequences;  // with advantages and behaviour log-probs
  double score_sum = 0;
};

// What one engine makes of the batches.
class BatchSampler {
 public:
  BatchSampler(const JobSettings& settings, const JobInputs& inputs,
               std::shared_ptr<const Verifier> verifier, const GradientStudyOptions& options)
      : settings_(settings),
        inputs_(inputs),
        verifier_(std::move(verifier)),
        options_(options),
        rows_(*inputs.eval) {}

  absl::Status Start(const LocalModel& model, DType dtype, Profile profile) {
    LocalEngineOptions engine;
    engine.dtype = dtype;
    engine.profile = profile;
    engine.fp32 = settings_.fp32;
    engine.threads = options_.threads;
    engine.max_sequence_tokens = inputs_.max_sequence_tokens;
    engine.samples = options_.prompts * options_.samples;
    HALFSTEP_ASSIGN_OR_RETURN(engine_, StartLocalEngine(model, engine));
    return absl::OkStatus();
  }

  // Rows are drawn anew for each batch, so that batches are independent of each other.
  absl::StatusOr<SampledBatch> Sample(int64_t batch) {
    std::vector<const DatasetRow*> rows;
    std::vector<GroupRequest> requests;
    for (int64_t i = 0; i < options_.prompts; ++i) {
      const DatasetRow& row =
          rows_.Shuffled(settings_.seed, static_cast<uint64_t>(batch * rows_.size() + i));
      rows.push_back(&row);
      GroupRequest& request = requests.emplace_back();
      request.prompt = row.prompt;
      request.samples = options_.samples;
      request.sampling = SamplingFor(settings_.sampling, static_cast<int64_t>(row.prompt.size()),
                                     inputs_.model.config.max_positions);
      request.seed = settings_.seed;
      request.domain = SamplingDomain::kTrain;
      request.group = static_cast<uint64_t>(batch * options_.prompts + i);
    }
    HALFSTEP_ASSIGN_OR_RETURN(const auto groups, GenerateAll(engine_.get(), std::move(requests),
                                                             absl::Now() + kBatchDeadline));
    SampledBatch sampled;
    std::vector<std::vector<std::optional<double>>> scores;
    for (size_t i = 0; i < groups.size(); ++i) {
      HALFSTEP_ASSIGN_OR_RETURN(scores.emplace_back(), Score(*rows[i], groups[i], &sampled));
    }
    std::vector<ScoredGroup> scored;
    for (const auto& group : scores) scored.push_back({group});
    const std::vector<double> advantages = BatchAdvantages(AdvantageKind::kLeaveOneOut, scored);
    for (size_t i = 0; i < advantages.size(); ++i) sampled.sequences[i].advantage = advantages[i];
    return sampled;
  }

 private:
  // The scores of a group, whose responses are added to `sampled`.
  absl::StatusOr<std::vector<std::optional<double>>> Score(
      const DatasetRow& row, const std::vector<halfstep::Sample>& group,
      SampledBatch* sampled) const {
    std::vector<std::optional<double>> scores;
    for (const halfstep::Sample& sample : group) {
      const Reward reward = verifier_->Score(
          inputs_.tokenizer->Decode(sample.tokens, SpecialTokens::kOmit), row.target);
      if (reward.outcome != RewardOutcome::kScore) {
        return Error(absl::StatusCode::kFailedPrecondition, "UNSCORABLE_RESPONSE",
                     absl::StrCat(settings_.eval_path, ":", row.line, ": a response has no score (",
                                  Name(reward.outcome), ": ", reward.detail,
                                  "); without it the gradient is of other prompts; leave the row "
                                  "out"));
      }
      scores.emplace_back(reward.score);
      sampled->score_sum += reward.score;
      TrainSequence& sequence = sampled->sequences.emplace_back();
      sequence.tokens = row.prompt;
      sequence.prompt_tokens = static_cast<int64_t>(row.prompt.size());
      sequence.tokens.insert(sequence.tokens.end(), sample.tokens.begin(), sample.tokens.end());
      sequence.behaviour = sample.log_probs;
    }
    return scores;
  }

  const JobSettings& settings_;
  const JobInputs& inputs_;
  const std::shared_ptr<const Verifier> verifier_;
  const GradientStudyOptions& options_;
  PromptDataset rows_;  // with an order of its own
  std::unique_ptr<Engine> engine_;
};

// The learner of one cell.
class Learner {
 public:
  Learner(const JobSettings& settings, const JobInputs& inputs, DType dtype, int threads)
      : pool_(threads), fp32_(settings.fp32), temperature_(settings.sampling.temperature) {
    ctx_.workspace = &workspace_;
    ctx_.threads = &pool_;
    // As a job's, FP16 alone is scaled; but a scale that fits stays.
    LossScaleOptions scale{.growth = 1};
    if (dtype != DType::kFloat16) scale = {.initial = 1, .dynamic = false};
    state_ = std::make_unique<TrainState>(inputs.model.config, inputs.model.layout, dtype,
                                          inputs.max_sequence_tokens, scale);
  }

  absl::Status Load(const HuggingFaceModel& model) {
    HALFSTEP_RETURN_IF_ERROR(LoadHuggingFaceWeights(model, &state_->master));
    state_->RefreshWeights(ctx_);
    return absl::OkStatus();
  }

  // log pi of every response token.
  absl::StatusOr<std::vector<std::vector<float>>> Score(const SampledBatch& batch) {
    ScoreOptions score;
    score.fp32 = fp32_;
    score.temperature = temperature_;
    return ScoreResponses(ctx_, state_->weights, batch.sequences, score);
  }

  absl::StatusOr<SharedGradient> Gradient(const SampledBatch& batch,
                                          const CorrectionOptions& correction) {
    TrainStepOptions options;
    options.algorithm.loss.objective = Objective::kPolicyGradient;
    options.algorithm.aggregation = Aggregation::kSequenceMeanTokenSum;
    options.algorithm.correction = correction;
    options.fp32 = fp32_;
    options.temperature = temperature_;
    options.micro_batch_tokens = ScoreOptions().micro_batch_tokens;
    return LossGradient(ctx_, options, batch.sequences, state_.get());
  }

 private:
  ThreadPool pool_;
  Workspace workspace_;
  ExecContext ctx_;
  const Fp32Parts fp32_;
  const float temperature_;
  std::unique_ptr<TrainState> state_;
};

class CellStudy {
 public:
  CellStudy(const JobSettings& settings, const JobInputs& inputs,
            std::shared_ptr<const Verifier> verifier, const GradientStudyOptions& options)
      : inputs_(inputs),
        options_(options),
        rollout_(settings, inputs, verifier, options),
        exact_(settings, inputs, verifier, options),
        weights_(options.corrections.size()) {}

  // `go_on` is asked before every batch.
  absl::StatusOr<GradientResult> Run(const JobSettings& settings, const GradientCell& cell,
                                     const std::function<bool(int64_t batch)>& go_on) {
    const LocalModel model{inputs_.model, inputs_.tokenizer};
    HALFSTEP_RETURN_IF_ERROR(
        rollout_.Start(options_.rollout_model == nullptr ? model : *options_.rollout_model,
                       cell.rollout, options_.profile));
    HALFSTEP_RETURN_IF_ERROR(exact_.Start(model, cell.learner, Profile::kBitwise));
    Learner learner(settings, inputs_, cell.learner, ThreadsOrAll(options_.threads));
    HALFSTEP_RETURN_IF_ERROR(learner.Load(inputs_.model));
    result_.cell = cell;
    for (int64_t batch = 0; batch < options_.batches; ++batch) {
      if (!go_on(batch)) return absl::CancelledError("interrupted");
      HALFSTEP_RETURN_IF_ERROR(RunBatch(batch, &learner));
    }
    return Summarize();
  }

 private:
  absl::Status RunBatch(int64_t batch, Learner* learner) {
    HALFSTEP_ASSIGN_OR_RETURN(const SampledBatch sampled, rollout_.Sample(batch));
    HALFSTEP_ASSIGN_OR_RETURN(const SampledBatch exact, exact_.Sample(batch));
    HALFSTEP_ASSIGN_OR_RETURN(const auto log_probs, learner->Score(sampled));
    HALFSTEP_ASSIGN_OR_RETURN(const auto exact_log_probs, learner->Score(exact));
    for (size_t i = 0; i < sampled.sequences.size(); ++i) {
      mismatch_.Add(log_probs[i], sampled.sequences[i].behaviour);
      exact_mismatch_.Add(exact_log_probs[i], exact.sequences[i].behaviour);
      equal_ += sampled.sequences[i].tokens == exact.sequences[i].tokens;
      mixed_ |= exact.sequences[i].advantage != 0;
    }
    result_.responses += static_cast<int64_t>(sampled.sequences.size());
    score_sum_ += sampled.score_sum;

    std::vector<SharedGradient>& gradients = gradients_.emplace_back();
    HALFSTEP_ASSIGN_OR_RETURN(gradients.emplace_back(), learner->Gradient(exact, {}));
    // Corrections that weigh every token of the batch alike have one gradient; where the mismatch
    // is small most of them do.
    std::map<std::vector<double>, SharedGradient> known;
    const auto add = [&](const CorrectionOptions& correction,
                         CorrectionStatistics* statistics) -> absl::Status {
      std::vector<double> factors;
      for (size_t i = 0; i < sampled.sequences.size(); ++i) {
        std::vector<double> response(log_probs[i].size());
        CorrectionWeights(correction, log_probs[i], sampled.sequences[i].behaviour, response);
        statistics->Add(response);
        factors.insert(factors.end(), response.begin(), response.end());
      }
      SharedGradient& gradient = known[std::move(factors)];
      if (gradient == nullptr) {
        HALFSTEP_ASSIGN_OR_RETURN(gradient, learner->Gradient(sampled, correction));
      }
      gradients.push_back(gradient);
      return absl::OkStatus();
    };
    CorrectionStatistics unused;
    HALFSTEP_RETURN_IF_ERROR(add(DefaultCorrection(CorrectionKind::kSequenceIs), &unused));
    for (size_t c = 0; c < options_.corrections.size(); ++c) {
      HALFSTEP_RETURN_IF_ERROR(add(options_.corrections[c], &weights_[c]));
    }
    return absl::OkStatus();
  }

  absl::StatusOr<GradientResult> Summarize() {
    if (!mixed_) {
      return Error(absl::StatusCode::kFailedPrecondition, "NO_GRADIENT",
                   absl::StrCat("all responses to a prompt have the same score, for each of ",
                                options_.batches * options_.prompts, " groups in ",
                                Name(result_.cell.learner),
                                ", so the gradient is zero; give prompts that the model answers "
                                "right sometimes"));
    }
    const JackknifeMoments moments = ComputeGradientMoments(gradients_);
    const auto responses = static_cast<double>(result_.responses);
    result_.score = score_sum_ / responses;
    result_.equal_share = static_cast<double>(equal_) / responses;
    result_.mismatch = mismatch_.Summarize();
    result_.exact_abs_max = exact_mismatch_.Summarize().abs_max;
    result_.exact_norm = ExactNorm(moments, kRoles);
    result_.exact = DescribeEstimator(moments, kRoles.exact, kRoles);
    for (size_t c = 0; c < options_.corrections.size(); ++c) {
      result_.corrections.push_back(
          {.correction = options_.corrections[c],
           .weights = weights_[c].Summarize(),
           .gradient = DescribeEstimator(moments, kFirstCorrection + c, kRoles)});
    }
    return std::move(result_);
  }

  const JobInputs& inputs_;
  const GradientStudyOptions& options_;
  BatchSampler rollout_;
  BatchSampler exact_;
  GradientResult result_;
  MismatchStatistics mismatch_;
  MismatchStatistics exact_mismatch_;
  int64_t equal_ = 0;
  bool mixed_ = false;  // whether some group had unequal scores
  double score_sum_ = 0;
  std::vector<CorrectionStatistics> weights_;           // by correction
  std::vector<std::vector<SharedGradient>> gradients_;  // by batch and estimator
};

}  // namespace

absl::StatusOr<std::vector<GradientResult>> StudyGradients(
    const JobSettings& settings, const JobInputs& inputs,
    const std::shared_ptr<const Verifier>& verifier, const GradientStudyOptions& options) {
  HALFSTEP_RETURN_IF_ERROR(CheckOptions(inputs, options));
  const int64_t total = options.batches * static_cast<int64_t>(options.cells.size());
  std::vector<GradientResult> results;
  for (const GradientCell& cell : options.cells) {
    const std::string stage =
        absl::StrCat(options.batches, " batches of ", options.prompts * options.samples,
                     " responses, ", CellName(cell));
    const int64_t before = options.batches * static_cast<int64_t>(results.size());
    try {
      CellStudy study(settings, inputs, verifier, options);
      HALFSTEP_ASSIGN_OR_RETURN(results.emplace_back(),
                                study.Run(settings, cell, [&](int64_t batch) {
                                  return options.on_progress == nullptr ||
                                         options.on_progress(stage, before + batch, total);
                                }));
    } catch (const std::bad_alloc&) {
      return OutOfMemory({inputs.model, inputs.tokenizer}, cell.learner);
    }
  }
  return results;
}

}  // namespace halfstep
