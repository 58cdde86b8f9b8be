// SPDX-License-Identifier: Apache-2.0
// Vector arithmetic on 16 virtual lanes: one AVX-512 register or two AVX2 registers, the same bits
// on both. Included once per Highway target; a .cc that uses it looks like this:
//
//   #undef HWY_TARGET_INCLUDE
//   #define HWY_TARGET_INCLUDE "kernels/cpu/norm.cc"
//   #include "hwy/foreach_target.h"  // must come before highway.h
//   #include "kernels/cpu/simd-inl.h"
//   HWY_BEFORE_NAMESPACE();
//   namespace halfstep::cpu::HWY_NAMESPACE {
//   void RmsNormImpl(...) { ... }
//   }  // namespace halfstep::cpu::HWY_NAMESPACE
//   HWY_AFTER_NAMESPACE();
//   #if HWY_ONCE
//   namespace halfstep::cpu {
//   HWY_EXPORT(RmsNormImpl);
//   void RmsNorm(...) { HWY_DYNAMIC_DISPATCH(RmsNormImpl)(...); }
//   }
//   #endif
//
// Headers above HWY_BEFORE_NAMESPACE are compiled for the baseline, so they must not be used with
// vector arguments.

#if defined(HALFSTEP_KERNELS_CPU_SIMD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HALFSTEP_KERNELS_CPU_SIMD_INL_H_
#undef HALFSTEP_KERNELS_CPU_SIMD_INL_H_
#else
#define HALFSTEP_KERNELS_CPU_SIMD_INL_H_
#endif

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

#include "hwy/highway.h"
#include "kernels/dtype.h"

HWY_BEFORE_NAMESPACE();
namespace halfstep::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using F32 = hn::ScalableTag<float>;
using I32 = hn::RebindToSigned<F32>;
using U32 = hn::RebindToUnsigned<F32>;
inline constexpr F32 kF32{};
inline constexpr I32 kI32{};
inline constexpr U32 kU32{};

inline constexpr size_t kVirtualLanes = 16;
inline constexpr size_t kHalfLanes = kVirtualLanes / 2;
inline constexpr hn::FixedTag<float, kHalfLanes> kF32Half{};
inline constexpr size_t kPartLanes = hn::MaxLanes(F32());
inline constexpr size_t kParts = kVirtualLanes / kPartLanes;
static_assert(kParts == 1 || kParts == 2);

// Part p holds virtual lanes [p * kPartLanes, (p + 1) * kPartLanes).
struct F32x16 {
  hn::Vec<F32> part[kParts];
};
struct Mask16 {
  hn::Mask<F32> part[kParts];
};

// ---- one register: a part, or eight lanes

template <class D>
HWY_INLINE hn::Vec<D> LoadAs(D d, const float* p) {
  return hn::LoadU(d, p);
}
template <class D>
HWY_INLINE hn::Vec<D> LoadAs(D d, const Float16* p) {
  const hn::Rebind<hwy::float16_t, D> d16;
  return hn::PromoteTo(d, hn::LoadU(d16, reinterpret_cast<const hwy::float16_t*>(p)));
}
template <class D>
HWY_INLINE hn::Vec<D> LoadAs(D d, const BFloat16* p) {
  const hn::Rebind<uint16_t, D> d16;
  const hn::RebindToUnsigned<D> d32;
  const auto bits = hn::PromoteTo(d32, hn::LoadU(d16, reinterpret_cast<const uint16_t*>(p)));
  return hn::BitCast(d, hn::ShiftLeft<16>(bits));
}
template <class T>
HWY_INLINE hn::Vec<F32> LoadPart(const T* p) {
  return LoadAs(kF32, p);
}

// Rounds to nearest, ties to even; overflow becomes infinity and NaN stays NaN.
template <class D>
HWY_INLINE void StoreAs(D d, hn::Vec<D> v, float* p) {
  hn::StoreU(v, d, p);
}
template <class D>
HWY_INLINE void StoreAs(D, hn::Vec<D> v, Float16* p) {
  const hn::Rebind<hwy::float16_t, D> d16;
  hn::StoreU(hn::DemoteTo(d16, v), d16, reinterpret_cast<hwy::float16_t*>(p));
}
template <class D>
HWY_INLINE void StoreAs(D, hn::Vec<D> v, BFloat16* p) {
  // Highway's own conversion to bfloat16 truncates.
  const hn::Rebind<uint16_t, D> d16;
  const hn::RebindToUnsigned<D> d32;
  const hn::RebindToSigned<D> i32;
  const auto bits = hn::BitCast(d32, v);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(d32, 1));
  const auto rounded = hn::ShiftRight<16>(hn::Add(bits, hn::Add(odd, hn::Set(d32, 0x7fff))));
  const auto quiet = hn::Or(hn::ShiftRight<16>(bits), hn::Set(d32, 0x40));
  const auto is_nan = hn::RebindMask(d32, hn::IsNaN(v));
  const auto result = hn::IfThenElse(is_nan, quiet, rounded);
  hn::StoreU(hn::DemoteTo(d16, hn::BitCast(i32, result)), d16, reinterpret_cast<uint16_t*>(p));
}
template <class T>
HWY_INLINE void StorePart(hn::Vec<F32> v, T* p) {
  StoreAs(kF32, v, p);
}

// Lanes 0 to 7 of a part, which may have no more.
template <class V>
HWY_INLINE hn::Vec<hn::FixedTag<float, kHalfLanes>> LowHalf(V v) {
  if constexpr (sizeof(V) > kHalfLanes * sizeof(float)) {
    return hn::LowerHalf(kF32Half, v);
  } else {
    return v;
  }
}

// ---- loads and stores of 16 lanes

HWY_INLINE F32x16 Set16(float value) {
  F32x16 r;
  for (size_t p = 0; p < kParts; ++p) r.part[p] = hn::Set(kF32, value);
  return r;
}
HWY_INLINE F32x16 Zero16() { return Set16(0.0f); }

// Exact conversion of 16 elements to FP32.
template <class T>
HWY_INLINE F32x16 Load16(const T* from) {
  F32x16 r;
  for (size_t p = 0; p < kParts; ++p) r.part[p] = LoadPart(from + p * kPartLanes);
  return r;
}

// The first min(count, 16) elements; the other lanes are 0.
template <class T>
HWY_INLINE F32x16 Load16(const T* from, size_t count) {
  if (count >= kVirtualLanes) return Load16(from);
  if (count == kHalfLanes) {  // without a way through memory: half of a head of 16
    const auto low = LoadAs(kF32Half, from);
    F32x16 r = Zero16();
    if constexpr (kParts == 1) {
      r.part[0] = hn::ZeroExtendVector(kF32, low);
    } else {
      r.part[0] = low;
    }
    return r;
  }
  T padded[kVirtualLanes] = {};
  std::memcpy(padded, from, count * sizeof(T));
  return Load16(padded);
}

// Rounds to nearest even; overflow becomes infinity. For gradients.
template <class T>
HWY_INLINE void Store16(const F32x16& v, T* to) {
  for (size_t p = 0; p < kParts; ++p) StorePart(v.part[p], to + p * kPartLanes);
}
template <class T>
HWY_INLINE void Store16(const F32x16& v, T* to, size_t count) {
  if (count >= kVirtualLanes) return Store16(v, to);
  if (count == kHalfLanes) return StoreAs(kF32Half, LowHalf(v.part[0]), to);
  T padded[kVirtualLanes];
  Store16(v, padded);
  std::memcpy(to, padded, count * sizeof(T));
}

// Rounds to nearest even; FP16 values beyond +-65 504 are stored as +-65 504 (NaN stays NaN).
// Returns how many of the stored elements that happened to; always 0 for the other types. For
// forward passes.
template <class T>
HWY_INLINE size_t StoreSaturated16(const F32x16& v, T* to, size_t count = kVirtualLanes) {
  if constexpr (!__is_same(T, Float16)) {
    Store16(v, to, count);
    return 0;
  } else {
    const auto limit = hn::Set(kF32, kFloat16Max);
    auto beyond = hn::Gt(hn::Abs(v.part[0]), limit);
    if constexpr (kParts == 2) beyond = hn::Or(beyond, hn::Gt(hn::Abs(v.part[1]), limit));
    if (HWY_LIKELY(hn::AllFalse(kF32, beyond))) {
      Store16(v, to, count);
      return 0;
    }
    F32x16 clamped = v;
    size_t saturated = 0;
    for (size_t p = 0; p < kParts; ++p) {
      beyond = hn::Gt(hn::Abs(v.part[p]), limit);
      clamped.part[p] = hn::IfThenElse(beyond, hn::CopySign(limit, v.part[p]), v.part[p]);
      const size_t begin = p * kPartLanes;
      const size_t used = count <= begin ? 0 : count - begin;
      saturated += hn::CountTrue(kF32, hn::And(beyond, hn::FirstN(kF32, used)));
    }
    Store16(clamped, to, count);
    return saturated;
  }
}

// ---- arithmetic, lane by lane

#define HALFSTEP_SIMD_BINARY_(name, op)                                           \
  HWY_INLINE F32x16 name(const F32x16& a, const F32x16& b) {                      \
    F32x16 r;                                                                     \
    for (size_t p = 0; p < kParts; ++p) r.part[p] = hn::op(a.part[p], b.part[p]); \
    return r;                                                                     \
  }
HALFSTEP_SIMD_BINARY_(operator+, Add)
HALFSTEP_SIMD_BINARY_(operator-, Sub)
HALFSTEP_SIMD_BINARY_(operator*, Mul)
HALFSTEP_SIMD_BINARY_(operator/, Div)
HALFSTEP_SIMD_BINARY_(Max, Max)  // the second operand where either is NaN
HALFSTEP_SIMD_BINARY_(Min, Min)  // the second operand where either is NaN
#undef HALFSTEP_SIMD_BINARY_

#define HALFSTEP_SIMD_UNARY_(name)                                       \
  HWY_INLINE F32x16 name(const F32x16& a) {                              \
    F32x16 r;                                                            \
    for (size_t p = 0; p < kParts; ++p) r.part[p] = hn::name(a.part[p]); \
    return r;                                                            \
  }
HALFSTEP_SIMD_UNARY_(Neg)
HALFSTEP_SIMD_UNARY_(Abs)
HALFSTEP_SIMD_UNARY_(Sqrt)
#undef HALFSTEP_SIMD_UNARY_

// a * b + c, rounded once.
HWY_INLINE F32x16 MulAdd(const F32x16& a, const F32x16& b, const F32x16& c) {
  F32x16 r;
  for (size_t p = 0; p < kParts; ++p) r.part[p] = hn::MulAdd(a.part[p], b.part[p], c.part[p]);
  return r;
}
// c - a * b, rounded once.
HWY_INLINE F32x16 NegMulAdd(const F32x16& a, const F32x16& b, const F32x16& c) {
  F32x16 r;
  for (size_t p = 0; p < kParts; ++p) r.part[p] = hn::NegMulAdd(a.part[p], b.part[p], c.part[p]);
  return r;
}

#define HALFSTEP_SIMD_COMPARE_(name, op)                                          \
  HWY_INLINE Mask16 name(const F32x16& a, const F32x16& b) {                      \
    Mask16 r;                                                                     \
    for (size_t p = 0; p < kParts; ++p) r.part[p] = hn::op(a.part[p], b.part[p]); \
    return r;                                                                     \
  }
HALFSTEP_SIMD_COMPARE_(Less, Lt)
HALFSTEP_SIMD_COMPARE_(LessEqual, Le)
HALFSTEP_SIMD_COMPARE_(Equal, Eq)
#undef HALFSTEP_SIMD_COMPARE_

// Neither infinite nor NaN.
HWY_INLINE Mask16 IsFinite(const F32x16& a) {
  return Less(Abs(a), Set16(std::numeric_limits<float>::infinity()));
}
HWY_INLINE Mask16 FirstLanes(size_t count) {
  Mask16 r;
  for (size_t p = 0; p < kParts; ++p) {
    const size_t begin = p * kPartLanes;
    r.part[p] = hn::FirstN(kF32, count <= begin ? 0 : count - begin);
  }
  return r;
}
HWY_INLINE F32x16 Select(const Mask16& mask, const F32x16& yes, const F32x16& no) {
  F32x16 r;
  for (size_t p = 0; p < kParts; ++p) {
    r.part[p] = hn::IfThenElse(mask.part[p], yes.part[p], no.part[p]);
  }
  return r;
}
HWY_INLINE bool AllTrue(const Mask16& mask) {
  for (size_t p = 0; p < kParts; ++p) {
    if (!hn::AllTrue(kF32, mask.part[p])) return false;
  }
  return true;
}
HWY_INLINE size_t CountTrue(const Mask16& mask) {
  size_t count = 0;
  for (size_t p = 0; p < kParts; ++p) count += hn::CountTrue(kF32, mask.part[p]);
  return count;
}

// The values as they would be after a store to T and a load; overflow becomes infinity.
template <class T>
HWY_INLINE F32x16 RoundTo(const F32x16& v) {
  if constexpr (sizeof(T) == 4) {
    return v;
  } else {
    T rounded[kVirtualLanes];
    Store16(v, rounded);
    return Load16(rounded);
  }
}

// ---- reductions: lane i joins lane i + 8, then i + 4, i + 2, i + 1

using F32x8 = hn::Vec<hn::FixedTag<float, 8>>;
#if HWY_MAX_BYTES == 64
HWY_INLINE F32x8 Lanes0To7(const F32x16& v) {
  return hn::LowerHalf(hn::FixedTag<float, 8>(), v.part[0]);
}
HWY_INLINE F32x8 Lanes8To15(const F32x16& v) {
  return hn::UpperHalf(hn::FixedTag<float, 8>(), v.part[0]);
}
#else
HWY_INLINE F32x8 Lanes0To7(const F32x16& v) { return v.part[0]; }
HWY_INLINE F32x8 Lanes8To15(const F32x16& v) { return v.part[1]; }
#endif

#define HALFSTEP_SIMD_REDUCE_(name, op)                                   \
  HWY_INLINE float name(const F32x16& v) {                                \
    const hn::FixedTag<float, 4> d4;                                      \
    const auto v8 = hn::op(Lanes0To7(v), Lanes8To15(v));                  \
    const auto v4 = hn::op(hn::LowerHalf(d4, v8), hn::UpperHalf(d4, v8)); \
    const auto v2 = hn::op(v4, hn::Shuffle1032(v4));                      \
    return hn::GetLane(hn::op(v2, hn::Shuffle2301(v2)));                  \
  }
HALFSTEP_SIMD_REDUCE_(ReduceSum, Add)
HALFSTEP_SIMD_REDUCE_(ReduceMax, Max)  // unspecified where a lane is NaN
#undef HALFSTEP_SIMD_REDUCE_

// ---- exp and log: our own, so that neither libm nor the vector width changes a bit

// exp(x) within 1 ulp: 0 below about -104, +inf above about 88.7, NaN for NaN.
HWY_INLINE hn::Vec<F32> ExpPart(hn::Vec<F32> x) {
  // Lanes that end at 0, such as masked scores, go the way of exp(0): an underflow costs the
  // processor some hundred cycles.
  const auto vanishes = hn::Lt(x, hn::Set(kF32, -104.0f));
  const auto clamped = hn::Min(hn::IfThenZeroElse(vanishes, x), hn::Set(kF32, 89.0f));
  const auto n = hn::Round(hn::Mul(clamped, hn::Set(kF32, 1.44269504088896341f)));
  auto r = hn::NegMulAdd(n, hn::Set(kF32, 0.693359375f), clamped);
  r = hn::NegMulAdd(n, hn::Set(kF32, -2.12194440e-4f), r);
  auto p = hn::Set(kF32, 1.9875691500e-4f);
  p = hn::MulAdd(p, r, hn::Set(kF32, 1.3981999507e-3f));
  p = hn::MulAdd(p, r, hn::Set(kF32, 8.3334519073e-3f));
  p = hn::MulAdd(p, r, hn::Set(kF32, 4.1665795894e-2f));
  p = hn::MulAdd(p, r, hn::Set(kF32, 1.6666665459e-1f));
  p = hn::MulAdd(p, r, hn::Set(kF32, 5.0000001201e-1f));
  p = hn::Add(hn::MulAdd(p, hn::Mul(r, r), r), hn::Set(kF32, 1.0f));
  // 2^n in two factors, so that subnormal results are rounded once and overflow reaches infinity.
  const auto exponent = hn::ConvertTo(kI32, n);
  const auto half = hn::ShiftRight<1>(exponent);
  const auto rest = hn::Sub(exponent, half);
  const auto bias = hn::Set(kI32, 127);
  const auto scale1 = hn::BitCast(kF32, hn::ShiftLeft<23>(hn::Add(half, bias)));
  const auto scale2 = hn::BitCast(kF32, hn::ShiftLeft<23>(hn::Add(rest, bias)));
  const auto result = hn::IfThenZeroElse(vanishes, hn::Mul(hn::Mul(p, scale1), scale2));
  return hn::IfThenElse(hn::IsNaN(x), x, result);
}
HWY_INLINE F32x16 Exp(const F32x16& x) {
  F32x16 r;
  for (size_t p = 0; p < kParts; ++p) r.part[p] = ExpPart(x.part[p]);
  return r;
}

// log(x) within 1 ulp, subnormals included: -inf for 0, +inf for +inf, NaN below 0 and for NaN.
HWY_INLINE hn::Vec<F32> LogPart(hn::Vec<F32> x) {
  const auto zero = hn::Zero(kF32);
  const auto inf = hn::Set(kF32, std::numeric_limits<float>::infinity());
  const auto tiny = hn::Lt(x, hn::Set(kF32, std::numeric_limits<float>::min()));
  const auto normal = hn::IfThenElse(tiny, hn::Mul(x, hn::Set(kF32, 0x1p25f)), x);
  // normal = 2^e * (1 + z), 1 + z in [sqrt(1/2), sqrt(2)).
  const auto sqrt_half = hn::Set(kI32, 0x3f3504f3);
  const auto offset = hn::Sub(hn::BitCast(kI32, normal), sqrt_half);
  const auto exponent = hn::ShiftRight<23>(offset);
  const auto mantissa = hn::Add(hn::And(offset, hn::Set(kI32, 0x7fffff)), sqrt_half);
  const auto e =
      hn::Sub(hn::ConvertTo(kF32, exponent), hn::IfThenElseZero(tiny, hn::Set(kF32, 25.0f)));
  const auto z = hn::Sub(hn::BitCast(kF32, mantissa), hn::Set(kF32, 1.0f));
  const auto z2 = hn::Mul(z, z);
  auto p = hn::Set(kF32, 7.0376836292e-2f);
  p = hn::MulAdd(p, z, hn::Set(kF32, -1.1514610310e-1f));
  p = hn::MulAdd(p, z, hn::Set(kF32, 1.1676998740e-1f));
  p = hn::MulAdd(p, z, hn::Set(kF32, -1.2420140846e-1f));
  p = hn::MulAdd(p, z, hn::Set(kF32, 1.4249322787e-1f));
  p = hn::MulAdd(p, z, hn::Set(kF32, -1.6668057665e-1f));
  p = hn::MulAdd(p, z, hn::Set(kF32, 2.0000714765e-1f));
  p = hn::MulAdd(p, z, hn::Set(kF32, -2.4999993993e-1f));
  p = hn::MulAdd(p, z, hn::Set(kF32, 3.3333331174e-1f));
  auto y = hn::Mul(hn::Mul(p, z), z2);
  y = hn::MulAdd(e, hn::Set(kF32, -2.12194440e-4f), y);
  y = hn::NegMulAdd(z2, hn::Set(kF32, 0.5f), y);
  auto r = hn::MulAdd(e, hn::Set(kF32, 0.693359375f), hn::Add(z, y));
  r = hn::IfThenElse(hn::Eq(x, zero), hn::Neg(inf), r);
  r = hn::IfThenElse(hn::Lt(x, zero), hn::Set(kF32, std::numeric_limits<float>::quiet_NaN()), r);
  return hn::IfThenElse(hn::Lt(x, inf), r, x);  // +inf and NaN stay what they are
}
HWY_INLINE F32x16 Log(const F32x16& x) {
  F32x16 r;
  for (size_t p = 0; p < kParts; ++p) r.part[p] = LogPart(x.part[p]);
  return r;
}

// One value through the same code, so a scalar gets the bits its lane would.
HWY_INLINE float ExpOne(float x) { return hn::GetLane(ExpPart(hn::Set(kF32, x))); }
HWY_INLINE float LogOne(float x) { return hn::GetLane(LogPart(hn::Set(kF32, x))); }

}  // namespace halfstep::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
