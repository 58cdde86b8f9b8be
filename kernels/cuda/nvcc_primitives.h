// SPDX-License-Identifier: Apache-2.0
// The wrappers of device_code.h for the GPU. Included by it alone.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "kernels/dtype.h"

#define HALFSTEP_KERNEL __global__
#define HALFSTEP_DEVICE __device__ __forceinline__
#define HALFSTEP_HOST_DEVICE __host__ __device__ __forceinline__
// Before a parameter of a kernel that is an array indexed at run time: each thread would copy it to
// local memory otherwise. Makes it const.
#define HALFSTEP_INDEXED const __grid_constant__
// Between `void` and the name of a kernel: it is started with at most `threads` threads a block,
// and takes no more registers than let `blocks` of them share a multiprocessor.
#define HALFSTEP_LAUNCH_BOUNDS(threads, blocks) __launch_bounds__(threads, blocks)

namespace halfstep::cuda {

template <class T>
inline constexpr bool IsFloat16 = std::is_same_v<std::remove_const_t<T>, Float16>;

// An address of global or shared memory. The count of elements is for the emulator.
template <class T>
class Pointer {
 public:
  Pointer() = default;
  HALFSTEP_HOST_DEVICE Pointer(T* data, int64_t /*count*/) : data_(data) {}
  template <class Other>
  requires(std::is_const_v<T>&& std::is_same_v<const Other, T>)
      // NOLINTNEXTLINE(google-explicit-constructor)
      HALFSTEP_HOST_DEVICE Pointer(const Pointer<Other>& other)
      : data_(other.data()) {}

  HALFSTEP_HOST_DEVICE bool empty() const { return data_ == nullptr; }
  HALFSTEP_HOST_DEVICE T* data() const { return data_; }
  HALFSTEP_DEVICE T& operator[](int64_t i) const { return data_[i]; }
  HALFSTEP_DEVICE Pointer operator+(int64_t i) const { return Pointer(data_ + i, 0); }

 private:
  T* data_ = nullptr;
};

template <class P, class T>
HALFSTEP_DEVICE P* PackAddress(Pointer<T> p, int64_t i) {
  return reinterpret_cast<P*>(p.data() + i);
}

HALFSTEP_DEVICE int ThreadIndex() { return static_cast<int>(threadIdx.x); }
HALFSTEP_DEVICE int BlockThreads() { return static_cast<int>(blockDim.x); }
HALFSTEP_DEVICE int BlockX() { return static_cast<int>(blockIdx.x); }
HALFSTEP_DEVICE int BlockY() { return static_cast<int>(blockIdx.y); }
HALFSTEP_DEVICE int GridX() { return static_cast<int>(gridDim.x); }
HALFSTEP_DEVICE int GridY() { return static_cast<int>(gridDim.y); }

// `count` elements of the block's shared memory from `byte_offset` on. What a launch asked for is
// there; nothing is initialised.
template <class T>
HALFSTEP_DEVICE Pointer<T> SharedMemory(size_t byte_offset, int64_t count) {
  extern __shared__ __align__(128) unsigned char halfstep_shared_memory[];
  return Pointer<T>(reinterpret_cast<T*>(halfstep_shared_memory + byte_offset), count);
}

// x, of which the compiler no longer knows whence it is: what depends on it is computed where it is
// used instead of being kept in registers from an earlier use.
HALFSTEP_DEVICE int Recomputed(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

HALFSTEP_DEVICE void SyncBlock() { __syncthreads(); }
HALFSTEP_DEVICE void SyncWarp() { __syncwarp(); }

// float, or an integer of 32 or 64 bits, of another lane of the warp.
template <class T>
HALFSTEP_DEVICE T ShuffleXor(T value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}
template <class T>
HALFSTEP_DEVICE T Shuffle(T value, int lane) {
  return __shfl_sync(0xffffffffu, value, lane);
}
HALFSTEP_DEVICE uint32_t Ballot(bool predicate) { return __ballot_sync(0xffffffffu, predicate); }

// Integers only. Returns what was there before.
HALFSTEP_DEVICE unsigned long long AtomicAdd(Pointer<unsigned long long> p,
                                             unsigned long long value) {
  return atomicAdd(p.data(), value);
}
HALFSTEP_DEVICE int AtomicAdd(Pointer<int> p, int value) { return atomicAdd(p.data(), value); }
HALFSTEP_DEVICE unsigned AtomicAdd(Pointer<unsigned> p, unsigned value) {
  return atomicAdd(p.data(), value);
}
HALFSTEP_DEVICE unsigned AtomicMax(Pointer<unsigned> p, unsigned value) {
  return atomicMax(p.data(), value);
}

// Copies 16 bytes from global to shared memory, or zeros where not `valid` (`global` is then not
// read). Both addresses are multiples of 16 bytes. The bytes are there after the WaitCopies that
// covers the group, and for other threads after a barrier behind it.
template <class T>
HALFSTEP_DEVICE void CopyAsync16(Pointer<T> shared, Pointer<const T> global, bool valid) {
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(shared.data()));
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(global.data()),
               "r"(bytes)
               : "memory");
}
// Ends a group of copies (which may be empty).
HALFSTEP_DEVICE void CommitCopies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most `pending` of this thread's latest groups are under way.
template <int pending>
HALFSTEP_DEVICE void WaitCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// Four 8 x 8 matrices of 16-bit elements from shared memory: lane 8 m + r gives the address of row
// r of matrix m; r[m] of lane l is elements 2 (l % 4) and 2 (l % 4) + 1 of row l / 4 of matrix m.
template <class T>
HALFSTEP_DEVICE void LoadMatrix4(uint32_t (&r)[4], Pointer<const T> row) {
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(row.data()));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
// The same matrices transposed: r[m] of lane l is column l / 4, rows 2 (l % 4) and 2 (l % 4) + 1.
template <class T>
HALFSTEP_DEVICE void LoadMatrix4Transposed(uint32_t (&r)[4], Pointer<const T> row) {
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(row.data()));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

// d += A B with A: 16 x 16, B: 16 x 8 of T (Float16 or BFloat16), d FP32, in the layout of
// mma.sync.m16n8k16 (PTX ISA, "Matrix Fragments for mma.m16n8k16").
template <class T>
HALFSTEP_DEVICE void MatrixMultiplyAdd(float (&d)[4], const uint32_t (&a)[4],
                                       const uint32_t (&b)[2]) {
  if constexpr (IsFloat16<T>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
}

HALFSTEP_DEVICE float Fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
HALFSTEP_DEVICE double Fma(double a, double b, double c) { return __fma_rn(a, b, c); }
HALFSTEP_DEVICE float SquareRoot(float x) { return __fsqrt_rn(x); }
HALFSTEP_DEVICE double SquareRoot(double x) { return __dsqrt_rn(x); }
// 2^x within two units in the last place; the emulator's low bits may differ from the chip's.
HALFSTEP_DEVICE float Exp2Approximate(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
HALFSTEP_DEVICE float BitsToFloat(uint32_t bits) { return __uint_as_float(bits); }
HALFSTEP_DEVICE uint32_t FloatToBits(float x) { return __float_as_uint(x); }

// Exact.
HALFSTEP_DEVICE float Widen(float x) { return x; }
HALFSTEP_DEVICE float Widen(Float16 x) { return __half2float(__ushort_as_half(x.bits)); }
HALFSTEP_DEVICE float Widen(BFloat16 x) { return __uint_as_float(uint32_t{x.bits} << 16); }

// Round to nearest, ties to even; overflow becomes infinity.
template <class T>
HALFSTEP_DEVICE T Round(float x) {
  if constexpr (IsFloat16<T>) {
    return Float16{__half_as_ushort(__float2half_rn(x))};
  } else if constexpr (std::is_same_v<T, BFloat16>) {
    return BFloat16{__bfloat16_as_ushort(__float2bfloat16_rn(x))};
  } else {
    return x;
  }
}

// Two rounded values as a matrix register holds them, `low` in the lower half.
template <class T>
HALFSTEP_DEVICE uint32_t RoundPair(float low, float high) {
  return uint32_t{Round<T>(low).bits} | uint32_t{Round<T>(high).bits} << 16;
}

}  // namespace halfstep::cuda
