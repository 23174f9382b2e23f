// A device of PyTorch's own kind (PrivateUse1) for tests without a GPU: its memory is the host's, its kernels are the
// CPU's, its rules are a GPU's. Tensors of two devices do not mix; launches, waits of the host and bytes are counted;
// types and operators that a real device lacks are refused. Backward runs in autograd's thread for the device.
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <atomic>
#include <map>
#include <mutex>
#include <set>
#include <string>

namespace {

constexpr auto TYPE = c10::DeviceType::PrivateUse1;
const auto KEYS = c10::DispatchKeySet(c10::DispatchKey::PrivateUse1);
const auto DEVICE = c10::Device(TYPE, 0);
const auto STREAM = c10::Stream(c10::Stream::DEFAULT, DEVICE);

// ---- what is counted and what is refused ---------------------------------------------------------------------------

std::mutex guarded;
std::map<std::string, int64_t> by_name;
std::set<std::string> refused;
std::atomic<int64_t> launches{0}, stalls{0}, to_device{0}, to_host{0}, held{0}, peak{0};
std::atomic<bool> has_fp64{true};
thread_local int inside = 0;  // a kernel that borrows the CPU's, whose own copies are not the program's

struct Inside {
  Inside() { ++inside; }
  ~Inside() { --inside; }
};

void count(const std::string& name) {
  std::lock_guard<std::mutex> lock(guarded);
  ++by_name[name];
}

void launch(const std::string& name) {
  ++launches;
  count(name);
}

void stall(const std::string& name) {
  ++stalls;
  count(name);
}

bool is_ours(const at::Tensor& tensor) { return tensor.defined() && tensor.device().type() == TYPE; }

void check_type(at::ScalarType type) {
  const bool is_double = type == at::kDouble || type == at::kComplexDouble;
  TORCH_CHECK_TYPE(has_fp64 || !is_double, "this device has no float64");
}

void check_operator(const std::string& name) {
  std::lock_guard<std::mutex> lock(guarded);
  TORCH_CHECK_NOT_IMPLEMENTED(!refused.count(name), "The operator '", name, "' is not implemented for this device");
}

// ---- memory --------------------------------------------------------------------------------------------------------

struct Block {
  void* data;
  int64_t size;
};

void release(void* context) {
  auto* block = static_cast<Block*>(context);
  held -= block->size;
  std::free(block->data);
  delete block;
}

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t size) override {
    void* data = size ? std::aligned_alloc(64, (size + 63) / 64 * 64) : nullptr;
    const int64_t now = held += static_cast<int64_t>(size);
    for (auto most = peak.load(); now > most && !peak.compare_exchange_weak(most, now);) {
    }
    return {data, new Block{data, static_cast<int64_t>(size)}, &release, DEVICE};
  }
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* to, const void* from, size_t size) const override { default_copy_data(to, from, size); }
} memory;
REGISTER_ALLOCATOR(TYPE, &memory);

// ---- the device as PyTorch sees it: one, with one stream that is always done -----------------------------------------

struct Guard final : c10::impl::NoOpDeviceGuardImpl<TYPE> {
  c10::Device exchangeDevice(c10::Device) const override { return DEVICE; }
  c10::Device getDevice() const override { return DEVICE; }
  c10::Stream getStream(c10::Device) const noexcept override { return STREAM; }
  c10::Stream getNewStream(c10::Device, int) const override { return STREAM; }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return STREAM; }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override {
    return at::detail::getDefaultCPUGenerator();
  }
  at::Generator getNewGenerator(c10::DeviceIndex) const override { return at::detail::createCPUGenerator(); }
  at::Device getDeviceFromPtr(void*) const override { return DEVICE; }
  c10::Allocator* getPinnedMemoryAllocator() const override { return c10::GetCPUAllocator(); }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t size) const override {
    auto grown = memory.allocate(size);
    std::memcpy(grown.get(), storage.data(), std::min(size, storage.nbytes()));
    auto& changed = const_cast<c10::Storage&>(storage);
    changed.set_data_ptr_noswap(std::move(grown));
    changed.set_nbytes(size);
  }
} hooks;

// ---- tensors: made, seen another way, copied --------------------------------------------------------------------------

at::Tensor on_host(const at::Tensor& tensor) {  // the same bytes as a CPU tensor
  if (!is_ours(tensor)) return tensor;
  auto* data = static_cast<char*>(tensor.storage().mutable_data());
  auto* first = data ? data + tensor.storage_offset() * tensor.itemsize() : nullptr;
  auto keep = [kept = tensor.storage()](void*) {};
  auto options = tensor.options().device(at::kCPU).requires_grad(false);
  return at::from_blob(first, tensor.sizes(), tensor.strides(), keep, options);
}

at::Tensor on_device(const at::Tensor& tensor) {
  Inside borrowed;
  return tensor.defined() ? tensor.to(DEVICE) : tensor;
}

using Type = std::optional<at::ScalarType>;
using Layout = std::optional<at::Layout>;
using Place = std::optional<at::Device>;
using Format = std::optional<at::MemoryFormat>;
using Ints = at::SymIntArrayRef;

at::Tensor empty(Ints size, Type type, Layout, Place, std::optional<bool>, Format format) {
  check_type(dtype_or_default(type));
  return at::detail::empty_generic(C10_AS_INTARRAYREF_SLOW(size), &memory, KEYS, dtype_or_default(type), format);
}

at::Tensor empty_strided(Ints size, Ints stride, Type type, Layout, Place, std::optional<bool>) {
  check_type(dtype_or_default(type));
  return at::detail::empty_strided_generic(
      C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), &memory, KEYS, dtype_or_default(type));
}

at::Tensor as_strided(const at::Tensor& self, Ints size, Ints stride, std::optional<c10::SymInt> offset) {
  std::optional<int64_t> start = offset ? std::optional<int64_t>(offset->expect_int()) : std::nullopt;
  return at::native::as_strided_tensorimpl(
      self, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), start);
}

at::Tensor view(const at::Tensor& self, Ints size) { return at::native::view(self, C10_AS_INTARRAYREF_SLOW(size)); }

at::Tensor reshape_alias(const at::Tensor& self, Ints size, Ints stride) {
  return at::native::_reshape_alias(self, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride));
}

const at::Tensor& resize(const at::Tensor& self, Ints size, Format format) {
  auto wanted = C10_AS_INTARRAYREF_SLOW(size);
  auto* impl = self.unsafeGetTensorImpl();
  const int64_t bytes = (self.storage_offset() + c10::multiply_integers(wanted)) * self.itemsize();
  if (bytes > static_cast<int64_t>(self.storage().nbytes())) hooks.resizePrivateUse1Bytes(self.storage(), bytes);
  impl->set_sizes_contiguous(wanted);
  if (format && *format != at::MemoryFormat::Preserve) impl->empty_tensor_restride(*format);
  return self;
}

void count_copy(const at::Tensor& from, const at::Tensor& to, bool non_blocking) {
  if (is_ours(from) && is_ours(to)) return launch("copy on the device");
  const std::string name = is_ours(from) ? "device to host" : "host to device";
  (is_ours(from) ? to_host : to_device) += static_cast<int64_t>(from.nbytes());
  non_blocking ? count(name + ", not waited for") : stall(name);
}

at::Tensor copy_from(const at::Tensor& self, const at::Tensor& to, bool non_blocking) {
  if (!inside) count_copy(self, to, non_blocking);
  on_host(to).copy_(on_host(self));
  return to;
}

at::Tensor copy_from_and_resize(const at::Tensor& self, const at::Tensor& to) {
  if (self.sizes() != to.sizes()) to.resize_(self.sizes());
  on_host(to).copy_(on_host(self));
  return to;
}

at::Scalar item(const at::Tensor& self) {
  if (!inside) stall("item");
  return on_host(self).item();
}

at::Tensor& set_on(at::Tensor& self, at::Storage storage, c10::SymInt offset, Ints size, Ints stride) {
  TORCH_CHECK(storage.device().type() == TYPE, "a storage of ", storage.device(), " under a tensor of this device");
  auto* impl = self.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(std::move(storage));
  impl->set_storage_offset(offset.expect_int());
  impl->set_sizes_and_strides(C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride));
  return self;
}

at::Tensor& set_like(at::Tensor& self, const at::Tensor& other) {
  return set_on(self, other.storage(), other.storage_offset(), other.sym_sizes(), other.sym_strides());
}

at::Tensor& set_flat(at::Tensor& self, at::Storage storage) {
  const auto count = static_cast<int64_t>(storage.nbytes()) / static_cast<int64_t>(self.itemsize());
  return set_on(self, std::move(storage), 0, {count}, {1});
}

// ---- kernels, borrowed from the CPU ------------------------------------------------------------------------------------

using Maybe = std::optional<at::Tensor>;

int64_t plain_attention(
    const at::Tensor&, const at::Tensor&, const at::Tensor&, const Maybe&, double, bool, std::optional<double>, bool) {
  return 0;
}

void check_together(std::initializer_list<at::Tensor> all) {
  for (const auto& tensor : all)
    TORCH_CHECK(
        !tensor.defined() || is_ours(tensor),
        "Expected all tensors to be on the same device: convolution got one on ", tensor.device());
}

at::Tensor convolution(
    const at::Tensor& x, const at::Tensor& weight, const Maybe& bias, Ints stride, Ints padding, Ints dilation,
    bool transposed, Ints output_padding, c10::SymInt groups) {
  check_together({x, weight, bias.value_or(at::Tensor())});
  launch("convolution");
  auto added = bias && bias->defined() ? Maybe(on_host(*bias)) : std::nullopt;
  return on_device(at::convolution_symint(
      on_host(x), on_host(weight), added, stride, padding, dilation, transposed, output_padding, groups));
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> convolution_backward(
    const at::Tensor& grad, const at::Tensor& x, const at::Tensor& weight, Ints stride, Ints padding, Ints dilation,
    bool transposed, Ints output_padding, c10::SymInt groups, std::array<bool, 3> mask) {
  check_together({grad, x, weight});
  for (bool wanted : mask)
    if (wanted) launch("convolution_backward");
  std::vector<c10::SymInt> height{weight.sym_size(0)};
  auto bias = mask[2] ? at::OptionalSymIntArrayRef(height) : std::nullopt;
  auto [of_x, of_weight, of_bias] = at::convolution_backward_symint(
      on_host(grad), on_host(x), on_host(weight), bias, stride, padding, dilation, transposed, output_padding, groups,
      mask);
  return {on_device(of_x), on_device(of_weight), on_device(of_bias)};
}

// What makes a shape of values, or gives the host an answer, waits for the device.
const std::set<std::string> WAITING = {
    "aten::nonzero", "aten::masked_select", "aten::unique_dim", "aten::_unique2", "aten::unique_consecutive",
    "aten::bincount", "aten::equal", "aten::is_nonzero", "aten::repeat_interleave", "aten::linalg_svd",
    "aten::_linalg_svd"};

struct Seen {
  bool ours = false;
  std::string strays;

  void look(const at::Tensor& tensor) {
    if (!tensor.defined()) return;
    if (is_ours(tensor)) {
      ours = true;
      check_type(tensor.scalar_type());
    } else if (tensor.dim() > 0) {
      strays += " " + std::string(toString(tensor.scalar_type())) + c10::str(tensor.sizes()) + " on " +
                tensor.device().str();
    }
  }

  void look(const c10::IValue& value, bool indexing) {
    if (value.isTensor()) return look(value.toTensor());
    if (value.isTensorList())
      for (const auto& each : value.toTensorVector()) look(each);
    else if (value.isOptionalTensorList() && !indexing)  // indices may lie on the host
      for (const auto& each : value.toOptionalTensorVector())
        if (each) look(*each);
  }
};

void borrowed(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& name = op.schema().name();
  check_operator(name);
  launch(name);
  if (WAITING.count(name)) ++stalls;
  const bool indexing = name.rfind("aten::index", 0) == 0 || name.rfind("aten::_index", 0) == 0;
  Seen seen;
  for (auto at = stack->size() - op.schema().arguments().size(); at < stack->size(); ++at)
    seen.look((*stack)[at], indexing);
  TORCH_CHECK(
      !seen.ours || seen.strays.empty(), "Expected all tensors to be on the same device: ", name, " got", seen.strays,
      " beside tensors of the device");
  Inside kernel;
  at::native::cpu_fallback(op, stack);
}

}  // namespace

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("as_strided", as_strided);
  m.impl("view", view);
  m.impl("_reshape_alias", reshape_alias);
  m.impl("resize_", resize);
  m.impl("_copy_from", copy_from);
  m.impl("_copy_from_and_resize", copy_from_and_resize);
  m.impl("_local_scalar_dense", item);
  m.impl("set_.source_Storage_storage_offset", set_on);
  m.impl("set_.source_Tensor", set_like);
  m.impl("set_.source_Storage", set_flat);
  m.impl("_fused_sdp_choice", plain_attention);
  m.impl("convolution_overrideable", convolution);
  m.impl("convolution_backward_overrideable", convolution_backward);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&borrowed>()); }

TORCH_LIBRARY(pretend, m) {
  m.def("start", []() { at::RegisterPrivateUse1HooksInterface(&hooks); });
  m.def("rule", [](bool fp64, std::vector<std::string> lacking) {
    std::lock_guard<std::mutex> lock(guarded);
    has_fp64 = fp64;
    refused = {lacking.begin(), lacking.end()};
  });
  m.def("reset", []() {
    std::lock_guard<std::mutex> lock(guarded);
    by_name.clear();
    launches = stalls = to_device = to_host = 0;
    peak = held.load();
  });
  m.def("reset_peak", []() { peak = held.load(); });
  m.def("totals", []() { return std::vector<int64_t>{launches, stalls, to_device, to_host, held, peak}; });
  m.def("counted", []() {
    std::lock_guard<std::mutex> lock(guarded);
    std::vector<std::string> found;
    for (const auto& [name, times] : by_name) found.push_back(name + "=" + std::to_string(times));
    return found;
  });
}
