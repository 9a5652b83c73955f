// What does not depend on the kernel: the scheduler of threads, the larger instructions, and `main`,
// which reads buffers from files, launches the kernel and writes the buffers back.
#include "emulator.h"

#include <sys/mman.h>

#include <string>
#include <vector>

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

namespace emu {
static std::vector<Fiber> fibers;
static std::vector<char*> buffers;
static std::vector<char> scalars;

static void start() {
    call(buffers.data(), scalars.data());
    current->done = true;
    yield();
    fail("a finished thread ran on");
}

void mma(float& d0, float& d1, float& d2, float& d3, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
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

void ldmatrix(bool transposed, uint32_t* out[4], uint32_t address) {
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

// For each word of shared memory the thread that wrote it last, and how often this thread had
// published before.
struct Store { uint32_t thread, published; };
static std::vector<Store> stores;
static std::vector<uint32_t> published;  // one per thread
constexpr uint32_t NOBODY = ~0u;
static void stored(uint32_t at, uint32_t bytes) {
    for (uint32_t word = at / 4; word < (at + bytes) / 4; word++)
        stores[word] = {current->number, published[current->number]};
}
void publish() { published[current->number]++; }
void store_shared(uint32_t to, uint32_t value) {
    memcpy(shared_at(to, 4, 4), &value, 4);
    stored(to, 4);
}
void store_shared_v4(uint32_t to, float a, float b, float c, float d) {
    float values[4] = {a, b, c, d};
    memcpy(shared_at(to, 16, 16), values, 16);
    stored(to, 16);
}

// The operands of a product of four warps, and how far each thread is: 0, or fenced, or with
// products that are not committed (2) or not waited for (3).
struct Warpgroup { Barrier barrier; float a[64][16], b[16][256]; };
struct Given { uint64_t a, b; uint32_t columns; bool a_turned, b_turned, shared, add; };
static std::vector<Warpgroup> warpgroups;
static std::vector<uint8_t> stages;
static std::vector<Given> given;  // the operands of the last product of each thread
static void sync_warpgroup() { arrive_and_wait(warpgroups[current->number / 128].barrier, 128); }
void warpgroup_fence() {
    if (stages[current->number] > 1) fail("a fence while products are pending");
    stages[current->number] = 1;
}
void warpgroup_move() {
    if (stages[current->number]) fail("a register is written between a fence and the end of its products");
}
void warpgroup_commit() {
    if (stages[current->number] != 2) fail("a warpgroup commits no product");
    stages[current->number] = 3;
}
void warpgroup_wait() {
    if (stages[current->number] == 2) fail("a product is waited for before it is committed");
    stages[current->number] = 0;
}
void warpgroup_end() {
    if (stages[current->number] > 1) fail("a product is not waited for");
}

// Element of an operand in a tile with a swizzle of 128 bytes: `line` counts its rows (or columns,
// of a right operand), k the terms of the sum.
static float element(uint64_t descriptor, uint32_t line, uint32_t k, bool turned) {
    uint32_t start = (uint32_t)(descriptor & 0x3FFF) << 4;
    uint32_t leading = (uint32_t)(descriptor >> 16 & 0x3FFF) << 4, stride = (uint32_t)(descriptor >> 32 & 0x3FFF) << 4;
    if (descriptor >> 62 != 1 || (descriptor >> 49 & 7)) fail("a descriptor has another layout than a swizzle of 128 bytes");
    if (start % 1024 >= (turned ? 1u : 128u)) fail("a descriptor begins within a swizzled tile");
    if (turned && line >= 64 && !leading) fail("a descriptor has no distance between groups of 64 columns");
    uint32_t at = turned ? start + line / 64 * leading + k / 8 * stride + k % 8 * 128 + line % 64 * 2
                         : start + line / 8 * stride + line % 8 * 128 + k * 2;
    at ^= (at >> 7 & 7) << 4;
    uint16_t value;
    memcpy(&value, shared_at(at, 2, 2), 2);
    const Store& store = stores[at / 4];
    if (store.thread != NOBODY && published[store.thread] == store.published)
        fail("a product reads shared memory that its writer has not published");
    return bits((uint32_t)value << 16);
}

void multiply(uint32_t columns, float* const* d, Left a, uint64_t b, bool turned, bool add) {
    uint8_t& stage = stages[current->number];
    if (stage != 1 && stage != 2) fail("a product without a fence before it");
    stage = 2;
    Warpgroup& group = warpgroups[current->number / 128];
    uint32_t row = warp() % 4 * 16 + lane() / 4, column = lane() % 4 * 2;
    if (!a.shared)
        for (uint32_t i = 0; i < 4; i++)
            for (uint32_t e = 0; e < 2; e++)
                group.a[row + i % 2 * 8][column + i / 2 * 8 + e] = e ? high(a.registers[i]) : low(a.registers[i]);
    given[current->number] = {a.descriptor, b, columns, a.turned, turned, a.shared, add};
    sync_warpgroup();
    if (current->number % 128 == 0) {
        for (uint32_t i = 1; i < 128; i++) {
            const Given &own = given[current->number], &other = given[current->number + i];
            if (own.a != other.a || own.b != other.b || own.columns != other.columns || own.shared != other.shared || own.add != other.add
                || own.a_turned != other.a_turned || own.b_turned != other.b_turned)
                fail("the threads of a warpgroup multiply different operands");
        }
        for (uint32_t k = 0; k < 16; k++) {
            for (uint32_t n = 0; n < columns; n++) group.b[k][n] = element(b, n, k, turned);
            if (a.shared) for (uint32_t m = 0; m < 64; m++) group.a[m][k] = element(a.descriptor, m, k, a.turned);
        }
    }
    sync_warpgroup();
    for (uint32_t i = 0; i < columns / 2; i++) {
        uint32_t m = row + i / 2 % 2 * 8, n = i / 4 * 8 + column + i % 2;
        float sum = 0;
        for (uint32_t k = 0; k < 16; k++) sum += group.a[m][k] * group.b[k][n];
        *d[i] = add ? *d[i] + sum : sum;
    }
    sync_warpgroup();
}

struct Copy { uint32_t to; const void* from; uint32_t bytes; };
struct Copies { std::vector<Copy> open; std::vector<std::vector<Copy>> groups; };
static std::vector<Copies> copies;  // one per thread
void cp_async_16(uint32_t to, const void* from, uint32_t bytes) {
    if ((uintptr_t)from % 16) fail("cp.async from an address that is not aligned");
    if (bytes > 16) fail("cp.async of more than 16 bytes");
    memset(shared_at(to, 16, 16), 0xFF, 16);
    copies[current->number].open.push_back({to, from, bytes});
}
void cp_async_commit() {
    Copies& own = copies[current->number];
    own.groups.push_back(std::move(own.open));
    own.open.clear();
}
void cp_async_wait(int pending) {
    std::vector<std::vector<Copy>>& groups = copies[current->number].groups;
    while ((int)groups.size() > pending) {
        for (const Copy& copy : groups.front()) {
            char* to = shared_at(copy.to, 16, 16);
            memset(to, 0, 16);
            memcpy(to, copy.from, copy.bytes);
            stored(copy.to, 16);
        }
        groups.erase(groups.begin());
    }
}

// A buffer that ends at an inaccessible page.
static char* guarded(size_t bytes) {
    size_t page = 4096, room = (bytes + page - 1) / page * page + page;
    char* memory = (char*)mmap(nullptr, room + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) fail("out of memory");
    mprotect(memory + room, page, PROT_NONE);
    return memory + room - (bytes + 15) / 16 * 16;
}

static void resume(Fiber& fiber) {
    if (fiber.done) return;
    current = &fiber;
    emu_switch(&scheduler, fiber.stack_pointer);
    if (fiber.done) progress = true;
}

// One turn of all threads, from the first to the last.
static void turn_in_step(uint32_t units) {
    for (uint32_t i = 0; i < units; i++) resume(fibers[i]);
}

// Lets one warp continue until it waits for another one. Returns whether it continued at all.
static bool run_warp(uint32_t warp) {
    bool any = false;
    do {
        progress = false;
        for (uint32_t lane = 32; lane-- > 0;) resume(fibers[warp * 32 + lane]);
        any |= progress;
    } while (progress);
    return any;
}

// One turn of all warps, from the last to the first. Four warps, which may multiply together,
// continue until they wait for others, and each of them until it waits for the other three. So each
// is as far ahead as barriers let it be: what it overwrites too early, others still read, and what
// it reads too early, others have not written.
static void turn_ahead(uint32_t units) {
    const uint32_t warps = units / 32;
    bool any = false;
    for (uint32_t end = warps; end > 0;) {
        const uint32_t first = (end - 1) / 4 * 4;
        bool continued;
        do {
            continued = false;
            for (uint32_t warp = end; warp-- > first;) continued |= run_warp(warp);
            any |= continued;
        } while (continued);
        end = first;
    }
    progress = any;
}

// Runs every block; `ahead` selects the order in which its threads take turns.
static void launch(Dim3 grid, bool ahead) {
    const uint32_t units = UNITS;
    if (units % 32) { fprintf(stderr, "a block of %u threads is not a whole number of warps\n", units); _exit(3); }
    gridDim = grid;
    blockDim = {units, 1, 1};
    fibers.resize(units);
    copies.resize(units);
    published.resize(units);
    stages.resize(units);
    given.resize(units);
    warpgroups.resize((units + 127) / 128);
    slots = new Slot[units]();
    warp_barriers = new Barrier[units / 32];
    for (Fiber& fiber : fibers) fiber.stack = aligned_alloc(64, STACK_BYTES);
    for (blockIdx.z = 0; blockIdx.z < grid.z; blockIdx.z++)
    for (blockIdx.y = 0; blockIdx.y < grid.y; blockIdx.y++)
    for (blockIdx.x = 0; blockIdx.x < grid.x; blockIdx.x++) {
        memset(shared, 0xFF, shared_bytes);
        stores.assign(SHARED_BYTES / 4, {NOBODY, 0});
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
            for (const Fiber& fiber : fibers) running |= !fiber.done;
            if (!running) break;
            progress = false;
            if (ahead) turn_ahead(units); else turn_in_step(units);
            if (!progress) fail("threads wait at a barrier that others never reach");
        }
        if (block_barrier.arrived) fail("a thread ended before a barrier of its block");
    }
    current = nullptr;
}

static std::vector<char> file(const std::string& path) {
    FILE* f = fopen(path.c_str(), "rb");
    if (!f) { perror(path.c_str()); _exit(2); }
    fseek(f, 0, SEEK_END);
    std::vector<char> bytes(ftell(f));
    rewind(f);
    if (fread(bytes.data(), 1, bytes.size(), f) != bytes.size()) _exit(2);
    fclose(f);
    return bytes;
}
}  // namespace emu

// Arguments: the folder of the buffers and scalars, three numbers of blocks, the bytes of shared
// memory, and 1 to let each warp run ahead of the others.
int main(int, char** argv) {
    using namespace emu;
    std::string folder = std::string(argv[1]) + "/";
    std::vector<size_t> sizes;
    for (uint32_t i = 0; i < BUFFERS; i++) {
        std::vector<char> bytes = file(folder + std::to_string(i));
        char* memory = guarded(bytes.size());
        memcpy(memory, bytes.data(), bytes.size());
        memset(memory + bytes.size(), 0xA5, (16 - bytes.size() % 16) % 16);
        buffers.push_back(memory);
        sizes.push_back(bytes.size());
    }
    scalars = file(folder + "info");
    shared_bytes = atoi(argv[5]);
    launch({(uint32_t)atoi(argv[2]), (uint32_t)atoi(argv[3]), (uint32_t)atoi(argv[4])}, atoi(argv[6]));
    for (uint32_t i = 0; i < BUFFERS; i++) {
        for (size_t at = sizes[i]; at % 16; at++)
            if (buffers[i][at] != (char)0xA5) { fprintf(stderr, "buffer %u is written beyond its end\n", i); return 4; }
        FILE* f = fopen((folder + std::to_string(i)).c_str(), "wb");
        if (!f) { perror(folder.c_str()); return 2; }
        fwrite(buffers[i], 1, sizes[i], f);
        if (fclose(f)) return 2;
    }
}
