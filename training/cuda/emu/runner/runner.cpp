// The process that runs kernels as plain C++: fibers for the threads of a block, collectives of a warp, checks, and the
// commands that come from Go over standard input. See doc.go.
#include <cerrno>
#include <csignal>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <sys/mman.h>
#include <sys/time.h>
#include <ucontext.h>
#include <unistd.h>
#include <vector>

#include "../emu.h"
#include "switch.h"

extern const emu::Module *const bzd_modules[];
extern const int bzd_module_count;
extern unsigned char *const bzd_shared_marks[]; // the .bss of module i lies between marks i and i+1

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace emu {

unsigned char *dynamic_shared;
int lane;

static const u32 poison = 0x7fc17fc1u; // a NaN as binary32, as two bfloat16 and as an integer far out of range
static const int max_threads = 1024, max_warps = 32;
static const size_t stack_size = 256 << 10, page = 4096;
static const size_t shared_limit = 256 << 10;

// ---- state of the running block

enum Operation { EXCHANGE, BALLOT, SYNC_WARP, LOAD_MATRIX, MULTIPLY, STORE_MATRIX, PRODUCT, PRODUCT_FENCE, PRODUCT_COMMIT, PRODUCT_WAIT };
static const char *const operation_names[] = {"a shuffle", "a ballot", "__syncwarp", "ldmatrix", "mma", "stmatrix", "wgmma", "wgmma_fence",
                                              "wgmma_commit", "wgmma_wait"};

// A Collective waits for the lanes of mask. A warp can have several, of different masks.
struct Collective {
    u32 mask, arrived;
    Operation operation;
    int line;
    int a, b; // of LOAD_MATRIX: matrices, transposed; of PRODUCT_WAIT: how many may be under way
};

struct Warp {
    u32 exists, ready, started;
    int pending;
    Collective collectives[32];
    u64 in[32], out[32];
    int source[32];
};

struct Product { // of the operands of one thread
    float *c;
    const u32 *a, *b;
};

struct Copy {
    unsigned char *to;
    unsigned char bytes[16];
};

struct Thread {
    void *sp;
    int stack;
    bool done;
    std::vector<Copy> copies;    // not yet visible
    std::vector<size_t> groups;  // where each committed group of copies ends
};

static const Registered *kernel;
static const u64 *slots;
static int threads, warps, alive, current, current_warp;
static bool reverse;
static Warp warp[max_warps];
static Thread thread[max_threads];
static uint3 indices[max_threads];
static u32 ready_warps;
static int barrier_arrived, barrier_line, barrier_true, barrier_result;
static unsigned char *shared_base, *shared_end; // of the running module
static unsigned char *dynamic_area;
static size_t dynamic_size;

static void *main_sp;
static bool in_kernel, failed;
static char message[4096];

static std::vector<unsigned char *> stacks; // top of each
static std::vector<int> free_stacks;

static int take_stack() {
    if (free_stacks.empty()) {
        unsigned char *m = (unsigned char *)mmap(nullptr, stack_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (m == MAP_FAILED || mprotect(m, page, PROT_NONE)) {
            fprintf(stderr, "no memory for the stack of a thread: %s\n", strerror(errno));
            exit(3);
        }
        // Tops at different offsets into their pages, or all stacks would fight for the same cache lines.
        int n = (int)stacks.size();
        stacks.push_back(m + stack_size - (size_t)(n * 5 % 128) * 64);
        return n;
    }
    int n = free_stacks.back();
    free_stacks.pop_back();
    return n;
}

// fail_now leaves the kernel: the stacks of its fibers are simply used again.
[[noreturn]] static void fail_now() {
    failed = true;
    void *unused;
    emu_switch(&unused, main_sp);
    __builtin_unreachable();
}

void fail(const char *format, ...) {
    int n = snprintf(message, sizeof message, "kernel %s, block (%u,%u,%u), thread (%u,%u,%u): ", kernel->name, blockIdx.x,
                     blockIdx.y, blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z);
    va_list list;
    va_start(list, format);
    vsnprintf(message + n, sizeof message - n, format, list);
    va_end(list);
    fail_now();
}

static void describe_more(char *text, int &n, int size);

// deadlock says who waits for what when no thread of the block can go on.
[[noreturn]] static void deadlock() {
    char text[3000];
    int n = 0, exited = 0;
    for (int t = 0; t < threads; t++) exited += thread[t].done;
    auto add = [&](const char *format, auto... a) {
        if (n < (int)sizeof text) n += snprintf(text + n, sizeof text - n, format, a...);
    };
    if (barrier_arrived) add("; %d of %d threads wait at __syncthreads, line %d", barrier_arrived, threads, barrier_line);
    if (exited) add("; %d of %d threads have returned", exited, threads);
    for (int w = 0; w < warps; w++)
        for (int i = 0; i < warp[w].pending; i++) {
            Collective &c = warp[w].collectives[i];
            add("; lanes %08x of warp %d wait at %s, line %d, for lanes %08x", c.arrived, w, operation_names[c.operation], c.line,
                c.mask & ~c.arrived);
        }
    describe_more(text, n, sizeof text);
    fail("deadlock%s", text);
}

// ---- the scheduler

static inline void set_current(int t) {
    current = t;
    current_warp = t >> 5;
    lane = t & 31;
    threadIdx = indices[t];
}

// next is a thread that can run, of the current warp if there is one; -1 if there is none.
static inline int next() {
    int w = current_warp;
    if (!warp[w].ready) {
        if (!ready_warps) return -1;
        if (!reverse) {
            u32 after = ready_warps & ~((2u << w) - 1);
            w = __builtin_ctz(after ? after : ready_warps);
        } else {
            u32 before = ready_warps & ((1u << w) - 1);
            w = 31 - __builtin_clz(before ? before : ready_warps);
        }
    }
    u32 ready = warp[w].ready;
    return w * 32 + (reverse ? 31 - __builtin_clz(ready) : __builtin_ctz(ready));
}

static inline void stop_running() {
    Warp &w = warp[current_warp];
    w.ready &= ~(1u << lane);
    if (!w.ready) ready_warps &= ~(1u << current_warp);
}

static inline void wake(int w, u32 lanes) {
    warp[w].ready |= lanes;
    ready_warps |= 1u << w;
}

static void fiber();
static bool later();
static void thread_ends();
static void block_ends();

// next_or_later is next; if there is none, what happens beside the threads may make one.
static int next_or_later() {
    for (;;) {
        int t = next();
        if (t >= 0 || !later()) return t;
    }
}

// start gives thread t a stack, unless it has one; it returns where to switch to.
static inline void *start(int t) {
    Warp &w = warp[t >> 5];
    u32 bit = 1u << (t & 31);
    if (!(w.started & bit)) {
        w.started |= bit;
        thread[t].stack = take_stack();
        thread[t].sp = fresh_stack(stacks[thread[t].stack], fiber);
    }
    return thread[t].sp;
}

// block lets another thread run until this one is woken.
static void block() {
    int self = current;
    stop_running();
    int t = next_or_later();
    if (t < 0) deadlock();
    void *to = start(t);
    set_current(t);
    if (t == self) return;
    emu_switch(&thread[self].sp, to);
}

// fiber runs threads: the one it was made for and, when that has returned, any that has not begun, on the same stack. So a
// kernel without barriers needs no switches.
static void fiber() {
    for (;;) {
        kernel->call(slots);
        thread_ends();
        int self = current;
        thread[self].done = true;
        alive--;
        stop_running();
        int t = alive ? next_or_later() : -1;
        void *to;
        if (t < 0) {
            if (alive) deadlock();
            block_ends();
            free_stacks.push_back(thread[self].stack);
            to = main_sp;
        } else if (!(warp[t >> 5].started & 1u << (t & 31))) {
            warp[t >> 5].started |= 1u << (t & 31);
            thread[t].stack = thread[self].stack;
            set_current(t);
            continue;
        } else {
            free_stacks.push_back(thread[self].stack);
            to = thread[t].sp;
            set_current(t);
        }
        emu_switch(&thread[self].sp, to);
        __builtin_unreachable();
    }
}

// ---- barriers

int sync_count(int line, int predicate) {
    if (barrier_arrived && barrier_line != line)
        fail("divergent barriers: this thread is at __syncthreads in line %d, %d others in line %d", line, barrier_arrived, barrier_line);
    barrier_line = line;
    if (predicate) barrier_true++;
    if (++barrier_arrived < threads) {
        block();
        return barrier_result;
    }
    barrier_result = barrier_true;
    barrier_arrived = barrier_true = 0;
    for (int w = 0; w < warps; w++) wake(w, warp[w].exists);
    return barrier_result;
}

void sync_threads(int line) { sync_count(line, 0); }

// ---- collectives

static inline float of_bf16(u32 bits) { return value_of<float>(bits << 16); }

static void finish(Warp &w, const Collective &c);

// arrive returns when all lanes of mask have arrived; the last one does the work for all.
static inline void arrive(Operation operation, int line, u32 mask, int a = 0, int b = 0) {
    Warp &w = warp[current_warp];
    u32 bit = 1u << lane;
    mask &= w.exists; // lanes beyond the block do not take part
    if (!(mask & bit)) fail("%s in line %d: the mask %08x lacks this lane, %d", operation_names[operation], line, mask, lane);
    int i = 0;
    for (; i < w.pending; i++) {
        Collective &c = w.collectives[i];
        if (c.mask != mask) continue;
        if (c.operation != operation || c.line != line || c.a != a || c.b != b)
            fail("divergent collectives: this thread is at %s, line %d, while lanes %08x are at %s, line %d",
                 operation_names[operation], line, c.arrived, operation_names[c.operation], c.line);
        break;
    }
    if (i == w.pending) w.collectives[w.pending++] = {mask, 0, operation, line, a, b};
    Collective &c = w.collectives[i];
    c.arrived |= bit;
    if (c.arrived != mask) {
        block();
        return;
    }
    finish(w, c);
    w.collectives[i] = w.collectives[--w.pending];
    wake(current_warp, mask);
}

u64 exchange(int line, u32 mask, u64 bits, int source) {
    Warp &w = warp[current_warp];
    int l = lane;
    w.in[l] = bits;
    w.source[l] = source & 31;
    arrive(EXCHANGE, line, mask);
    return w.out[l];
}

u32 ballot(int line, u32 mask, int predicate) {
    Warp &w = warp[current_warp];
    int l = lane;
    w.in[l] = predicate != 0;
    arrive(BALLOT, line, mask);
    return (u32)w.out[l];
}

void sync_warp(int line, u32 mask) { arrive(SYNC_WARP, line, mask); }

static bool in_shared(const void *p, size_t n) {
    const unsigned char *c = (const unsigned char *)p;
    return (c >= shared_base && c + n <= shared_end) || (c >= dynamic_shared && c + n <= dynamic_shared + dynamic_size);
}

static void check_shared(const char *what, const void *p) {
    if ((uintptr_t)p & 15) fail("%s: shared address %p is not aligned to 16 bytes", what, p);
    if (!in_shared(p, 16))
        fail("%s: 16 bytes at %p are not in shared memory (dynamic: %zu bytes from %p)", what, p, dynamic_size, (void *)dynamic_shared);
}

struct Rows {
    u32 *r;
    const void *row;
};

void load_matrices(int line, u32 *r, const void *row, int matrices, bool trans) {
    if (lane < 8 * matrices) check_shared("ldmatrix", row);
    Rows rows = {r, row};
    warp[current_warp].in[lane] = (u64)(uintptr_t)&rows;
    arrive(LOAD_MATRIX, line, 0xffffffffu, matrices, trans);
}

void multiply(int line, float *c, const u32 *a, const u32 *b) {
    Product p = {c, a, b};
    warp[current_warp].in[lane] = (u64)(uintptr_t)&p;
    arrive(MULTIPLY, line, 0xffffffffu);
}

static void finish_load(Warp &w, int matrices, bool trans) {
    for (int m = 0; m < matrices; m++) {
        unsigned short values[8][8];
        for (int i = 0; i < 8; i++) memcpy(values[i], ((Rows *)(uintptr_t)w.in[8 * m + i])->row, 16);
        for (int l = 0; l < 32; l++) {
            int i = l / 4, j = l % 4 * 2;
            u32 lo = trans ? values[j][i] : values[i][j], hi = trans ? values[j + 1][i] : values[i][j + 1];
            ((Rows *)(uintptr_t)w.in[l])->r[m] = lo | hi << 16;
        }
    }
}

static void finish_multiply(Warp &w) {
    float a[16][16], b[16][8], c[16][8];
    for (int l = 0; l < 32; l++) {
        const Product &p = *(Product *)(uintptr_t)w.in[l];
        int g = l / 4, t = l % 4 * 2;
        for (int i = 0; i < 4; i++) {
            float *to = &a[g + i % 2 * 8][t + i / 2 * 8];
            to[0] = of_bf16(p.a[i] & 0xffff), to[1] = of_bf16(p.a[i] >> 16);
            c[g + i / 2 * 8][t + i % 2] = p.c[i];
        }
        for (int i = 0; i < 2; i++) {
            b[t + 8 * i][g] = of_bf16(p.b[i] & 0xffff);
            b[t + 8 * i + 1][g] = of_bf16(p.b[i] >> 16);
        }
    }
    for (int i = 0; i < 16; i++) {
        float sum[8] = {};
        for (int k = 0; k < 16; k++)
            for (int j = 0; j < 8; j++) sum[j] += a[i][k] * b[k][j];
        for (int j = 0; j < 8; j++) c[i][j] += sum[j];
    }
    for (int l = 0; l < 32; l++) {
        const Product &p = *(Product *)(uintptr_t)w.in[l];
        int g = l / 4, t = l % 4 * 2;
        for (int i = 0; i < 4; i++) p.c[i] = c[g + i / 2 * 8][t + i % 2];
    }
}

static void fill_poison(unsigned char *p, size_t n) {
    u32 *w = (u32 *)p;
    for (size_t i = 0; i < n / 4; i++) w[i] = poison;
}

#include "sm90.h"

static void describe_more(char *text, int &n, int size) {
    describe_waiting([&](const char *format, auto... a) {
        if (n < size) n += snprintf(text + n, size - n, format, a...);
    });
}

static void finish(Warp &w, const Collective &c) {
    switch (c.operation) {
    case EXCHANGE:
        for (u32 m = c.mask; m; m &= m - 1) {
            int l = __builtin_ctz(m);
            if (!(c.mask >> w.source[l] & 1))
                fail("shuffle in line %d: lane %d reads lane %d, which is not in the mask %08x", c.line, l, w.source[l], c.mask);
            w.out[l] = w.in[w.source[l]];
        }
        return;
    case BALLOT: {
        u32 set = 0;
        for (u32 m = c.mask; m; m &= m - 1) set |= (u32)w.in[__builtin_ctz(m)] << __builtin_ctz(m);
        for (u32 m = c.mask; m; m &= m - 1) w.out[__builtin_ctz(m)] = set;
        return;
    }
    case SYNC_WARP:
        return;
    default:
        if (c.mask != 0xffffffffu) fail("%s in line %d: the warp has only lanes %08x", operation_names[c.operation], c.line, c.mask);
    }
    Products &p = products[current_warp];
    switch (c.operation) {
    case LOAD_MATRIX: return finish_load(w, c.a, c.b);
    case MULTIPLY: return finish_multiply(w);
    case STORE_MATRIX: return finish_store(w);
    case PRODUCT: return start_product(w, c.line);
    case PRODUCT_FENCE: p.fenced = true; return;
    case PRODUCT_COMMIT: return commit_products(p);
    default: return;
    }
}

// ---- cp.async: the data arrives as late as it may, in the wait; until then the place holds poison

void copy_async(void *shared, const void *global, bool pred) {
    check_shared("cp.async", shared);
    Copy c;
    c.to = (unsigned char *)shared;
    memset(c.bytes, 0, 16);
    if (pred) {
        if ((uintptr_t)global & 15) fail("cp.async: global address %p is not aligned to 16 bytes", global);
        if (in_shared(global, 1)) fail("cp.async: the source %p is in shared memory", global);
        memcpy(c.bytes, global, 16);
    }
    for (int i = 0; i < 16; i += 4) memcpy(c.to + i, &poison, 4);
    thread[current].copies.push_back(c);
}

void copy_commit() { thread[current].groups.push_back(thread[current].copies.size()); }

void copy_wait(int pending) {
    Thread &t = thread[current];
    int done = (int)t.groups.size() - pending;
    if (done <= 0) return;
    size_t end = t.groups[done - 1];
    for (size_t i = 0; i < end; i++) memcpy(t.copies[i].to, t.copies[i].bytes, 16);
    t.copies.erase(t.copies.begin(), t.copies.begin() + end);
    t.groups.erase(t.groups.begin(), t.groups.begin() + done);
    for (size_t &g : t.groups) g -= end;
}

// ---- launches

static void run_block() {
    forget();
    alive = threads;
    barrier_arrived = barrier_true = 0;
    ready_warps = 0;
    for (int w = 0; w < warps; w++) {
        int n = threads - 32 * w;
        warp[w].exists = n >= 32 ? 0xffffffffu : (1u << n) - 1;
        warp[w].started = 0;
        warp[w].pending = 0;
        wake(w, warp[w].exists);
    }
    for (int t = 0; t < threads; t++) {
        thread[t].done = false;
        if (!thread[t].copies.empty()) thread[t].copies.clear();
        if (!thread[t].groups.empty()) thread[t].groups.clear();
    }
    fill_poison(shared_base, shared_end - shared_base);
    fill_poison(dynamic_shared, (dynamic_size + 3) & ~(size_t)3);
    current_warp = reverse ? warps - 1 : 0;
    int t = next();
    void *to = start(t);
    set_current(t);
    emu_switch(&main_sp, to);
}

struct Launch {
    u32 kernel, grid[3], block[3], shared, reverse, arguments, seconds, prompt;
};

static bool launch(const Launch &l, const u64 *arguments) {
    u32 k = l.kernel;
    int m = 0;
    while (k >= (u32)bzd_modules[m]->count) k -= bzd_modules[m++]->count;
    kernel = &bzd_modules[m]->kernels[k];
    slots = arguments;
    shared_base = bzd_shared_marks[m], shared_end = bzd_shared_marks[m + 1];
    gridDim = dim3(l.grid[0], l.grid[1], l.grid[2]);
    blockDim = dim3(l.block[0], l.block[1], l.block[2]);
    threads = l.block[0] * l.block[1] * l.block[2];
    warps = (threads + 31) / 32;
    reverse = l.reverse, prompt = l.prompt;
    // The end of dynamic shared memory touches an inaccessible page, as far as an alignment of 1024 allows.
    dynamic_size = l.shared;
    dynamic_shared = dynamic_area + shared_limit - ((l.shared + 1023) & ~1023u);
    for (int t = 0; t < threads; t++)
        indices[t] = {t % l.block[0], t / l.block[0] % l.block[1], t / l.block[0] / l.block[1]};
    failed = false;
    in_kernel = true;
    itimerval limit = {{0, 0}, {(time_t)l.seconds, 0}}, off = {};
    setitimer(ITIMER_PROF, &limit, nullptr);
    u64 blocks = (u64)l.grid[0] * l.grid[1] * l.grid[2];
    for (u64 i = 0; i < blocks && !failed; i++) {
        u64 b = reverse ? blocks - 1 - i : i;
        blockIdx = {(u32)(b % l.grid[0]), (u32)(b / l.grid[0] % l.grid[1]), (u32)(b / l.grid[0] / l.grid[1])};
        run_block();
    }
    in_kernel = false;
    setitimer(ITIMER_PROF, &off, nullptr);
    if (failed) {
        free_stacks.clear();
        for (int i = 0; i < (int)stacks.size(); i++) free_stacks.push_back(i);
    }
    return !failed;
}

// ---- faults

static void on_signal(int signal, siginfo_t *info, void *) {
    if (!in_kernel) {
        fprintf(stderr, "signal %d (%s) outside of kernels\n", signal, strsignal(signal));
        _exit(4);
    }
    u64 at = (u64)(uintptr_t)info->si_addr;
    if (signal == SIGPROF) fail("it runs and runs");
    if (signal == SIGFPE) fail("division by zero");
    if (signal == SIGSEGV || signal == SIGBUS) {
        if (at >= arena && at < arena + arena_size) fail("access to device address 0x%llx", at);
        for (unsigned char *top : stacks)
            if (at < (u64)(uintptr_t)top && at >= ((u64)(uintptr_t)top & ~(u64)(page - 1)) - stack_size - page) fail("out of stack");
        if (at >= (u64)(uintptr_t)dynamic_area && at < (u64)(uintptr_t)dynamic_area + shared_limit + page)
            fail("access outside of dynamic shared memory: byte %lld of %zu", (long long)(at - (u64)(uintptr_t)dynamic_shared), dynamic_size);
        if (at == 0) fail("access to address 0, or a misaligned vector");
        fail("access to address 0x%llx, which is no device memory", at);
    }
    fail("signal %d (%s)", signal, strsignal(signal));
}

// What -fsanitize=bounds,alignment calls: the runtime library of g++ is not needed for it.
struct Place {
    const char *file;
    u32 line, column;
};
static const char *base_name(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}
extern "C" __attribute__((noinline)) void __ubsan_handle_out_of_bounds_abort(Place *p, u64 index) {
    fail("%s:%u: index %lld is out of the array's bounds", base_name(p->file), p->line, (long long)index);
}
struct Mismatch {
    Place place;
    const void *type;
    unsigned char log_alignment, kind;
};
extern "C" __attribute__((noinline)) void __ubsan_handle_type_mismatch_v1_abort(Mismatch *m, u64 pointer) {
    if (!pointer) fail("%s:%u: access through a null pointer", base_name(m->place.file), m->place.line);
    fail("%s:%u: address 0x%llx is not aligned to %d bytes", base_name(m->place.file), m->place.line, pointer, 1 << m->log_alignment);
}

// ---- commands

static void read_all(void *to, size_t n) {
    unsigned char *p = (unsigned char *)to;
    while (n) {
        ssize_t got = read(0, p, n);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) _exit(0); // the Go side is gone
        p += got, n -= (size_t)got;
    }
}

static void write_all(const void *from, size_t n) {
    const unsigned char *p = (const unsigned char *)from;
    while (n) {
        ssize_t put = write(1, p, n);
        if (put < 0 && errno == EINTR) continue;
        if (put <= 0) _exit(0);
        p += put, n -= (size_t)put;
    }
}

static void write_text(const char *s) {
    u32 n = (u32)strlen(s);
    write_all(&n, 4);
    write_all(s, n);
}

static int serve() {
    read_all(&arena_size, 8);
    void *m = mmap(nullptr, arena_size, PROT_NONE, MAP_SHARED | MAP_NORESERVE, 3, 0);
    if (m == MAP_FAILED) {
        fprintf(stderr, "cannot map %llu bytes of device memory: %s\n", arena_size, strerror(errno));
        return 3;
    }
    arena = (u64)(uintptr_t)m;
    dynamic_area = (unsigned char *)mmap(nullptr, shared_limit + 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (dynamic_area == MAP_FAILED || mprotect(dynamic_area + shared_limit, page, PROT_NONE)) return 3;

    static unsigned char signal_stack[64 << 10];
    stack_t alternative = {};
    alternative.ss_sp = signal_stack, alternative.ss_size = sizeof signal_stack;
    sigaltstack(&alternative, nullptr);
    struct sigaction action = {};
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    for (int s : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGPROF}) sigaction(s, &action, nullptr);

    write_all(&arena, 8);
    u32 count = 0;
    for (int i = 0; i < bzd_module_count; i++) count += bzd_modules[i]->count;
    write_all(&count, 4);
    for (int i = 0; i < bzd_module_count; i++)
        for (int k = 0; k < bzd_modules[i]->count; k++) {
            write_text(bzd_modules[i]->kernels[k].name);
            write_text(bzd_modules[i]->kernels[k].parameters);
            write_all(&bzd_modules[i]->kernels[k].threads, 4);
        }
    // A command is a byte: m and u map and unmap (offset, bytes) without an answer, l launches.
    int map_error = 0;
    for (;;) {
        unsigned char command;
        read_all(&command, 1);
        if (command == 'm' || command == 'u') {
            u64 range[2];
            read_all(range, sizeof range);
            if (mprotect((void *)(uintptr_t)(arena + range[0]), range[1], command == 'm' ? PROT_READ | PROT_WRITE : PROT_NONE)) map_error = errno;
        } else if (command == 'l') {
            Launch l;
            u64 arguments[256]; // a word each; those that take more lie behind all others
            read_all(&l, sizeof l);
            if (l.arguments > 256) return 5;
            read_all(arguments, 8 * l.arguments);
            if (map_error) {
                write_text(strerror(map_error));
                map_error = 0;
                continue;
            }
            write_text(launch(l, arguments) ? "" : message);
        } else {
            fprintf(stderr, "unknown command %d\n", command);
            return 5;
        }
    }
}

} // namespace emu

int main() { return emu::serve(); }
