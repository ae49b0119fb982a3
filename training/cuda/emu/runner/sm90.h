// What sm_90a adds: barriers in shared memory, the copy engine, products of warpgroups. Part of runner.cpp, behind its
// collectives.
//
// The copy engine and the tensor cores see shared memory through a proxy of their own: mirror is what they see. Their writes
// reach both; what threads write reaches the mirror with async_fence.
#pragma once

static const u32 window = 1024; // the first dynamic byte among the 32-bit addresses of shared memory, as on cards
static bool prompt, advanced;   // advanced: the block has used any of this
alignas(1024) static unsigned char mirror[shared_limit];

static unsigned char *mirrored(const unsigned char *p) { return mirror + (p - dynamic_shared); }

static bool in_dynamic(const void *p, size_t n) {
    const unsigned char *c = (const unsigned char *)p;
    return c >= dynamic_shared && c + n <= dynamic_shared + dynamic_size;
}

static void advance() {
    if (advanced) return;
    advanced = true;
    fill_poison(mirror, (dynamic_size + 3) & ~(size_t)3);
}

u32 shared_address(const void *p) {
    advance();
    if (!in_dynamic(p, 1)) fail("%p is not in dynamic shared memory", p);
    return (u32)((const unsigned char *)p - dynamic_shared) + window;
}

// ---- barriers

struct Barrier {
    u64 *word; // it holds barrier_mark and the number of this, to see whether it is overwritten
    int expected, missing, phase;
    long bytes; // announced and not yet there
    const char *text;
    int line; // of the last one to wait
    std::vector<int> waiting;
};
static std::vector<Barrier> barriers;
static const u64 barrier_mark = 0x7fc1b2ba00000000;

static Barrier *known(u64 *bar) {
    u64 i = *bar ^ barrier_mark;
    return i < barriers.size() && barriers[i].word == bar ? &barriers[i] : nullptr;
}

static Barrier &barrier_at(int line, const char *text, u64 *bar) {
    if (((uintptr_t)bar & 7) || !in_dynamic(bar, 8)) fail("line %d: barrier (%s) is not in dynamic shared memory", line, text);
    Barrier *b = known(bar);
    if (!b) fail("line %d: barrier (%s): there is none; it was not initialised, or it was overwritten", line, text);
    return *b;
}

static void turn(int line, const char *text, Barrier &b) {
    if (b.missing < 0) fail("line %d: barrier (%s) gets more than %d arrivals in a phase", line, text, b.expected);
    if (b.missing || b.bytes) return;
    b.phase++;
    b.missing = b.expected;
    for (int t : b.waiting) wake(t >> 5, 1u << (t & 31));
    b.waiting.clear();
}

void init_bar(int line, const char *text, u64 *bar, int arrivals) {
    advance();
    if (((uintptr_t)bar & 7) || !in_dynamic(bar, 8)) fail("line %d: barrier (%s) is not in dynamic shared memory", line, text);
    if (known(bar)) fail("line %d: barrier (%s) is initialised twice", line, text);
    *bar = barrier_mark ^ barriers.size();
    barriers.push_back({bar, arrivals, arrivals, 0, 0, text, 0, {}});
}

void expect_bar(int line, const char *text, u64 *bar, int bytes) {
    Barrier &b = barrier_at(line, text, bar);
    b.bytes += bytes, b.missing--;
    turn(line, text, b);
}

void arrive_bar(int line, const char *text, u64 *bar) {
    Barrier &b = barrier_at(line, text, bar);
    b.missing--;
    turn(line, text, b);
}

void wait_bar(int line, const char *text, u64 *bar, int parity) {
    // A thread that polls sees a phase only if it looks before the next one ends: so the parity is looked at again.
    while ((barrier_at(line, text, bar).phase & 1) == (parity & 1)) {
        Barrier &b = *known(bar);
        b.text = text, b.line = line;
        b.waiting.push_back(current);
        block();
    }
}

struct Named {
    int threads, arrived, line;
    u32 lanes[max_warps];
    std::vector<int> waiting;
};
static Named named[16];

void named_bar(int line, bool wait, int id, int count) {
    advance();
    if (id < 1 || id > 15 || count <= 0 || count % 32 || count > threads) fail("line %d: named barrier %d for %d threads", line, id, count);
    Named &n = named[id];
    if (n.arrived && n.threads != count) fail("line %d: named barrier %d for %d threads, in line %d for %d", line, id, count, n.line, n.threads);
    u32 bit = 1u << lane;
    if (n.lanes[current_warp] & bit) fail("line %d: this thread arrives at named barrier %d twice", line, id);
    n.threads = count, n.line = line, n.lanes[current_warp] |= bit;
    if (++n.arrived < count) {
        if (!wait) return;
        n.waiting.push_back(current);
        block();
        return;
    }
    for (int w = 0; w < warps; w++)
        if (n.lanes[w] && n.lanes[w] != 0xffffffffu) fail("line %d: only lanes %08x of warp %d are at named barrier %d", line, n.lanes[w], w, id);
    n.arrived = 0;
    memset(n.lanes, 0, sizeof n.lanes);
    for (int t : n.waiting) wake(t >> 5, 1u << (t & 31));
    n.waiting.clear();
}

// ---- the copy engine

static const u64 map_mark = 0x70616d726f736e74; // driver_linux.go writes it

struct Map {
    u64 mark, base, bytes, rows, cols, stride, box_rows, box_cols;
    size_t size() const { return box_rows * 128; }
    unsigned char *at(long long row, long long col) const {
        return row < 0 || col < 0 || row >= (long long)rows || col >= (long long)cols ? nullptr : (unsigned char *)(uintptr_t)(base + (row * stride + col) * bytes);
    }
};

struct Load {
    Map map; // or, if mark is 0, a run of bytes
    int row, col;
    const unsigned char *from;
    unsigned char *to;
    size_t size;
    u64 *bar;
    int line, thread;
};
static std::vector<Load> loads; // under way

struct Store {
    Map map;
    int row, col, line;
    bool add;
    const unsigned char *from;
    std::vector<unsigned char> box; // what was read
};
struct Bulk { // of a thread
    std::vector<Store> open;
    std::deque<std::vector<Store>> groups;
    int wanted;
    bool waiting;
    std::vector<const TensorMap *> acquired;
};
static Bulk bulk[max_threads];
static std::vector<Store> stored; // read, and not yet in global memory: that is promised only for the end of the kernel
static u32 fenced_lanes[max_warps];

void acquire_map(const TensorMap *map) { bulk[current].acquired.push_back(map); }

static u64 arena, arena_size;

static Map read_map(int line, const TensorMap *map) {
    if ((uintptr_t)map & 63) fail("line %d: the tensor map at %p is not aligned to 64 bytes", line, (const void *)map);
    u64 at = (u64)(uintptr_t)map;
    if (at >= arena && at < arena + arena_size) {
        bool acquired = false;
        for (const TensorMap *m : bulk[current].acquired) acquired = acquired || m == map;
        if (!acquired) fail("line %d: this thread has not acquired the tensor map at %p, which is in global memory", line, (const void *)map);
    }
    Map m;
    memcpy(&m, map, sizeof m);
    if (m.mark != map_mark) fail("line %d: there is no tensor map at %p", line, (const void *)map);
    return m;
}

static void check_box(int line, const void *p, size_t n, int alignment) {
    advance();
    if (((uintptr_t)p & (alignment - 1)) || !in_dynamic(p, n))
        fail("line %d: the copy engine needs %zu bytes of dynamic shared memory at a multiple of %d, not byte %lld of %zu", line, n, alignment,
             (long long)((const unsigned char *)p - dynamic_shared), dynamic_size);
}

// land does a load.
static void land(const Load &l) {
    if (!prompt)
        for (size_t i = 0; i < l.size; i += 4)
            if (memcmp(l.to + i, &poison, 4)) fail("line %d: byte %zu of the target of a load is written while it is under way", l.line, i);
    if (l.map.mark) {
        int each = 16 / (int)l.map.bytes;
        for (int r = 0; r < (int)l.map.box_rows; r++)
            for (int c = 0; c < 8; c++) {
                unsigned char *to = l.to + r * 128 + (c ^ (r & 7)) * 16;
                long long row = (long long)l.row + r, col = (long long)l.col + c * each;
                if (l.map.at(row, col) && l.map.at(row, col + each - 1)) {
                    memcpy(to, l.map.at(row, col), 16);
                    continue;
                }
                for (int i = 0; i < each; i++) {
                    const unsigned char *from = l.map.at(row, col + i);
                    if (from)
                        memcpy(to + i * l.map.bytes, from, l.map.bytes);
                    else
                        memset(to + i * l.map.bytes, 0, l.map.bytes);
                }
            }
    } else {
        memcpy(l.to, l.from, l.size);
    }
    memcpy(mirrored(l.to), l.to, l.size);
    Barrier &b = barrier_at(l.line, "of a load", l.bar);
    b.bytes -= l.size;
    turn(l.line, "of a load", b);
}

static void load_later(const Load &l) {
    barrier_at(l.line, "of a load", l.bar);
    if (prompt) return land(l);
    fill_poison(l.to, l.size);
    fill_poison(mirrored(l.to), l.size);
    loads.push_back(l);
}

void load_box(int line, void *shared, const TensorMap *map, int row, int col, u64 *bar) {
    Map m = read_map(line, map);
    check_box(line, shared, m.size(), 1024);
    load_later({m, row, col, nullptr, (unsigned char *)shared, m.size(), bar, line, current});
}

void load_bulk(int line, void *shared, const void *global, int bytes, u64 *bar) {
    if (bytes <= 0 || bytes % 16 || (uintptr_t)global % 16) fail("line %d: a load of %d bytes from %p: not of 16s", line, bytes, global);
    check_box(line, shared, bytes, 16);
    Map none = {};
    load_later({none, 0, 0, (const unsigned char *)global, (unsigned char *)shared, (size_t)bytes, bar, line, current});
}

static void read_box(Store &s) {
    const unsigned char *from = mirrored(s.from);
    s.box.resize(s.map.size());
    for (int r = 0; r < (int)s.map.box_rows; r++)
        for (int c = 0; c < 8; c++) memcpy(&s.box[r * 128 + c * 16], from + r * 128 + (c ^ (r & 7)) * 16, 16);
}

static void write_box(const Store &s) {
    for (int r = 0; r < (int)s.map.box_rows; r++)
        for (int c = 0; c < (int)s.map.box_cols; c++) {
            unsigned char *to = s.map.at((long long)s.row + r, (long long)s.col + c);
            if (!to) continue;
            const unsigned char *from = &s.box[r * 128 + c * s.map.bytes];
            if (!s.add) {
                memcpy(to, from, s.map.bytes);
            } else if (s.map.bytes == 4) {
                float x, y;
                memcpy(&x, from, 4), memcpy(&y, to, 4);
                x += y;
                memcpy(to, &x, 4);
            } else {
                unsigned short x, y;
                memcpy(&x, from, 2), memcpy(&y, to, 2);
                u32 bits = (u32)bits_of(of_bf16(x) + of_bf16(y));
                x = (unsigned short)((bits & 0x7fffffff) > 0x7f800000 ? bits >> 16 | 0x40 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
                memcpy(to, &x, 2);
            }
        }
}

void store_box(int line, bool add, const TensorMap *map, int row, int col, const void *shared) {
    Map m = read_map(line, map);
    check_box(line, shared, m.size(), 1024);
    Store s = {m, row, col, line, add, (const unsigned char *)shared, {}};
    if (prompt) {
        read_box(s);
        write_box(s);
    }
    bulk[current].open.push_back(s);
}

void store_commit() {
    Bulk &b = bulk[current];
    b.groups.push_back(std::move(b.open));
    b.open.clear();
}

void store_wait(int pending) {
    Bulk &b = bulk[current];
    while ((int)b.groups.size() > pending) {
        if (prompt) {
            b.groups.pop_front();
            continue;
        }
        b.wanted = pending, b.waiting = true;
        block();
    }
}

void publish() {
    advance();
    u32 &lanes = fenced_lanes[current_warp];
    lanes |= 1u << lane;
    if (lanes != warp[current_warp].exists) return;
    lanes = 0; // all the warp has written is visible
    memcpy(mirror, dynamic_shared, dynamic_size);
}

// ---- stmatrix

struct Given {
    unsigned char *row;
    u32 r[4];
};

void store_matrices(int line, void *row, u32 r0, u32 r1, u32 r2, u32 r3) {
    check_shared("stmatrix", row);
    Given given = {(unsigned char *)row, {r0, r1, r2, r3}};
    warp[current_warp].in[lane] = (u64)(uintptr_t)&given;
    arrive(STORE_MATRIX, line, 0xffffffffu);
}

static void finish_store(Warp &w) {
    auto given = [&](int l) -> Given & { return *(Given *)(uintptr_t)w.in[l]; };
    for (int m = 0; m < 4; m++)
        for (int l = 0; l < 32; l++) memcpy(given(8 * m + l / 4).row + l % 4 * 4, &given(l).r[m], 4);
}

// ---- products of warpgroups. Each warp has its 16 rows of them to itself.

static const u64 poisons = (u64)poison << 32 | poison;

struct Result { // a warp's part of an accumulator with products under way
    float *lanes[32];
    int length, uses;
    alignas(64) float values[16][256];
};
struct Started {
    Result *d;
    Factors f; // of lane 0
    const u32 *fragments[32];
    int line;
};
struct Products { // of a warp
    std::vector<std::unique_ptr<Result>> results;
    std::vector<Started> open;
    std::deque<std::vector<Started>> groups;
    u32 waiting;
    int wanted;
    bool fenced;
    u64 history; // of all that was asked for: the same in all warps of a group
    int registers;
};
static Products products[max_warps];

// each_value calls f for the registers of a result and their values, two at a time: they lie side by side in both.
template <class F> static void each_value(Result &d, F f) {
    for (int l = 0; l < 32; l++)
        for (int i = 0; i < d.length; i += 4) {
            float *values = &d.values[l / 4][i * 2 + l % 4 * 2];
            f(d.lanes[l] + i, values);
            f(d.lanes[l] + i + 2, values + 8 * 256);
        }
}

// Operand reads matrices in shared memory the way a descriptor says.
struct Operand {
    u32 start, leading, stride;
    Operand(int line, u64 d) {
        start = (u32)(d & 0x3fff) << 4, leading = (u32)(d >> 16 & 0x3fff) << 4, stride = (u32)(d >> 32 & 0x3fff) << 4;
        if ((d & ~0x4000'3fff'3fff'3fffull) || d >> 62 != 1) fail("line %d: descriptor %016llx is not of 128-byte swizzle at offset 0", line, d);
    }
    // eight reads values whose bytes follow each other before they are swizzled.
    void eight(int line, u32 offset, float to[8]) const {
        u32 at = start + offset;
        at ^= (at >> 7 & 7) << 4;
        if (at % 16 || at < window || at - window + 16 > dynamic_size)
            fail("line %d: an operand at shared address %u, outside of dynamic shared memory", line, at);
        unsigned short raw[8];
        memcpy(raw, mirror + (at - window), 16);
        for (int i = 0; i < 8; i++) to[i] = of_bf16(raw[i]);
    }
    // row gives the 16 values of k of row or column mn, k along the bytes.
    void row(int line, int mn, float to[16]) const {
        for (int k = 0; k < 16; k += 8) eight(line, mn / 8 * stride + mn % 8 * 128 + k * 2, to + k);
    }
    // across gives 8 rows or columns from mn on of one k, where k lies across the bytes.
    void across(int line, int mn, int k, float to[8]) const {
        eight(line, mn / 64 * leading + mn % 64 * 2 + k / 8 * stride + k % 8 * 128, to);
    }
};

typedef float Sixteen __attribute__((vector_size(64)));

static void multiply_now(const Started &s, int w) {
    alignas(64) static float a[16][16], b[16][256];
    int first = w % 4 * 16, n = s.f.length * 2;
    if (s.f.fragment) {
        for (int l = 0; l < 32; l++)
            for (int i = 0; i < 4; i++) {
                float *to = &a[l / 4 + i % 2 * 8][l % 4 * 2 + i / 2 * 8];
                to[0] = of_bf16(s.fragments[l][i] & 0xffff), to[1] = of_bf16(s.fragments[l][i] >> 16);
            }
    } else {
        Operand o(s.line, s.f.a);
        float part[8];
        for (int i = 0; i < 16; i++)
            if (!s.f.trans_a) {
                o.row(s.line, first + i, a[i]);
            } else {
                for (int m = 0; m < 16; m += 8) {
                    o.across(s.line, first + m, i, part);
                    for (int x = 0; x < 8; x++) a[m + x][i] = part[x];
                }
            }
    }
    Operand o(s.line, s.f.b);
    for (int j = 0; !s.f.trans_b && j < n; j++) {
        float column[16];
        o.row(s.line, j, column);
        for (int k = 0; k < 16; k++) b[k][j] = column[k];
    }
    for (int k = 0; s.f.trans_b && k < 16; k++)
        for (int j = 0; j < n; j += 8) o.across(s.line, j, k, b[k] + j);
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < n; j += 16) {
            Sixteen sum[4] = {};
            for (int r = 0; s.f.add && r < 4; r++) sum[r] = *(Sixteen *)&s.d->values[i + r][j];
            for (int k = 0; k < 16; k++)
                for (int r = 0; r < 4; r++) sum[r] += a[i + r][k] * *(Sixteen *)&b[k][j];
            for (int r = 0; r < 4; r++) *(Sixteen *)&s.d->values[i + r][j] = sum[r];
        }
}

static void deliver(Products &p, Result *d) {
    each_value(*d, [](float *registers, float *values) { memcpy(registers, values, 8); });
    for (size_t i = 0; i < p.results.size(); i++)
        if (p.results[i].get() == d) {
            p.results.erase(p.results.begin() + i);
            return;
        }
}

void product(int line, const Factors &f) {
    warp[current_warp].in[lane] = (u64)(uintptr_t)&f;
    arrive(PRODUCT, line, 0xffffffffu);
}
void product_fence(int line) { arrive(PRODUCT_FENCE, line, 0xffffffffu); }
void product_commit(int line) { arrive(PRODUCT_COMMIT, line, 0xffffffffu); }

void product_wait(int line, int pending) {
    arrive(PRODUCT_WAIT, line, 0xffffffffu, pending);
    Products &p = products[current_warp];
    while ((int)p.groups.size() > pending) {
        p.wanted = pending, p.waiting |= 1u << lane;
        block();
    }
    p.fenced = false;
}

static void start_product(Warp &w, int line) {
    Products &p = products[current_warp];
    auto given = [&](int l) -> const Factors & { return *(const Factors *)(uintptr_t)w.in[l]; };
    Started s = {nullptr, given(0), {}, line};
    if ((current_warp | 3) >= warps) fail("line %d: a product of a warpgroup that has not all its warps", line);
    if (!p.fenced) fail("line %d: a product without wgmma_fence since the registers could last be used", line);
    for (int l = 0; l < 32; l++) {
        const Factors &f = given(l);
        s.fragments[l] = f.fragment;
        if (f.length != s.f.length || f.trans_a != s.f.trans_a || f.trans_b != s.f.trans_b || f.add != s.f.add || f.a != s.f.a || f.b != s.f.b)
            fail("line %d: lane %d of the warp multiplies something else", line, l);
    }
    for (u64 x : {(u64)s.f.length, (u64)s.f.trans_a, (u64)s.f.trans_b, (u64)s.f.add, s.f.a, s.f.b}) p.history = (p.history ^ x) * 0x100000001b3;
    for (auto &r : p.results)
        if (r->lanes[0] == s.f.d) s.d = r.get();
    if (!s.d) {
        p.results.push_back(std::unique_ptr<Result>(new Result));
        s.d = p.results.back().get();
        s.d->length = s.f.length, s.d->uses = 0;
        for (int l = 0; l < 32; l++) s.d->lanes[l] = given(l).d;
        each_value(*s.d, [](float *registers, float *values) { memcpy(values, registers, 8), memcpy(registers, &poisons, 8); });
    }
    if (s.d->length != s.f.length) fail("line %d: results of different lengths in the same registers", line);
    if (prompt) {
        multiply_now(s, current_warp);
        deliver(p, s.d);
        return;
    }
    s.d->uses++;
    p.open.push_back(s);
}

static void commit_products(Products &p) {
    p.groups.push_back(std::move(p.open));
    p.open.clear();
    if (prompt) p.groups.clear();
}

// finish_group does the oldest products of a warp.
static void finish_group(int w) {
    Products &p = products[w];
    std::vector<Started> group = std::move(p.groups.front());
    p.groups.pop_front();
    for (const Started &s : group) multiply_now(s, w);
    for (const Started &s : group) {
        if (--s.d->uses) continue;
        each_value(*s.d, [&](float *registers, float *) {
            if (memcmp(registers, &poisons, 8)) fail("line %d: the result of a product is written while it is under way", s.line);
        });
        deliver(p, s.d);
    }
}

// ---- registers

void set_registers(int line, int n, bool more) {
    int &now = products[current_warp].registers, before = now ? now : 65536 / threads & ~7;
    if (before != n && (n > before) != more) fail("line %d: registers go from %d to %d", line, before, n);
    advance();
    now = n;
}

// ---- what all of it has to do with the scheduler

static int in_order(int i, int n) { return reverse ? n - 1 - i : i; }

static void later_products() {
    for (int i = 0; i < warps && !ready_warps; i++) {
        int w = in_order(i, warps);
        Products &p = products[w];
        if (!p.waiting) continue;
        set_current(w * 32 + __builtin_ctz(p.waiting));
        while ((int)p.groups.size() > p.wanted) finish_group(w);
        wake(w, p.waiting);
        p.waiting = 0;
    }
}

static void later_stores() {
    for (int i = 0; i < threads && !ready_warps; i++) {
        int t = in_order(i, threads);
        Bulk &b = bulk[t];
        if (!b.waiting) continue;
        set_current(t);
        while ((int)b.groups.size() > b.wanted) {
            for (Store &s : b.groups.front()) {
                read_box(s);
                stored.push_back(std::move(s));
            }
            b.groups.pop_front();
        }
        b.waiting = false;
        wake(t >> 5, 1u << (t & 31));
    }
}

// later_loads lands only what somebody waits for: a load whose barrier is forgotten never shows.
static void later_loads() {
    for (int i = 0, n = (int)loads.size(); i < n && !ready_warps;) {
        auto at = loads.begin() + in_order(i, n);
        Barrier *b = known(at->bar);
        if (b && b->waiting.empty()) {
            i++;
            continue;
        }
        Load l = *at;
        loads.erase(at), n--;
        set_current(l.thread);
        land(l);
    }
}

// later does something for a thread that waits, when none can go on; false if there is nothing.
static bool later() {
    static void (*const kinds[])() = {later_products, later_stores, later_loads};
    for (int i = 0; i < 3 && !ready_warps; i++) kinds[in_order(i, 3)]();
    return ready_warps != 0;
}

static void thread_ends() {
    if (!advanced) return;
    Bulk &b = bulk[current];
    for (auto &g : b.groups)
        if (!g.empty()) fail("this thread ends, and its store of line %d may still read shared memory", g[0].line);
    if (!b.open.empty()) fail("this thread ends without a commit of its store of line %d", b.open[0].line);
}

static void block_ends() {
    if (!advanced) return;
    if (!loads.empty()) fail("the block ends while its load of line %d is under way", loads[0].line);
    int total = 0;
    for (int w = 0; w < warps; w++) {
        Products &p = products[w], &leader = products[w & ~3];
        if (!p.open.empty() || !p.groups.empty()) fail("the block ends while products of warp %d are under way", w);
        if (p.history != leader.history || p.registers != leader.registers) fail("warps %d and %d of a warpgroup differ in their products or registers", w, w & ~3);
        total += 32 * (p.registers ? p.registers : 65536 / threads & ~7);
    }
    if (total > 65536) fail("the warps want %d registers in all", total);
    for (Store &s : stored) write_box(s);
    stored.clear();
}

// forget clears what a block has left behind.
static void forget() {
    if (!advanced) return;
    advanced = false;
    barriers.clear();
    loads.clear();
    stored.clear();
    for (Named &n : named) n = Named();
    for (Products &p : products) p = Products();
    for (Bulk &b : bulk) b = Bulk();
    memset(fenced_lanes, 0, sizeof fenced_lanes);
}

// describe_waiting says who waits for what.
template <class Add> static void describe_waiting(Add add) {
    for (Barrier &b : barriers)
        if (!b.waiting.empty())
            add("; %d threads, the first of them %d, wait at barrier (%s), line %d, byte %d: %d of %d arrivals and %ld bytes lack of phase %d",
                (int)b.waiting.size(), b.waiting[0], b.text, b.line, (int)((unsigned char *)b.word - dynamic_shared), b.missing, b.expected, b.bytes,
                b.phase);
    for (int i = 1; i < 16; i++)
        if (named[i].arrived) add("; %d of %d threads are at named barrier %d, line %d", named[i].arrived, named[i].threads, i, named[i].line);
}
