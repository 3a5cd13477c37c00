// Runs kernels on a CPU, for tests: every thread of a block is a coroutine, so that shuffles and barriers mean what they mean on a GPU,
// and one that not all threads reach is an error instead of a wrong number.

#include <cmath>
#include <csetjmp>
#include <cstdio>
#include <cstring>
#include <memory>
#include <type_traits>
#include <ucontext.h>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
// Blocks run one after another in the thread that launches them.
#define __shared__ static thread_local
#define __syncthreads() emulator::barrier(__LINE__)
#define __shfl_xor_sync(mask, value, lanes) emulator::shuffle(mask, value, lanes, __LINE__)

struct Index { unsigned x, y, z; };
static thread_local Index threadIdx, blockIdx, blockDim, gridDim;

static inline int min(int a, int b) { return a < b ? a : b; }

namespace emulator {

const int WARP = 32;
const size_t STACK = 64 << 10;

enum class State { running, shuffle, barrier, done };

// A stack, on which one thread of the block after another runs until one has to wait there.
struct Coroutine {
    std::unique_ptr<char[]> stack{new char[STACK]};
    ucontext_t context;
    jmp_buf at;
    bool entered = false;
};

struct Thread {
    State state;
    Coroutine *on;
    // What it waits for: the line in the source, and the value and the distance of a shuffle.
    int line, lanes;
    float value;
};

struct Block {
    std::vector<std::unique_ptr<Coroutine>> all;
    std::vector<Coroutine *> idle;
    std::vector<Thread> threads;
    // Threads run from the last to the first in every second block: a barrier that is missing shows in one of the orders.
    bool backwards;
    int started, current;
    Coroutine *running;
    jmp_buf scheduler;
    void (*body)(void (*)(), void **);
    void (*kernel)();
    void **arguments;
    char error[256];
};
static thread_local Block block;

static bool fail(const char *what, int line) {
    snprintf(block.error, sizeof block.error, "line %d: %s", line, what);
    // Whatever waits on them never goes on.
    block.all.clear();
    block.idle.clear();
    return false;
}

static void turn_to(int thread) {
    block.current = thread;
    threadIdx = {thread % blockDim.x, thread / blockDim.x, 0};
}

__attribute__((noinline)) static void leave(Coroutine *from) {
    if (!_setjmp(from->at)) _longjmp(block.scheduler, 1);
}

static void work() {
    for (;;) {
        Coroutine *self = block.running;
        while (block.started < (int)block.threads.size()) {
            int at = block.started++;
            int thread = block.backwards ? (int)block.threads.size() - 1 - at : at;
            turn_to(thread);
            block.threads[thread] = {State::running, self, 0, 0, 0.0f};
            block.body(block.kernel, block.arguments);
            block.threads[block.current].state = State::done;
        }
        block.idle.push_back(self);
        leave(self);
    }
}

__attribute__((noinline)) static void enter(Coroutine *coroutine) {
    block.running = coroutine;
    if (_setjmp(block.scheduler)) return;
    if (coroutine->entered) _longjmp(coroutine->at, 1);
    coroutine->entered = true;
    getcontext(&coroutine->context);
    coroutine->context.uc_stack.ss_sp = coroutine->stack.get();
    coroutine->context.uc_stack.ss_size = STACK;
    coroutine->context.uc_link = nullptr;
    makecontext(&coroutine->context, work, 0);
    setcontext(&coroutine->context);
}

static void go_on(int thread) {
    turn_to(thread);
    block.threads[thread].state = State::running;
    enter(block.threads[thread].on);
}

__attribute__((noinline)) static void wait(State what, int line) {
    Thread &thread = block.threads[block.current];
    thread.state = what;
    thread.line = line;
    leave(thread.on);
}

static void barrier(int line) { wait(State::barrier, line); }

static float shuffle(unsigned mask, float value, int lanes, int line) {
    Thread &thread = block.threads[block.current];
    thread.value = value;
    // Only whole warps are emulated.
    thread.lanes = mask == 0xffffffffu ? lanes : -1;
    wait(State::shuffle, line);
    return block.threads[block.current].value;
}

// Lets the warp that starts with this thread go on where it waits for a shuffle.
static bool exchange(int first, bool &progress) {
    int count = (int)block.threads.size(), waiting = -1;
    for (int i = first; i < count && i < first + WARP; i++) if (block.threads[i].state == State::shuffle) waiting = i;
    if (waiting < 0) return true;
    const Thread with = block.threads[waiting];
    if (with.lanes < 0 || with.lanes >= WARP) return fail("a shuffle of other lanes than those of a whole warp", with.line);
    if (first + WARP > count) return fail("a shuffle in a warp of fewer than 32 threads", with.line);
    float values[WARP];
    for (int lane = 0; lane < WARP; lane++) {
        const Thread &thread = block.threads[first + lane];
        if (thread.state != State::shuffle || thread.line != with.line || thread.lanes != with.lanes)
            return fail("a shuffle that not all threads of the warp reach", with.line);
        values[lane] = block.threads[first + (lane ^ with.lanes)].value;
    }
    for (int lane = 0; lane < WARP; lane++) block.threads[first + lane].value = values[lane];
    for (int i = 0; i < WARP; i++) go_on(first + (block.backwards ? WARP - 1 - i : i));
    progress = true;
    return true;
}

static bool run() {
    int count = (int)block.threads.size();
    block.started = 0;
    while (block.started < count) {
        if (block.idle.empty()) {
            block.all.emplace_back(new Coroutine);
            block.idle.push_back(block.all.back().get());
        }
        Coroutine *next = block.idle.back();
        block.idle.pop_back();
        enter(next);
    }
    for (;;) {
        bool progress = false;
        for (int first = 0; first < count; first += WARP) if (!exchange(first, progress)) return false;
        if (progress) continue;
        int waiting = 0, line = 0;
        for (const Thread &thread : block.threads) if (thread.state == State::barrier) { waiting++; line = thread.line; }
        if (waiting == 0) return true;
        for (const Thread &thread : block.threads)
            if (thread.state != State::barrier || thread.line != line) return fail("a barrier that not all threads of the block reach", line);
        for (int i = 0; i < count; i++) go_on(block.backwards ? count - 1 - i : i);
    }
}

template <class T> constexpr char kind() {
    return std::is_same<T, const float *>::value ? 'r' : std::is_same<T, float *>::value ? 'w' : std::is_same<T, int>::value ? 'i'
         : std::is_same<T, long long>::value ? 'l' : std::is_same<T, float>::value ? 'f' : '?';
}

template <class... A, size_t... I> void call(void (*kernel)(A...), void **arguments, std::index_sequence<I...>) {
    kernel(*static_cast<A *>(arguments[I])...);
}

// Null, or what is wrong.
template <class... A>
const char *launch(void (*kernel)(A...), const unsigned *grid, const unsigned *threads, const char *kinds, void **arguments) {
    const char wanted[] = {kind<A>()..., 0};
    if (strcmp(kinds, wanted) != 0) {
        snprintf(block.error, sizeof block.error, "arguments %s are given, %s wanted", kinds, wanted);
        return block.error;
    }
    block.body = [](void (*kernel)(), void **arguments) {
        call(reinterpret_cast<void (*)(A...)>(kernel), arguments, std::index_sequence_for<A...>{});
    };
    block.kernel = reinterpret_cast<void (*)()>(kernel);
    block.arguments = arguments;
    block.threads.resize(threads[0] * threads[1]);
    gridDim = {grid[0], grid[1], 1};
    blockDim = {threads[0], threads[1], 1};
    for (unsigned y = 0; y < grid[1]; y++) {
        for (unsigned x = 0; x < grid[0]; x++) {
            blockIdx = {x, y, 0};
            block.backwards = (x + y) % 2 == 1;
            if (!run()) return block.error;
        }
    }
    return nullptr;
}

}

#define KERNEL(name) \
    extern "C" const char *emulate_##name(const unsigned *grid, const unsigned *threads, const char *kinds, void **arguments) { \
        return emulator::launch(name, grid, threads, kinds, arguments); \
    }
