// SPDX-License-Identifier: Apache-2.0
#include "cli/runs/checkpoint_diff.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>
#include <memory>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "common/base/error_reason.h"
#include "common/base/file.h"
#include "common/base/json.h"
#include "common/base/status_macros.h"
#include "common/checkpoint/atomic_directory.h"
#include "common/checkpoint/hugging_face.h"
#include "common/checkpoint/safetensors.h"
#include "common/checkpoint/safetensors_writer.h"
#include "common/checkpoint/weight_conversion.h"

namespace halfstep {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxTrainerJson = size_t{256} << 20;
constexpr size_t kChunkBytes = size_t{1} << 20;
constexpr char kStateFile[] = "state.safetensors";

struct Tensors {
  std::vector<std::unique_ptr<SafetensorsFile>> files;
  std::optional<SafetensorsFolder> folder;
  // In the order in which they are compared.
  std::vector<std::pair<std::string, SafetensorsFolder::Location>> list;
};

// What a stretch of a tensor is called: a parameter within a flat buffer, or all of it.
struct Part {
  std::string name;  // empty: the tensor itself
  int64_t begin = 0;
  std::vector<int64_t> shape;
};

std::vector<int64_t> ElementAt(int64_t flat, const std::vector<int64_t>& shape) {
  std::vector<int64_t> element(shape.size());
  for (size_t i = shape.size(); i-- > 0; flat /= shape[i]) element[i] = flat % shape[i];
  return element;
}

std::string Shown(const std::string& dtype, double value, const uint8_t* bytes, size_t size) {
  std::string bits = "0x";
  for (size_t i = size; i-- > 0;) absl::StrAppendFormat(&bits, "%02x", bytes[i]);
  const bool number = dtype == "F16" || dtype == "BF16" || dtype == "F32";
  return number ? absl::StrFormat("%.9g (%s)", value, bits) : bits;
}

std::string Described(const SafetensorsEntry& entry) {
  return absl::StrCat(entry.dtype, " [", absl::StrJoin(entry.shape, ", "), "]");
}

// NaN for an element that is no floating-point number of ours.
double ValueOf(const std::string& dtype, const uint8_t* bytes) {
  for (const DType ours : {DType::kFloat16, DType::kBFloat16, DType::kFloat32}) {
    if (dtype != SafetensorsName(ours)) continue;
    float value = 0;
    ConvertWeights(bytes, ours, 1, DType::kFloat32, &value);
    return value;
  }
  return std::numeric_limits<double>::quiet_NaN();
}

// Compares the tensors of a file, one after the other.
class FileComparison {
 public:
  explicit FileComparison(std::string file) { found_.file = std::move(file); }

  // Parts ascend; the first begins at 0.
  absl::Status Compare(const std::string& tensor, const SafetensorsFolder::Location& a,
                       const SafetensorsFolder::Location& b, const std::vector<Part>& parts) {
    if (a.entry->dtype != b.entry->dtype || a.entry->shape != b.entry->shape) {
      NoteTensor(tensor, "", Described(*a.entry), Described(*b.entry));
      return absl::OkStatus();
    }
    const size_t width = SafetensorsElementBytes(a.entry->dtype);
    found_.elements += static_cast<int64_t>(a.entry->bytes() / width);
    bytes_a_.resize(kChunkBytes);
    bytes_b_.resize(kChunkBytes);
    for (uint64_t offset = 0; offset < a.entry->bytes(); offset += kChunkBytes) {
      const size_t size = std::min<uint64_t>(kChunkBytes, a.entry->bytes() - offset);
      HALFSTEP_RETURN_IF_ERROR(a.file->Read(*a.entry, offset, size, bytes_a_.data()));
      HALFSTEP_RETURN_IF_ERROR(b.file->Read(*b.entry, offset, size, bytes_b_.data()));
      if (std::memcmp(bytes_a_.data(), bytes_b_.data(), size) == 0) continue;
      for (size_t at = 0; at < size; at += width) {
        if (std::memcmp(&bytes_a_[at], &bytes_b_[at], width) == 0) continue;
        NoteElement(tensor, a.entry->dtype, static_cast<int64_t>((offset + at) / width), at, parts);
      }
    }
    return absl::OkStatus();
  }

  // What only one of the files has, or has differently.
  void NoteTensor(const std::string& tensor, const std::string& parameter, const std::string& a,
                  const std::string& b) {
    if (differing_.empty()) {
      found_.tensor = tensor;
      found_.parameter = parameter;
      found_.a = a;
      found_.b = b;
    }
    differing_.insert({tensor, parameter});
  }

  std::optional<TensorDifference> Finish() {
    if (differing_.empty()) return std::nullopt;
    found_.differing_tensors = static_cast<int64_t>(differing_.size());
    return std::move(found_);
  }

 private:
  void NoteElement(const std::string& tensor, const std::string& dtype, int64_t flat, size_t at,
                   const std::vector<Part>& parts) {
    const size_t width = SafetensorsElementBytes(dtype);
    const Part& part = *std::prev(
        std::upper_bound(parts.begin(), parts.end(), flat,
                         [](int64_t value, const Part& next) { return value < next.begin; }));
    const double a = ValueOf(dtype, &bytes_a_[at]), b = ValueOf(dtype, &bytes_b_[at]);
    if (differing_.empty()) found_.element = ElementAt(flat - part.begin, part.shape);
    NoteTensor(tensor, part.name, Shown(dtype, a, &bytes_a_[at], width),
               Shown(dtype, b, &bytes_b_[at], width));
    ++found_.differing_elements;
    double difference = std::abs(a - b);
    if (std::isfinite(a) != std::isfinite(b)) difference = std::numeric_limits<double>::infinity();
    if (found_.largest_in.empty() || difference > found_.largest) {
      found_.largest = std::isnan(difference) ? 0 : difference;
      found_.largest_in = absl::StrCat(tensor, part.name.empty() ? "" : " ", part.name);
    }
  }

  TensorDifference found_;
  std::set<std::pair<std::string, std::string>> differing_;
  std::vector<uint8_t> bytes_a_, bytes_b_;
};

absl::StatusOr<Tensors> OpenFile(const std::string& path) {
  Tensors tensors;
  HALFSTEP_ASSIGN_OR_RETURN(std::unique_ptr<SafetensorsFile> file, SafetensorsFile::Open(path));
  for (const SafetensorsEntry& entry : file->header().entries) {
    tensors.list.push_back({entry.name, {file.get(), &entry}});
  }
  tensors.files.push_back(std::move(file));
  return tensors;
}

absl::StatusOr<Tensors> OpenModel(const std::string& path) {
  Tensors tensors;
  HALFSTEP_ASSIGN_OR_RETURN(tensors.folder, SafetensorsFolder::Open(path));
  for (const auto& [name, location] : tensors.folder->tensors()) {
    tensors.list.push_back({name, location});
  }
  return tensors;
}

// The parameters of a flat buffer, by the configuration that lies beside it; nothing where there is
// none, so that elements are counted from the start of the buffer.
std::vector<Part> PartsOfState(const std::string& checkpoint) {
  std::vector<Part> parts;
  const absl::StatusOr<HuggingFaceModel> model = OpenHuggingFaceModel(checkpoint + "/model");
  if (!model.ok()) return parts;
  for (const ParameterSpec& spec : model->layout->specs()) {
    Part part{spec.name, spec.offset, {}};
    for (int i = 0; i < spec.shape.rank(); ++i) part.shape.push_back(spec.shape[i]);
    parts.push_back(std::move(part));
  }
  return parts;
}

absl::StatusOr<std::optional<TensorDifference>> DiffTensors(const std::string& file,
                                                            const Tensors& a, const Tensors& b,
                                                            const std::vector<Part>& state_parts) {
  FileComparison comparison(file);
  for (const auto& [name, location] : a.list) {
    const std::string& wanted = name;
    const auto other = std::find_if(b.list.begin(), b.list.end(),
                                    [&wanted](const auto& entry) { return entry.first == wanted; });
    if (other == b.list.end()) {
      comparison.NoteTensor(name, "", Described(*location.entry), "none");
      continue;
    }
    const std::vector<Part> whole = {{"", 0, location.entry->shape}};
    HALFSTEP_RETURN_IF_ERROR(comparison.Compare(name, location, other->second,
                                                state_parts.empty() ? whole : state_parts));
  }
  for (const auto& [name, location] : b.list) {
    const std::string& wanted = name;
    if (std::none_of(a.list.begin(), a.list.end(),
                     [&wanted](const auto& entry) { return entry.first == wanted; })) {
      comparison.NoteTensor(name, "", "none", Described(*location.entry));
    }
  }
  return comparison.Finish();
}

// What equal runs may have differently.
bool IsFactOfTheRun(const std::string& key) {
  return key == "build" || key == "progress.train_seconds" || key == "progress.groups_reassigned" ||
         absl::StartsWith(key, "progress.samples_by_rollout");
}

absl::StatusOr<nlohmann::ordered_json> ReadTrainer(const std::string& checkpoint) {
  const std::string path = checkpoint + "/trainer.json";
  HALFSTEP_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxTrainerJson));
  absl::StatusOr<nlohmann::ordered_json> json = ParseOrderedJson(text);
  if (json.ok()) return json;
  return Error(absl::StatusCode::kDataLoss, "CHECKPOINT_CORRUPT",
               absl::StrCat(path, ": ", json.status().message(),
                            "; remove the checkpoint or put the file back"));
}

absl::StatusOr<std::vector<ValueDifference>> DiffTrainer(const std::string& a,
                                                         const std::string& b) {
  HALFSTEP_ASSIGN_OR_RETURN(const nlohmann::ordered_json trainer_a, ReadTrainer(a));
  HALFSTEP_ASSIGN_OR_RETURN(const nlohmann::ordered_json trainer_b, ReadTrainer(b));
  std::vector<ValueDifference> differences = DiffJobs(trainer_a, trainer_b);
  std::erase_if(differences,
                [](const ValueDifference& difference) { return IsFactOfTheRun(difference.name); });
  return differences;
}

// The files of tensors that both checkpoints have, causes before effects.
std::vector<std::string> TensorFiles(const std::string& a, const std::string& b) {
  std::vector<std::string> older;
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(a, error)) {
    const std::string name = entry.path().filename().string();
    if (absl::StartsWith(name, "weights_") && fs::exists(fs::path(b) / name, error)) {
      older.push_back(name);
    }
  }
  std::sort(older.begin(), older.end());
  std::vector<std::string> files = {kStateFile};
  files.insert(files.end(), older.begin(), older.end());
  files.push_back("model");
  return files;
}

absl::StatusOr<std::optional<TensorDifference>> DiffTensorFile(const std::string& file,
                                                               const std::string& a,
                                                               const std::string& b) {
  const auto open = file == "model" ? OpenModel : OpenFile;
  HALFSTEP_ASSIGN_OR_RETURN(const Tensors tensors_a, open(absl::StrCat(a, "/", file)));
  HALFSTEP_ASSIGN_OR_RETURN(const Tensors tensors_b, open(absl::StrCat(b, "/", file)));
  return DiffTensors(file, tensors_a, tensors_b,
                     file == kStateFile ? PartsOfState(a) : std::vector<Part>());
}

absl::StatusOr<std::vector<int64_t>> StepsOf(const std::string& run) {
  std::vector<int64_t> steps;
  std::error_code error;
  const std::string folder = run + "/checkpoints";
  if (!fs::exists(folder, error)) return steps;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder, error)) {
    const std::string name = entry.path().filename().string();
    int64_t step = 0;
    if (absl::StartsWith(name, "step_") && absl::SimpleAtoi(name.substr(5), &step)) {
      steps.push_back(step);
    }
  }
  if (error) return FileError(error.value(), "list", folder);
  std::sort(steps.begin(), steps.end());
  return steps;
}

}  // namespace

absl::StatusOr<CheckpointComparison> DiffCheckpoints(const std::string& run_a,
                                                     const std::string& run_b) {
  CheckpointComparison comparison;
  HALFSTEP_ASSIGN_OR_RETURN(const std::vector<int64_t> steps_a, StepsOf(run_a));
  HALFSTEP_ASSIGN_OR_RETURN(const std::vector<int64_t> steps_b, StepsOf(run_b));
  for (const int64_t step : steps_a) {
    if (!std::binary_search(steps_b.begin(), steps_b.end(), step)) continue;
    comparison.steps.push_back(step);
    const std::string a = absl::StrCat(run_a, "/checkpoints/step_", step);
    const std::string b = absl::StrCat(run_b, "/checkpoints/step_", step);
    CheckpointDifference difference;
    difference.step = step;
    HALFSTEP_ASSIGN_OR_RETURN(difference.trainer, DiffTrainer(a, b));
    for (const std::string& file : TensorFiles(a, b)) {
      HALFSTEP_ASSIGN_OR_RETURN(difference.tensor, DiffTensorFile(file, a, b));
      if (difference.tensor) break;
    }
    if (difference.trainer.empty() && !difference.tensor) continue;
    for (const std::string& path : {a, b}) {
      const absl::Status sound = VerifyDirectory(path);
      if (!sound.ok()) {
        comparison.notes.push_back(
            absl::StrCat(path, " was changed after the run wrote it: ", sound.message()));
      }
    }
    comparison.first = std::move(difference);
    break;
  }
  return comparison;
}

}  // namespace halfstep
