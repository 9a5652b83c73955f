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

// Runs every block. With `reversed`, the threads of a block take turns from the last to the first.
static void launch(Dim3 grid, bool reversed) {
    const uint32_t units = UNITS;
    if (units % 32) { fprintf(stderr, "a block of %u threads is not a whole number of warps\n", units); _exit(3); }
    gridDim = grid;
    blockDim = {units, 1, 1};
    fibers.resize(units);
    copies.resize(units);
    slots = new Slot[units]();
    warp_barriers = new Barrier[units / 32];
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
// memory, and 1 to let threads take turns from the last to the first.
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
