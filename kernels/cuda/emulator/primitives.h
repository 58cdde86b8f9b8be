// SPDX-License-Identifier: Apache-2.0
// The wrappers of device_code.h for the emulator; nvcc_primitives.h says what each does. Included
// by device_code.h alone.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>
#include <utility>

#include "kernels/cuda/emulator/block.h"
#include "kernels/cuda/emulator/tensor_core.h"
#include "kernels/dtype.h"

#define HALFSTEP_KERNEL inline
#define HALFSTEP_DEVICE inline
#define HALFSTEP_HOST_DEVICE inline
#define HALFSTEP_INDEXED const
#define HALFSTEP_LAUNCH_BOUNDS(threads, blocks)

namespace halfstep::cuda {

template <class T>
inline constexpr bool IsFloat16 = std::is_same_v<std::remove_const_t<T>, Float16>;

// Knows where its memory begins and ends, and may point outside as long as it is not read there.
template <class T>
class Pointer {
 public:
  Pointer() = default;
  Pointer(T* data, int64_t count) : data_(data), begin_(data), end_(data + count) {}
  template <class Other>
  requires(std::is_const_v<T>&& std::is_same_v<const Other, T>)
      // NOLINTNEXTLINE(google-explicit-constructor)
      Pointer(const Pointer<Other>& other)
      : data_(other.data()), begin_(other.begin()), end_(other.end()) {}

  bool empty() const { return data_ == nullptr; }
  T* data() const { return data_; }
  T* begin() const { return begin_; }
  T* end() const { return end_; }
  T& operator[](int64_t i) const { return *Checked(i, 1); }
  Pointer operator+(int64_t i) const {
    Pointer moved = *this;
    moved.data_ += i;
    return moved;
  }

  // The address of elements [i, i + count), all of which must be there.
  T* Checked(int64_t i, int64_t count) const {
    const int64_t at = data_ - begin_ + i;
    if (at < 0 || at + count > end_ - begin_) {
      emulator::Fail("element " + std::to_string(at) + (count == 1 ? "" : " and those behind it") +
                     " of a tensor or shared array of " + std::to_string(end_ - begin_));
    }
    return data_ + i;
  }
  // The same for `bytes` bytes, whose address must be a multiple of their number.
  T* CheckedVector(int64_t i, size_t bytes = 16) const {
    T* const address = Checked(i, static_cast<int64_t>(bytes / sizeof(T)));
    if (reinterpret_cast<uintptr_t>(address) % bytes != 0) {
      emulator::Fail(std::to_string(bytes) + " bytes from element " +
                     std::to_string(data_ - begin_ + i) + " on are not aligned");
    }
    return address;
  }

 private:
  T* data_ = nullptr;
  T* begin_ = nullptr;
  T* end_ = nullptr;
};

template <class P, class T>
P* PackAddress(Pointer<T> p, int64_t i) {
  static_assert(sizeof(P) == alignof(P) && sizeof(P) <= 16);
  return reinterpret_cast<P*>(p.CheckedVector(i, sizeof(P)));
}

inline int ThreadIndex() { return emulator::Place().thread; }
inline int BlockThreads() { return emulator::Place().block_threads; }
inline int BlockX() { return static_cast<int>(emulator::Place().block_x); }
inline int BlockY() { return static_cast<int>(emulator::Place().block_y); }
inline int GridX() { return static_cast<int>(emulator::Place().grid_x); }
inline int GridY() { return static_cast<int>(emulator::Place().grid_y); }

template <class T>
Pointer<T> SharedMemory(size_t byte_offset, int64_t count) {
  return Pointer<T>(reinterpret_cast<T*>(emulator::SharedMemoryBytes(
                        byte_offset, static_cast<size_t>(count) * sizeof(T))),
                    count);
}

inline int Recomputed(int x) { return x; }

inline void SyncBlock() { emulator::Barrier(); }
inline void SyncWarp() {
  emulator::Collective("SyncWarp", nullptr, nullptr, [](const emulator::WarpExchange&) {});
}

namespace emulator {

template <class T>
struct Shuffled {
  T value;
  int from;  // lane
};

template <class T>
T ShuffleFrom(const char* name, T value, int from) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  const Shuffled<T> input{value, from};
  T output;
  Collective(name, &input, &output, [](const WarpExchange& x) {
    for (int l = 0; l < 32; ++l) {
      const auto& wanted = *static_cast<const Shuffled<T>*>(x.input[l]);
      const auto& source = *static_cast<const Shuffled<T>*>(x.input[wanted.from & 31]);
      *static_cast<T*>(x.output[l]) = source.value;
    }
  });
  return output;
}

}  // namespace emulator

template <class T>
T ShuffleXor(T value, int mask) {
  return emulator::ShuffleFrom("ShuffleXor", value, (ThreadIndex() % 32) ^ mask);
}
template <class T>
T Shuffle(T value, int lane) {
  return emulator::ShuffleFrom("Shuffle", value, lane);
}
inline uint32_t Ballot(bool predicate) {
  uint32_t result;
  emulator::Collective("Ballot", &predicate, &result, [](const emulator::WarpExchange& x) {
    uint32_t bits = 0;
    for (int l = 0; l < 32; ++l) bits |= uint32_t{*static_cast<const bool*>(x.input[l])} << l;
    for (int l = 0; l < 32; ++l) *static_cast<uint32_t*>(x.output[l]) = bits;
  });
  return result;
}

// Threads change only at collectives and barriers, so these are atomic as they are.
inline unsigned long long AtomicAdd(Pointer<unsigned long long> p, unsigned long long value) {
  return std::exchange(p[0], p[0] + value);
}
inline int AtomicAdd(Pointer<int> p, int value) { return std::exchange(p[0], p[0] + value); }
inline unsigned AtomicAdd(Pointer<unsigned> p, unsigned value) {
  return std::exchange(p[0], p[0] + value);
}
inline unsigned AtomicMax(Pointer<unsigned> p, unsigned value) {
  return std::exchange(p[0], std::max(p[0], value));
}

template <class T>
void CopyAsync16(Pointer<T> shared, Pointer<const T> global, bool valid) {
  emulator::BeginCopy16(shared.CheckedVector(0), valid ? global.CheckedVector(0) : nullptr);
}
inline void CommitCopies() { emulator::EndCopyGroup(); }
template <int pending>
void WaitCopies() {
  emulator::WaitCopyGroups(pending);
}

template <class T>
void LoadMatrix4(uint32_t (&r)[4], Pointer<const T> row) {
  emulator::Collective("LoadMatrix4", row.CheckedVector(0), r, [](const emulator::WarpExchange& x) {
    for (int l = 0; l < 32; ++l) {
      for (int m = 0; m < 4; ++m) {
        const auto* const from = static_cast<const unsigned char*>(x.input[8 * m + l / 4]);
        std::memcpy(static_cast<uint32_t*>(x.output[l]) + m, from + l % 4 * 4, 4);
      }
    }
  });
}
template <class T>
void LoadMatrix4Transposed(uint32_t (&r)[4], Pointer<const T> row) {
  emulator::Collective(
      "LoadMatrix4Transposed", row.CheckedVector(0), r, [](const emulator::WarpExchange& x) {
        for (int l = 0; l < 32; ++l) {
          for (int m = 0; m < 4; ++m) {
            uint16_t pair[2];
            for (int i = 0; i < 2; ++i) {
              const auto* const from =
                  static_cast<const unsigned char*>(x.input[8 * m + l % 4 * 2 + i]);
              std::memcpy(&pair[i], from + l / 4 * 2, 2);
            }
            std::memcpy(static_cast<uint32_t*>(x.output[l]) + m, pair, 4);
          }
        }
      });
}

namespace emulator {

struct Fragments {
  const uint32_t* a;
  const uint32_t* b;
};

// Row and column of element `i` of a lane's part of d.
inline int ResultRow(int lane, int i) { return lane / 4 + i / 2 * 8; }
inline int ResultColumn(int lane, int i) { return lane % 4 * 2 + i % 2; }

template <class T>
void MultiplyFragments(const WarpExchange& x) {
  T a[16][16];
  T b[8][16];
  float d[16][8];
  for (int l = 0; l < 32; ++l) {
    const auto& in = *static_cast<const Fragments*>(x.input[l]);
    const auto* const own = static_cast<const float*>(x.output[l]);
    const int row = l / 4, column = l % 4 * 2;
    for (int i = 0; i < 4; ++i) {
      std::memcpy(static_cast<void*>(&a[row + i % 2 * 8][column + i / 2 * 8]), &in.a[i], 4);
      d[ResultRow(l, i)][ResultColumn(l, i)] = own[i];
    }
    for (int i = 0; i < 2; ++i)
      std::memcpy(static_cast<void*>(&b[row][column + i * 8]), &in.b[i], 4);
  }
  TensorCoreMultiplyAdd(a, b, d);
  for (int l = 0; l < 32; ++l) {
    for (int i = 0; i < 4; ++i) {
      static_cast<float*>(x.output[l])[i] = d[ResultRow(l, i)][ResultColumn(l, i)];
    }
  }
  CountMatrixInstruction();
}

}  // namespace emulator

template <class T>
void MatrixMultiplyAdd(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  const emulator::Fragments in{a, b};
  emulator::Collective("MatrixMultiplyAdd", &in, d, &emulator::MultiplyFragments<T>);
}

inline float Fma(float a, float b, float c) { return std::fma(a, b, c); }
inline double Fma(double a, double b, double c) { return std::fma(a, b, c); }
inline float SquareRoot(float x) { return std::sqrt(x); }
inline double SquareRoot(double x) { return std::sqrt(x); }
inline float Exp2Approximate(float x) { return std::exp2(x); }
inline float BitsToFloat(uint32_t bits) { return std::bit_cast<float>(bits); }
inline uint32_t FloatToBits(float x) { return std::bit_cast<uint32_t>(x); }

inline float Widen(float x) { return x; }
inline float Widen(Float16 x) { return ToFloat(x); }
inline float Widen(BFloat16 x) { return ToFloat(x); }

template <class T>
T Round(float x) {
  return FromFloat<T>(x);
}
template <class T>
uint32_t RoundPair(float low, float high) {
  return uint32_t{Round<T>(low).bits} | uint32_t{Round<T>(high).bits} << 16;
}

}  // namespace halfstep::cuda
