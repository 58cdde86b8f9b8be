// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/gemm_provider.h"

#include <cublasLt.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <bit>
#include <compare>
#include <map>
#include <mutex>
#include <new>
#include <string>

#include "kernels/buffer.h"
#include "kernels/cuda/launch.h"
#include "kernels/device_error.h"
#include "kernels/philox.h"
#include "kernels/workspace.h"

namespace halfstep::cuda {
namespace {

constexpr size_t kWorkspaceBytes = size_t{32} << 20;  // what NVIDIA advises for Hopper
constexpr size_t kWorkspaceAlignment = 256;
constexpr int kCandidates = 8;
constexpr int kTimedRuns = 5;
// Up to here an FP16 forward product is bound by reading the weight, which our kernel does as well
// as the library, whose result needs a pass more for saturation.
constexpr int64_t kFewRows = 64;
// A certification takes no more rows, and no more elements of the result.
constexpr int64_t kCertifiedRows = 4096;
constexpr int64_t kCertifiedElements = int64_t{1} << 26;

void Require(cublasStatus_t status, const std::string& what) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  throw DeviceError("cuBLASLt: " + what + ": " + cublasLtGetStatusString(status));
}
void Require(cudaError_t error, const std::string& what) {
  if (error == cudaSuccess) return;
  throw DeviceError("CUDA: " + what + ": " + cudaGetErrorString(error));
}

struct Sizes {
  int64_t m, n, k;
  auto operator<=>(const Sizes&) const = default;
};

std::string Describe(const Sizes& sizes) {
  return "product of " + std::to_string(sizes.m) + " x " + std::to_string(sizes.n) + " over " +
         std::to_string(sizes.k);
}

cudaDataType DataType(DType dtype) {
  switch (dtype) {
    case DType::kFloat16:
      return CUDA_R_16F;
    case DType::kBFloat16:
      return CUDA_R_16BF;
    default:
      HALFSTEP_CHECK(dtype == DType::kFloat32);
      return CUDA_R_32F;
  }
}

// A product in the terms of the library, which stores matrices by columns: there it is the
// transposed result, our right factor is A and our left one B.
class Operation {
 public:
  Operation(const MatrixProduct& product, const Sizes& sizes) {
    const DType factors = product.right.dtype();
    Require(cublasLtMatmulDescInit(&description_, CUBLAS_COMPUTE_32F, CUDA_R_32F), "description");
    const auto trans = [](bool transposed) { return transposed ? CUBLAS_OP_T : CUBLAS_OP_N; };
    Set(CUBLASLT_MATMUL_DESC_TRANSA, trans(RightByInner(product.kind)));
    Set(CUBLASLT_MATMUL_DESC_TRANSB, trans(!LeftByInner(product.kind)));
    if (!product.bias.empty()) {
      Set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
      Set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, product.bias.data());
    }
    SetLayout(a_, factors, RightByInner(product.kind), {sizes.n, sizes.k});
    SetLayout(b_, factors, LeftByInner(product.kind), {sizes.m, sizes.k});
    SetLayout(result_, product.result.dtype(), false, {sizes.n, sizes.m});
  }

  cublasLtMatmulDesc_t description() { return &description_; }
  cublasLtMatrixLayout_t a() { return &a_; }
  cublasLtMatrixLayout_t b() { return &b_; }
  cublasLtMatrixLayout_t result() { return &result_; }

 private:
  struct Extent {
    int64_t outer, inner;
  };

  template <class T>
  void Set(cublasLtMatmulDescAttributes_t attribute, const T& value) {
    Require(cublasLtMatmulDescSetAttribute(&description_, attribute, &value, sizeof(value)),
            "attribute of a product");
  }
  static void SetLayout(cublasLtMatrixLayoutOpaque_t& layout, DType dtype, bool by_inner,
                        Extent extent) {
    const int64_t rows = by_inner ? extent.inner : extent.outer;
    const int64_t columns = by_inner ? extent.outer : extent.inner;
    Require(cublasLtMatrixLayoutInit(&layout, DataType(dtype), static_cast<uint64_t>(rows),
                                     static_cast<uint64_t>(columns), rows),
            "layout of a matrix");
  }

  cublasLtMatmulDescOpaque_t description_;
  cublasLtMatrixLayoutOpaque_t a_, b_, result_;
};

struct Choice {
  bool library = false;
  cublasLtMatmulAlgo_t algorithm = {};
  size_t workspace = 0;  // bytes
};

// What the library offers, its best guess first. `reductions`: the ways allowed of adding a split
// inner index.
std::vector<Choice> Offers(cublasLtHandle_t library, Operation& operation, size_t workspace,
                           uint32_t reductions) {
  cublasLtMatmulPreferenceOpaque_t preference;
  Require(cublasLtMatmulPreferenceInit(&preference), "preference");
  const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
    Require(cublasLtMatmulPreferenceSetAttribute(&preference, attribute, &value, sizeof(value)),
            "preference");
  };
  set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t{workspace});
  set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, reductions);
  for (const auto attribute :
       {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES}) {
    set(attribute, uint32_t{16});
  }
  cublasLtMatmulHeuristicResult_t found[kCandidates];
  int count = 0;
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
      library, operation.description(), operation.a(), operation.b(), operation.result(),
      operation.result(), &preference, kCandidates, found, &count);
  if (status == CUBLAS_STATUS_NOT_SUPPORTED) return {};
  Require(status, "choosing an algorithm");
  std::vector<Choice> offers;
  for (int i = 0; i < count; ++i) {
    if (found[i].state != CUBLAS_STATUS_SUCCESS) continue;
    offers.push_back({true, found[i].algo, found[i].workspaceSize});
  }
  return offers;
}

bool AddsInOneSequence(const Choice& offer) {
  int32_t splits = 1;
  uint32_t reduction = CUBLASLT_REDUCTION_SCHEME_NONE;
  const auto read = [&](cublasLtMatmulAlgoConfigAttributes_t attribute, auto& value) {
    Require(cublasLtMatmulAlgoConfigGetAttribute(&offer.algorithm, attribute, &value, sizeof(value),
                                                 nullptr),
            "reading an algorithm");
  };
  read(CUBLASLT_ALGO_CONFIG_SPLITK_NUM, splits);
  read(CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, reduction);
  return splits <= 1 && reduction == CUBLASLT_REDUCTION_SCHEME_NONE && offer.workspace == 0;
}

// False when the algorithm does not take this product.
bool Compute(const ExecContext& ctx, cublasLtHandle_t library, const MatrixProduct& product,
             const Choice& choice) {
  const Sizes sizes{product.m(), product.n(), product.k()};
  Operation operation(product, sizes);
  Workspace::Scope scope(ctx.workspace);
  void* workspace = nullptr;
  if (choice.workspace != 0) {
    const auto address =
        reinterpret_cast<uintptr_t>(scope.Bytes(choice.workspace + kWorkspaceAlignment - 1));
    workspace = reinterpret_cast<void*>((address + kWorkspaceAlignment - 1) / kWorkspaceAlignment *
                                        kWorkspaceAlignment);
  }
  const float one = 1;
  const float kept = product.kind == ProductKind::kBackwardWeight ? 1 : 0;
  void* const result = product.result.data();
  const cublasStatus_t status =
      cublasLtMatmul(library, operation.description(), &one, product.right.data(), operation.a(),
                     product.left.data(), operation.b(), &kept, result, operation.result(), result,
                     operation.result(), &choice.algorithm, workspace, choice.workspace,
                     static_cast<cudaStream_t>(ctx.stream->native()));
  if (status == CUBLAS_STATUS_NOT_SUPPORTED || status == CUBLAS_STATUS_INVALID_VALUE) return false;
  Require(status, Describe(sizes));
  if (product.kind == ProductKind::kForward && product.result.dtype() == DType::kFloat16) {
    SaturateStored(ctx, product.result);
  }
  return true;
}

// Values of many magnitudes and both signs, so that sums cancel and round.
template <class T>
HALFSTEP_KERNEL void FillRandom(int64_t count, uint32_t seed, Pointer<T> out) {
  const int64_t i = int64_t{BlockX()} * BlockThreads() + ThreadIndex();
  if (i >= count) return;
  const auto words = Philox4x32({{static_cast<uint32_t>(i), static_cast<uint32_t>(i >> 32), 0, 0}},
                                PhiloxKey{{seed, 0}});
  const float scale = BitsToFloat((124 + words[1] % 8) << 23);  // 2^-3 ... 2^4
  out[i] = Round<T>((UniformFromBits(words[0]) - 0.5f) * scale);
}

HALFSTEP_KERNEL void CountDifferences(int64_t words, Pointer<const uint32_t> a,
                                      Pointer<const uint32_t> b, Pointer<int> differences) {
  const int64_t i = int64_t{BlockX()} * BlockThreads() + ThreadIndex();
  const uint32_t different = Ballot(i < words && a[i] != b[i]);
  if (Lane() == 0 && different != 0) AtomicAdd(differences, 1);
}

constexpr int kThreads = 256;

OwnedTensor RandomTensor(const ExecContext& ctx, DType dtype, Shape shape, uint32_t seed) {
  OwnedTensor x("certification of matrix products", dtype, shape, ctx.device);
  const auto fill = [&]<class T>() {
    Launch(ctx, {"random values", CeilDivide(shape.elements(), kThreads), 1, kThreads},
           FillRandom<T>, shape.elements(), seed, PointerTo<T>(x.view()));
  };
  if (dtype == DType::kFloat16) {
    fill.template operator()<Float16>();
  } else {
    fill.template operator()<BFloat16>();
  }
  return x;
}

bool SameBits(const ExecContext& ctx, ConstTensor a, ConstTensor b) {
  const int64_t words = static_cast<int64_t>(a.bytes() / 4);
  Buffer differences("certification of matrix products", sizeof(int), ctx.device);
  const auto pointer = [&](ConstTensor x) {
    return Pointer<const uint32_t>(static_cast<const uint32_t*>(x.data()), words);
  };
  Launch(ctx, {"comparison", CeilDivide(words, kThreads), 1, kThreads}, CountDifferences, words,
         pointer(a), pointer(b), Pointer<int>(static_cast<int*>(differences.data()), 1));
  int count = 0;
  CopyBytes(ctx.stream->native(), &count, differences.data(), sizeof(count));
  ctx.stream->Synchronize();
  return count == 0;
}

// Microseconds of one run of `work`.
template <class F>
float Time(const ExecContext& ctx, const F& work) {
  const auto stream = static_cast<cudaStream_t>(ctx.stream->native());
  cudaEvent_t begin, end;
  Require(cudaEventCreate(&begin), "creating an event");
  Require(cudaEventCreate(&end), "creating an event");
  work();
  Require(cudaEventRecord(begin, stream), "recording an event");
  for (int i = 0; i < kTimedRuns; ++i) work();
  Require(cudaEventRecord(end, stream), "recording an event");
  Require(cudaEventSynchronize(end), "timing a product");
  float milliseconds = 0;
  Require(cudaEventElapsedTime(&milliseconds, begin, end), "timing a product");
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  return milliseconds * 1000 / kTimedRuns;
}

// Fills `outcome`, whose sizes and types say what to certify.
Choice Certify(const ExecContext& caller, cublasLtHandle_t library, GemmOutcome& outcome) {
  Stream stream(caller.device);
  ExecContext ctx = caller;
  ctx.stream = &stream;
  ctx.saturated_stores = nullptr;
  const int64_t m = std::min(outcome.m, std::max<int64_t>(16, kCertifiedElements / outcome.n));
  const Sizes sizes{m, outcome.n, outcome.k};
  const OwnedTensor x = RandomTensor(ctx, outcome.factors, {m, sizes.k}, 1);
  const OwnedTensor weight = RandomTensor(ctx, outcome.factors, {sizes.n, sizes.k}, 2);
  const OwnedTensor bias = RandomTensor(ctx, outcome.factors, {sizes.n}, 3);
  OwnedTensor ours("certification of matrix products", outcome.result, {m, sizes.n}, ctx.device);
  OwnedTensor theirs("certification of matrix products", outcome.result, {m, sizes.n}, ctx.device);
  MatrixProduct product{ProductKind::kForward, x, weight, {}, ours};
  if (outcome.bias) product.bias = bias;
  outcome.own_us = Time(ctx, [&] { TensorCoreProduct(ctx, product); });
  product.result = theirs;
  Operation operation(product, sizes);
  Choice best;
  for (const Choice& candidate : Offers(library, operation, 0, CUBLASLT_REDUCTION_SCHEME_NONE)) {
    if (!AddsInOneSequence(candidate)) continue;
    ++outcome.candidates;
    if (!Compute(ctx, library, product, candidate) || !SameBits(ctx, ours, theirs)) continue;
    ++outcome.equal;
    const float time = Time(ctx, [&] { Compute(ctx, library, product, candidate); });
    if (outcome.fastest_us != 0 && time >= outcome.fastest_us) continue;
    outcome.fastest_us = time;
    best = candidate;
  }
  outcome.library = best.library && outcome.fastest_us < outcome.own_us;
  stream.Synchronize();
  return outcome.library ? best : Choice();
}

// A shape for which a choice is made once.
struct Key {
  int device;
  ProductKind kind;
  bool certified;
  DType factors, result;
  bool bias;
  Sizes sizes;
  auto operator<=>(const Key&) const = default;
};

// Of the process; lives until it ends, as the library's handles do.
struct Table {
  std::mutex mutex;
  std::map<int, cublasLtHandle_t> libraries;  // by device
  std::map<Key, Choice> choices;
  std::vector<GemmOutcome> outcomes;
};
Table& TheTable() {
  static Table* const table = new Table;
  return *table;
}

Key KeyOf(const ExecContext& ctx, const MatrixProduct& product) {
  const bool certified = product.kind == ProductKind::kForward && ctx.profile == Profile::kBitwise;
  const auto rounded = [](int64_t size) {
    return static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(std::max<int64_t>(size, 16))));
  };
  Sizes sizes{product.m(), product.n(), product.k()};
  if (product.kind == ProductKind::kBackwardWeight) {
    sizes.k = rounded(sizes.k);
  } else {
    sizes.m = rounded(sizes.m);
  }
  if (certified) sizes.m = std::min(sizes.m, kCertifiedRows);
  return {ctx.device.index,       product.kind,          certified, product.right.dtype(),
          product.result.dtype(), !product.bias.empty(), sizes};
}

// Called with the mutex of the table held.
Choice Choose(const ExecContext& ctx, cublasLtHandle_t library, const MatrixProduct& product,
              const Key& key) {
  if (!key.certified) {
    Operation operation(product, key.sizes);
    const std::vector<Choice> offers =
        Offers(library, operation, kWorkspaceBytes, CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE);
    return offers.empty() ? Choice() : offers[0];
  }
  GemmOutcome outcome{.device = key.device,
                      .factors = key.factors,
                      .result = key.result,
                      .m = key.sizes.m,
                      .n = key.sizes.n,
                      .k = key.sizes.k,
                      .bias = key.bias};
  Choice choice;
  try {
    choice = Certify(ctx, library, outcome);
  } catch (const std::bad_alloc&) {
    // Without memory to certify in, our kernel serves.
  }
  TheTable().outcomes.push_back(outcome);
  return choice;
}

bool LibraryMayServe(const ExecContext& ctx, const MatrixProduct& product) {
  const bool forward = product.kind == ProductKind::kForward;
  if (product.k() == 0 || !RowsAreAligned(product.left) || !RowsAreAligned(product.right) ||
      !RowsAreAligned(product.result) ||
      reinterpret_cast<uintptr_t>(product.bias.data()) % 16 != 0) {
    return false;
  }
  // The library adds a 16-bit bias only to a result of its dtype.
  if (!product.bias.empty() && product.result.dtype() == DType::kFloat32) return false;
  return !(forward && ctx.profile == Profile::kFast && product.result.dtype() == DType::kFloat16 &&
           product.m() <= kFewRows);
}

bool IsCapturing(const ExecContext& ctx) {
  cudaStreamCaptureStatus status;
  Require(cudaStreamIsCapturing(static_cast<cudaStream_t>(ctx.stream->native()), &status),
          "asking a stream");
  return status != cudaStreamCaptureStatusNone;
}

}  // namespace

bool LibraryProduct(const ExecContext& ctx, const MatrixProduct& product) {
  if (!LibraryMayServe(ctx, product)) return false;
  Require(cudaSetDevice(ctx.device.index), "choosing the device");
  const Key key = KeyOf(ctx, product);
  Table& table = TheTable();
  Choice choice;
  cublasLtHandle_t library;
  {
    const std::lock_guard lock(table.mutex);
    auto handle = table.libraries.find(key.device);
    auto known = table.choices.find(key);
    if (known == table.choices.end()) {
      if (IsCapturing(ctx)) return false;
      if (handle == table.libraries.end()) {
        cublasLtHandle_t created;
        Require(cublasLtCreate(&created), "starting");
        handle = table.libraries.emplace(key.device, created).first;
      }
      known = table.choices.emplace(key, Choose(ctx, handle->second, product, key)).first;
    }
    choice = known->second;
    library = handle->second;
  }
  return choice.library && Compute(ctx, library, product, choice);
}

std::vector<GemmOutcome> GemmReport() {
  Table& table = TheTable();
  const std::lock_guard lock(table.mutex);
  return table.outcomes;
}

}  // namespace halfstep::cuda
