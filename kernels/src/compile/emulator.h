// Emulates CUDA C++ in host C++. Blocks run one at a time. The threads of a block are fibers that
// switch at barriers, shared memory is an array, bf16 is a type, and the few PTX instructions of
// the kernels are functions. A collective instruction of a warp waits for all of its threads.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>
#include <sys/mman.h>
#include <unistd.h>

#define __global__
#define __device__
#define __grid_constant__
#define __launch_bounds__(n)
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
inline std::vector<Fiber> fibers;
inline uint32_t lane() { return current->number % 32; }
inline uint32_t warp() { return current->number / 32; }
alignas(1024) inline char shared[SHARED_BYTES];
inline uint32_t shared_bytes;
inline void (*body)();

[[noreturn]] inline void fail(const char* what) {
    fprintf(stderr, "%s (thread %u of the block)\n", what, current ? current->number : 0);
    _exit(3);
}

// Saves the callee-saved registers on the current stack and restores those of another stack.
extern "C" void emu_switch(void** from, void* to);
asm(R"(
.text
.globl emu_switch
emu_switch:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret
)");

inline void yield() { emu_switch(&current->stack_pointer, scheduler); }
inline void start() {
    body();
    current->done = true;
    yield();
    fail("a finished thread ran on");
}

// A barrier of `total` threads: the barrier of a block, or an exchange within a warp.
struct Barrier { uint32_t arrived = 0; uint64_t round = 0; };
inline Barrier block_barrier;
inline std::vector<Barrier> warp_barriers;
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
inline std::vector<Slot> slots;  // one per thread
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
inline void mma(float& d0, float& d1, float& d2, float& d3, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                uint32_t b0, uint32_t b1, float c0, float c1, float c2, float c3) {
    Slot& own = slots[current->number];
    uint32_t words[6] = {a0, a1, a2, a3, b0, b1};
    memcpy(own.words, words, sizeof words);
    sync_warp();
    uint32_t group = lane() / 4, column = lane() % 4 * 2;
    float d[4] = {c0, c1, c2, c3};
    for (uint32_t e = 0; e < 4; e++) {
        uint32_t row = e / 2, n = column + e % 2;
        float sum = 0;
        for (uint32_t k = 0; k < 16; k++) {
            uint32_t a = slot(group * 4 + k % 8 / 2).words[row + 2 * (k / 8)];
            uint32_t b = slot(n * 4 + k % 8 / 2).words[4 + k / 8];
            sum += (k % 2 ? high(a) : low(a)) * (k % 2 ? high(b) : low(b));
        }
        d[e] += sum;
    }
    sync_warp();
    d0 = d[0]; d1 = d[1]; d2 = d[2]; d3 = d[3];
}

// ldmatrix .x4: lanes 8i to 8i + 7 hold the addresses of the eight 16-byte rows of matrix i.
inline void ldmatrix(bool transposed, uint32_t* out[4], uint32_t address) {
    slots[current->number].words[0] = address;
    sync_warp();
    for (uint32_t i = 0; i < 4; i++) {
        uint16_t pair[2];
        for (uint32_t e = 0; e < 2; e++) {
            uint32_t row = transposed ? lane() % 4 * 2 + e : lane() / 4;
            uint32_t column = transposed ? lane() / 4 : lane() % 4 * 2 + e;
            memcpy(&pair[e], shared_at(slot(i * 8 + row).words[0], 16, 16) + column * 2, 2);
        }
        *out[i] = pair[0] | (uint32_t)pair[1] << 16;
    }
    sync_warp();
}
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
struct Copy { uint32_t to; const void* from; uint32_t bytes; };
struct Copies { std::vector<Copy> open; std::vector<std::vector<Copy>> groups; };
inline std::vector<Copies> copies;  // one per thread
inline void cp_async_16(uint32_t to, const void* from, uint32_t bytes) {
    if ((uintptr_t)from % 16) fail("cp.async from an address that is not aligned");
    if (bytes > 16) fail("cp.async of more than 16 bytes");
    memset(shared_at(to, 16, 16), 0xFF, 16);
    copies[current->number].open.push_back({to, from, bytes});
}
inline void cp_async_commit() {
    Copies& own = copies[current->number];
    own.groups.push_back(std::move(own.open));
    own.open.clear();
}
template <int pending> inline void cp_async_wait() {
    std::vector<std::vector<Copy>>& groups = copies[current->number].groups;
    while ((int)groups.size() > pending) {
        for (const Copy& copy : groups.front()) {
            char* to = shared_at(copy.to, 16, 16);
            memset(to, 0, 16);
            memcpy(to, copy.from, copy.bytes);
        }
        groups.erase(groups.begin());
    }
}
inline void cvt_bf16x2(uint32_t& d, float upper, float lower) {
    d = (uint32_t)round_bf16(upper) << 16 | round_bf16(lower);
}
inline void store_shared(uint32_t to, uint32_t value) { memcpy(shared_at(to, 4, 4), &value, 4); }
inline void store_shared_v4(uint32_t to, float a, float b, float c, float d) {
    float values[4] = {a, b, c, d};
    memcpy(shared_at(to, 16, 16), values, 16);
}
inline void load_shared_v4(float& a, float& b, float& c, float& d, uint32_t from) {
    float values[4];
    memcpy(values, shared_at(from, 16, 16), 16);
    a = values[0]; b = values[1]; c = values[2]; d = values[3];
}
inline void ex2(float& d, float x) { d = exp2f(x); }
inline void red_add(float* to, float x) { *to += x; }
inline void red_add_v2(float* to, float x, float y) {
    if ((uintptr_t)to % 8) fail("a vector reduction is not aligned");
    to[0] += x; to[1] += y;
}

// A buffer that ends at an inaccessible page.
inline char* guarded(size_t bytes) {
    size_t page = 4096, room = (bytes + page - 1) / page * page + page;
    char* memory = (char*)mmap(nullptr, room + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) fail("out of memory");
    mprotect(memory + room, page, PROT_NONE);
    return memory + room - (bytes + 15) / 16 * 16;
}

// Runs every block. With `reversed`, the threads of a block take turns from the last to the first.
inline void launch(Dim3 grid, uint32_t units, bool reversed);
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

namespace emu {
inline void launch(Dim3 grid, uint32_t units, bool reversed) {
    if (units % 32) { fprintf(stderr, "a block of %u threads is not a whole number of warps\n", units); _exit(3); }
    gridDim = grid;
    blockDim = {units, 1, 1};
    fibers.resize(units);
    slots.resize(units);
    copies.resize(units);
    warp_barriers.resize(units / 32);
    for (Fiber& fiber : fibers) fiber.stack = aligned_alloc(64, STACK_BYTES);
    for (blockIdx.z = 0; blockIdx.z < grid.z; blockIdx.z++)
    for (blockIdx.y = 0; blockIdx.y < grid.y; blockIdx.y++)
    for (blockIdx.x = 0; blockIdx.x < grid.x; blockIdx.x++) {
        memset(shared, 0xFF, shared_bytes);
        for (uint32_t i = 0; i < units; i++) {
            Fiber& fiber = fibers[i];
            fiber.index = {i, 0, 0};
            fiber.number = i;
            fiber.done = false;
            // A function starts with a stack pointer 8 bytes below a multiple of 16.
            void** top = (void**)((char*)fiber.stack + STACK_BYTES) - 3;
            *--top = (void*)start;
            for (int r = 0; r < 6; r++) *--top = nullptr;
            fiber.stack_pointer = top;
            copies[i] = {};
        }
        for (;;) {
            bool running = false;
            progress = false;
            for (uint32_t turn = 0; turn < units; turn++) {
                Fiber& fiber = fibers[reversed ? units - 1 - turn : turn];
                if (fiber.done) continue;
                running = true;
                current = &fiber;
                emu_switch(&scheduler, fiber.stack_pointer);
                if (fiber.done) progress = true;
            }
            if (!running) break;
            if (!progress) fail("threads wait at a barrier that others never reach");
        }
        if (block_barrier.arrived) fail("a thread ended before a barrier of its block");
    }
    current = nullptr;
}
}  // namespace emu

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
