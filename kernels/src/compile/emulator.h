// Emulates CUDA C++ in host C++. Blocks run one at a time. The threads of a block are fibers that
// switch at barriers, shared memory is an array, bf16 is a type, and the few PTX instructions of
// the kernels are functions. A collective instruction of a warp waits for all of its threads.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <unistd.h>

#define __global__
#define __device__
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
using std::max;
using std::min;

struct Dim3 { uint32_t x, y, z; };

namespace emu {
constexpr uint32_t SHARED_BYTES = 232448;
constexpr size_t STACK_BYTES = 192 * 1024;
struct Fiber { void* stack_pointer; void* stack; Dim3 index; uint32_t number; bool done; bool waits; };
inline Fiber* current;
inline void* scheduler;
inline uint32_t lane() { return current->number % 32; }
inline uint32_t warp() { return current->number / 32; }
alignas(1024) inline char shared[SHARED_BYTES];
inline uint32_t shared_bytes;

// Of the kernel: the number of its buffers, the number of threads of a block, and a call with the
// buffers and the bytes of the scalars as arguments.
extern const uint32_t BUFFERS, UNITS;
void call(char* const* buffers, const char* scalars);

[[noreturn]] inline void fail(const char* what) {
    fprintf(stderr, "%s (thread %u of the block)\n", what, current ? current->number : 0);
    _exit(3);
}

// Saves the callee-saved registers on the current stack and restores those of another stack.
extern "C" void emu_switch(void** from, void* to);
inline void yield() { emu_switch(&current->stack_pointer, scheduler); }

// A barrier of `total` threads: the barrier of a block, or an exchange within a warp.
struct Barrier { uint32_t arrived = 0; uint64_t round = 0; };
inline Barrier block_barrier;
inline Barrier* warp_barriers;
inline bool progress;
inline void arrive_and_wait(Barrier& barrier, uint32_t total) {
    progress = true;
    uint64_t round = barrier.round;
    if (++barrier.arrived == total) { barrier.arrived = 0; barrier.round++; return; }
    while (barrier.round == round) yield();
    progress = true;
}
inline void sync_warp() { arrive_and_wait(warp_barriers[warp()], 32); }
struct Slot { uint32_t words[16]; };
inline Slot* slots;  // one per thread
inline Slot& slot(uint32_t lane) { return slots[warp() * 32 + lane]; }

inline float bits(uint32_t x) { float f; memcpy(&f, &x, 4); return f; }
inline uint32_t bits(float x) { uint32_t u; memcpy(&u, &x, 4); return u; }
inline uint16_t round_bf16(float x) {
    uint32_t u = bits(x);
    if (x != x) return 0x7FFF;
    return (uint16_t)((u + 0x7FFF + ((u >> 16) & 1)) >> 16);
}
inline float low(uint32_t x) { return bits(x << 16); }
inline float high(uint32_t x) { return bits(x & 0xFFFF0000u); }

inline char* shared_at(uint32_t address, uint32_t size, uint32_t align) {
    if (address % align) fail("a shared address is not aligned");
    if (address + size > shared_bytes) fail("a shared address is outside of the block's memory");
    return shared + address;
}

// mma.sync m16n8k16, bf16 operands, f32 sums (PTX ISA, "Matrix Fragments for mma.m16n8k16").
void mma(float& d0, float& d1, float& d2, float& d3, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
         uint32_t b0, uint32_t b1, float c0, float c1, float c2, float c3);

// ldmatrix .x4: lanes 8i to 8i + 7 hold the addresses of the eight 16-byte rows of matrix i.
void ldmatrix(bool transposed, uint32_t* out[4], uint32_t address);
inline void ldmatrix_x4(uint32_t& a, uint32_t& b, uint32_t& c, uint32_t& d, uint32_t address) {
    uint32_t* out[4] = {&a, &b, &c, &d};
    ldmatrix(false, out, address);
}
inline void ldmatrix_x4_trans(uint32_t& a, uint32_t& b, uint32_t& c, uint32_t& d, uint32_t address) {
    uint32_t* out[4] = {&a, &b, &c, &d};
    ldmatrix(true, out, address);
}

// cp.async: the copy happens at the last moment it may, when its group is waited for, so that a
// missing wait has an effect.
void cp_async_16(uint32_t to, const void* from, uint32_t bytes);
void cp_async_commit();
void cp_async_wait(int pending);
template <int pending> inline void cp_async_wait() { cp_async_wait(pending); }
inline void cvt_bf16x2(uint32_t& d, float upper, float lower) {
    d = (uint32_t)round_bf16(upper) << 16 | round_bf16(lower);
}
void store_shared(uint32_t to, uint32_t value);
void store_shared_v4(uint32_t to, float a, float b, float c, float d);
inline void load_shared_v4(float& a, float& b, float& c, float& d, uint32_t from) {
    float values[4];
    memcpy(values, shared_at(from, 16, 16), 16);
    a = values[0]; b = values[1]; c = values[2]; d = values[3];
}
// Products of a warpgroup. What a thread has stored in shared memory with `st.shared` or `cp.async`
// may be read only after the thread's next `publish` (fence.proxy.async).
void publish();
void warpgroup_fence();
void warpgroup_move();
void warpgroup_commit();
void warpgroup_wait();
void warpgroup_end();
struct Left { uint32_t registers[4]; uint64_t descriptor; bool turned, shared; };
inline Left left(uint32_t a, uint32_t b, uint32_t c, uint32_t d) { return {{a, b, c, d}, 0, false, false}; }
inline Left left(uint64_t descriptor, bool turned) { return {{}, descriptor, turned, true}; }
// wgmma.mma_async m64nNk16, bf16 operands, f32 sums (PTX ISA, "Matrix Fragments for
// wgmma.mma_async.m64nNk16" and "Shared Memory Matrix Layout"). `turned` operands are MN-major.
void multiply(uint32_t columns, float* const* d, Left a, uint64_t b, bool turned, bool add);
inline void ex2(float& d, float x) { d = exp2f(x); }
inline void red_add(float* to, float x) { *to += x; }
inline void red_add_v2(float* to, float x, float y) {
    if ((uintptr_t)to % 8) fail("a vector reduction is not aligned");
    to[0] += x; to[1] += y;
}

}  // namespace emu

inline Dim3 blockIdx, gridDim, blockDim;
#define threadIdx (emu::current->index)
#define warpSize 32

inline void __syncthreads() { emu::arrive_and_wait(emu::block_barrier, blockDim.x); }
inline void __syncwarp(uint32_t = ~0u) { emu::sync_warp(); }
inline uint32_t __cvta_generic_to_shared(const void* p) { return (uint32_t)((const char*)p - emu::shared); }
template <typename T> inline T emu_read_lane(uint32_t mask, T value, uint32_t from) {
    static_assert(sizeof(T) == 4, "shuffles move 32 bits");
    if (mask != ~0u) emu::fail("a shuffle leaves lanes out");
    memcpy(emu::slots[emu::current->number].words, &value, 4);
    emu::sync_warp();
    T result;
    memcpy(&result, emu::slot(from % 32).words, 4);
    emu::sync_warp();
    return result;
}
template <typename T> inline T __shfl_sync(uint32_t mask, T value, uint32_t from) { return emu_read_lane(mask, value, from); }
template <typename T> inline T __shfl_xor_sync(uint32_t mask, T value, uint32_t lanes) { return emu_read_lane(mask, value, emu::lane() ^ lanes); }
template <typename T> inline T atomicAdd(T* to, T value) { T old = *to; *to += value; return old; }
template <typename T> inline T __fdividef(T a, T b) { return a / b; }
inline float rsqrt(float x) { return 1.0f / sqrtf(x); }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }

struct __nv_bfloat16 {
    uint16_t raw;
    __nv_bfloat16() = default;
    __nv_bfloat16(float x) : raw(emu::round_bf16(x)) {}
    __nv_bfloat16(double x) : raw(emu::round_bf16((float)x)) {}
    __nv_bfloat16(int x) : raw(emu::round_bf16((float)x)) {}
    __nv_bfloat16(uint32_t x) : raw(emu::round_bf16((float)x)) {}
    operator float() const { return emu::bits((uint32_t)raw << 16); }
};
struct __nv_bfloat162 { __nv_bfloat16 x, y; };
inline __nv_bfloat16 __float2bfloat16(float x) { return __nv_bfloat16(x); }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return __nv_bfloat16(x); }
inline float __bfloat162float(__nv_bfloat16 x) { return x; }
