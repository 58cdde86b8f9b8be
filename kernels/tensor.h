// SPDX-License-Identifier: Apache-2.0
// Tensor: a non-owning, row-major, contiguous view {data, dtype, device, shape}. Cheap to copy;
// never allocates and never converts. Buffer (buffer.h) owns memory, Workspace (workspace.h) lends
// scratch.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <ostream>
#include <type_traits>

#include "kernels/check.h"
#include "kernels/device.h"
#include "kernels/dtype.h"

namespace halfstep {

// Up to four dimensions. A rank of zero is a scalar with one element.
class Shape {
 public:
  static constexpr int kMaxRank = 4;

  constexpr Shape() = default;
  constexpr Shape(std::initializer_list<int64_t> dims) {
    HALFSTEP_CHECK_LE(dims.size(), size_t{kMaxRank});
    for (const int64_t dim : dims) dims_[rank_++] = dim;
  }

  constexpr int rank() const { return rank_; }
  constexpr int64_t operator[](int axis) const { return dims_[axis]; }
  constexpr int64_t elements() const {
    int64_t product = 1;
    for (int i = 0; i < rank_; ++i) product *= dims_[i];
    return product;
  }
  friend constexpr bool operator==(const Shape& a, const Shape& b) {
    if (a.rank_ != b.rank_) return false;
    for (int i = 0; i < a.rank_; ++i) {
      if (a.dims_[i] != b.dims_[i]) return false;
    }
    return true;
  }
  friend std::ostream& operator<<(std::ostream& out, const Shape& shape) {
    out << '[';
    for (int i = 0; i < shape.rank_; ++i) out << (i ? ", " : "") << shape.dims_[i];
    return out << ']';
  }

 private:
  std::array<int64_t, kMaxRank> dims_{};
  int rank_ = 0;
};

// `Byte` is void for a mutable view and const void for a read-only one.
template <class Byte>
class BasicTensor {
 public:
  constexpr BasicTensor() = default;
  constexpr BasicTensor(Byte* data, DType dtype, Shape shape, Device device = kCpuDevice)
      : data_(data), shape_(shape), dtype_(dtype), device_(device) {}

  // A mutable view converts to a read-only one.
  template <class Other>
  requires(std::is_const_v<Byte> && !std::is_const_v<Other>)
      // NOLINTNEXTLINE(google-explicit-constructor)
      constexpr BasicTensor(const BasicTensor<Other>& other)
      : data_(other.data()),
        shape_(other.shape()),
        dtype_(other.dtype()),
        device_(other.device()) {}

  // True for a view of nothing: how an optional tensor is left out.
  constexpr bool empty() const { return data_ == nullptr; }
  constexpr Byte* data() const { return data_; }
  constexpr DType dtype() const { return dtype_; }
  constexpr Device device() const { return device_; }
  constexpr const Shape& shape() const { return shape_; }
  constexpr int rank() const { return shape_.rank(); }
  constexpr int64_t dim(int axis) const { return shape_[axis]; }
  constexpr int64_t elements() const { return empty() ? 0 : shape_.elements(); }
  constexpr size_t bytes() const { return static_cast<size_t>(elements()) * SizeOf(dtype_); }

  // Typed pointer; CHECKs that T is the element type.
  template <class T>
  auto* as() const {
    HALFSTEP_CHECK(empty() || DTypeOf<T>::value == dtype_);
    using Element = std::conditional_t<std::is_const_v<Byte>, const T, T>;
    return static_cast<Element*>(data_);
  }

  // Rows [begin, begin + count) of the first axis.
  constexpr BasicTensor Rows(int64_t begin, int64_t count) const {
    HALFSTEP_CHECK_GE(rank(), 1);
    HALFSTEP_CHECK_LE(begin + count, shape_[0]);
    const int64_t row = shape_[0] == 0 ? 0 : shape_.elements() / shape_[0];
    using Address = std::conditional_t<std::is_const_v<Byte>, const char, char>;
    BasicTensor slice = *this;
    slice.data_ = static_cast<Address*>(data_) + begin * row * static_cast<int64_t>(SizeOf(dtype_));
    slice.shape_ = rank() == 1   ? Shape{count}
                   : rank() == 2 ? Shape{count, shape_[1]}
                   : rank() == 3 ? Shape{count, shape_[1], shape_[2]}
                                 : Shape{count, shape_[1], shape_[2], shape_[3]};
    return slice;
  }

  // The same elements under another shape.
  constexpr BasicTensor Reshape(Shape shape) const {
    HALFSTEP_CHECK_EQ(shape.elements(), shape_.elements());
    BasicTensor view = *this;
    view.shape_ = shape;
    return view;
  }

 private:
  Byte* data_ = nullptr;
  Shape shape_;
  DType dtype_ = DType::kFloat32;
  Device device_;
};

using Tensor = BasicTensor<void>;
using ConstTensor = BasicTensor<const void>;

}  // namespace halfstep
