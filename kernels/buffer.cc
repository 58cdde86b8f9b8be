// SPDX-License-Identifier: Apache-2.0
// Allocation of named memory and the process-wide registry behind MemoryReport.
#include "kernels/buffer.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <new>
#include <utility>

#include "kernels/cuda/runtime.h"

namespace halfstep {
namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kHugePage = size_t{2} << 20;

constexpr size_t RoundUp(size_t value, size_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// From one huge page on, memory comes straight from the kernel: already zero, and not resident
// until it is touched.
bool IsMapped(size_t bytes) { return bytes >= kHugePage; }

// Maps one huge page more than needed and returns both ends, so that the start is aligned to a huge
// page. The mapping is reserved: what the kernel will not promise fails here, not when it is
// touched.
void* MapZeroed(size_t bytes) {
  const size_t wanted = RoundUp(bytes, kHugePage);
  void* mapped = ::mmap(nullptr, wanted + kHugePage, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) throw std::bad_alloc();
  char* const start = static_cast<char*>(mapped);
  const size_t head =
      RoundUp(reinterpret_cast<uintptr_t>(start), kHugePage) - reinterpret_cast<uintptr_t>(start);
  if (head > 0) ::munmap(start, head);
  if (head < kHugePage) ::munmap(start + head + wanted, kHugePage - head);
  ::madvise(start + head, wanted, MADV_HUGEPAGE);  // A hint: without huge pages all still works.
  return start + head;
}

void* AllocateOnHost(size_t bytes) {
  if (IsMapped(bytes)) return MapZeroed(bytes);
  // A buffer of no bytes has an address all the same, because a tensor without one means "left
  // out".
  const size_t rounded = std::max(RoundUp(bytes, kAlignment), kAlignment);
  void* const data = std::aligned_alloc(kAlignment, rounded);
  if (data == nullptr) throw std::bad_alloc();
  std::memset(data, 0, rounded);
  return data;
}

void* AllocateZeroed(size_t bytes, Device device) {
  if (device.type == DeviceType::kCpu) return AllocateOnHost(bytes);
  if (cuda::AllocateMemory == nullptr) throw DeviceError("this build has no CUDA backend");
  return cuda::AllocateMemory(device.index, bytes);
}

void Free(void* data, size_t bytes, Device device) {
  if (device.type == DeviceType::kCuda) {
    cuda::FreeMemory(device.index, data, bytes);
  } else if (IsMapped(bytes)) {
    ::munmap(data, RoundUp(bytes, kHugePage));
  } else {
    std::free(data);
  }
}

struct Registry {
  struct Entry {
    size_t bytes = 0;
    size_t buffers = 0;
  };
  std::mutex mutex;
  std::map<std::string, Entry> by_name;  // guarded by mutex
};

// Never destroyed: buffers with static lifetime may outlive every other static.
Registry& GlobalRegistry() {
  static Registry* const registry = new Registry;
  return *registry;
}

void Register(const std::string& name, size_t bytes) {
  Registry& registry = GlobalRegistry();
  std::lock_guard lock(registry.mutex);
  Registry::Entry& entry = registry.by_name[name];
  entry.bytes += bytes;
  ++entry.buffers;
}

void Unregister(const std::string& name, size_t bytes) {
  Registry& registry = GlobalRegistry();
  std::lock_guard lock(registry.mutex);
  const auto it = registry.by_name.find(name);
  HALFSTEP_CHECK(it != registry.by_name.end());
  it->second.bytes -= bytes;
  if (--it->second.buffers == 0) registry.by_name.erase(it);
}

}  // namespace

Buffer::Buffer(std::string name, size_t bytes, Device device)
    : name_(std::move(name)), bytes_(bytes), device_(device) {
  data_ = AllocateZeroed(bytes, device);
  Register(name_, bytes_);
}

Buffer::~Buffer() {
  if (data_ == nullptr) return;
  Unregister(name_, bytes_);
  Free(data_, bytes_, device_);
}

Buffer::Buffer(Buffer&& other) noexcept
    : name_(std::exchange(other.name_, {})),
      data_(std::exchange(other.data_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)),
      device_(other.device_) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  Buffer taken(std::move(other));
  std::swap(name_, taken.name_);
  std::swap(data_, taken.data_);
  std::swap(bytes_, taken.bytes_);
  std::swap(device_, taken.device_);
  return *this;
}

Tensor Buffer::View(DType dtype, Shape shape, size_t byte_offset) {
  const size_t wanted = static_cast<size_t>(shape.elements()) * SizeOf(dtype);
  HALFSTEP_CHECK_LE(byte_offset, bytes_);
  HALFSTEP_CHECK_LE(wanted, bytes_ - byte_offset);
  return Tensor(static_cast<char*>(data_) + byte_offset, dtype, shape, device_);
}

ConstTensor Buffer::View(DType dtype, Shape shape, size_t byte_offset) const {
  return const_cast<Buffer*>(this)->View(dtype, shape, byte_offset);
}

OwnedTensor::OwnedTensor(std::string name, DType dtype, Shape shape, Device device)
    : buffer_(std::move(name), static_cast<size_t>(shape.elements()) * SizeOf(dtype), device),
      view_(buffer_.View(dtype, shape)) {}

std::vector<MemoryUse> MemoryReport() {
  std::vector<MemoryUse> report;
  {
    Registry& registry = GlobalRegistry();
    std::lock_guard lock(registry.mutex);
    for (const auto& [name, entry] : registry.by_name) report.push_back({name, entry.bytes});
  }
  std::stable_sort(report.begin(), report.end(),
                   [](const MemoryUse& a, const MemoryUse& b) { return a.bytes > b.bytes; });
  return report;
}

}  // namespace halfstep
