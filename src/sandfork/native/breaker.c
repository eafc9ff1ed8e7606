/*
 * breaker.so: ends JavaScript that runs on after SIGINT, for a lasting node (guest/session_node.js).
 *
 * Node hears of a signal in its event loop, which does not turn while JavaScript runs. So a thread waits here for
 * SIGINT and has a function called from the event loop. Where that has not happened within PATIENCE, what runs is
 * terminated, wherever it was entered from: none of its handlers run, and node is back in its event loop. That is
 * repeated until the function is called. An interrupt that is heard in time terminates nothing.
 *
 * An add-on of node by its stable C interface, declared here for want of its headers. The functions of V8 are exported
 * by every node, for add-ons that are written in C++.
 */
#include "sys.h"

typedef void *napi_env, *napi_value, *napi_callback_info, *napi_threadsafe_function;
typedef napi_value (*callback)(napi_env, napi_callback_info);
typedef void (*finalizer)(napi_env, void *, void *);
typedef void (*call_js)(napi_env, napi_value, void *, void *);
extern int napi_call_function(napi_env, napi_value, napi_value, size_t, const napi_value *, napi_value *);
extern int napi_call_threadsafe_function(napi_threadsafe_function, void *, int);
extern int napi_create_function(napi_env, const char *, size_t, callback, void *, napi_value *);
extern int napi_create_reference(napi_env, napi_value, uint32_t, void **);
extern int napi_create_string_utf8(napi_env, const char *, size_t, napi_value *);
extern int napi_create_threadsafe_function(napi_env, napi_value, napi_value, napi_value, size_t, size_t, void *,
                                           finalizer, void *, call_js, napi_threadsafe_function *);
extern int napi_get_boolean(napi_env, bool, napi_value *);
extern int napi_get_cb_info(napi_env, napi_callback_info, size_t *, napi_value *, napi_value *, void **);
extern int napi_get_typedarray_info(napi_env, napi_value, int *, size_t *, void **, napi_value *, size_t *);
extern int napi_get_undefined(napi_env, napi_value *);
extern int napi_set_named_property(napi_env, napi_value, const char *, napi_value);
extern int napi_throw_error(napi_env, const char *, const char *);
extern int napi_unref_threadsafe_function(napi_env, napi_threadsafe_function);
extern int pthread_create(unsigned long *, const void *, void *(*)(void *), void *);
extern void *isolate_current(void) __asm__("_ZN2v87Isolate10GetCurrentEv");
extern void isolate_terminate(void *) __asm__("_ZN2v87Isolate18TerminateExecutionEv");
extern void isolate_cancel(void *) __asm__("_ZN2v87Isolate24CancelTerminateExecutionEv");

#define SIGINT_NUMBER 2
#define PATIENCE_NS 30000000
#define FUTEX_WAIT_PRIVATE 128
#define FUTEX_WAKE_PRIVATE 129
#define NAPI_AUTO_LENGTH ((size_t)-1)

/* Only the thread goes on from SIGNALLED, so each interrupt that comes after `heard` has the function called again, however
 * late the thread is. */
enum { QUIET, SIGNALLED, CALLED, TERMINATING };

/* As the kernel has it; flags, mask and restorer are taken over from what is replaced. */
struct action {
    void (*handler)(int);
    unsigned long rest[3];
};

static uint32_t state; /* a futex */
static void *isolate;
static long isolate_thread; /* that it runs in */
static napi_threadsafe_function function;
static void (*listener)(int);

/* Of the session's: whether code runs that must not be terminated, for it is none of the program's. */
static uint32_t *ours;
/* After that one: the number of the step that runs, 0 between steps; and 1 more than that of the step in which something
 * was terminated, until the session has taken notice. */
#define STEP (ours + 1)
#define TERMINATED (ours + 2)
static uint32_t signalled_in; /* which step: an interrupt is not for the next one */

/* Of node's: for how many reasons it aborts when its stack of callbacks is not as it was left; see async_hooks. */
static uint32_t *checks, *totals;
static uint32_t taken_checks, taken_totals; /* what was taken from them */

static uint32_t load(const uint32_t *from)
{
    return __atomic_load_n(from, __ATOMIC_SEQ_CST);
}

static void store(uint32_t *to, uint32_t value)
{
    __atomic_store_n(to, value, __ATOMIC_SEQ_CST);
}

static bool advance(uint32_t from, uint32_t to)
{
    return __atomic_compare_exchange_n(&state, &from, to, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

static void wait_while(uint32_t seen, const struct timespec *most)
{
    SYS(futex, &state, FUTEX_WAIT_PRIVATE, seen, most, NULL, 0);
}

static void wake(void)
{
    SYS(futex, &state, FUTEX_WAKE_PRIVATE, 1 << 30, NULL, NULL, 0);
}

/* The signal handler, in whatever thread; node's own comes after, for the program's listeners. */
static void signalled(int number)
{
    store(&signalled_in, load(STEP));
    if (advance(QUIET, SIGNALLED))
        wake();
    listener(number);
}

static void terminate(void)
{
    if (load(ours) || load(STEP) != load(&signalled_in) || !advance(CALLED, TERMINATING))
        return;
    taken_checks += __atomic_exchange_n(checks, 0, __ATOMIC_SEQ_CST);
    taken_totals += __atomic_exchange_n(totals, 0, __ATOMIC_SEQ_CST);
    store(TERMINATED, load(&signalled_in) + 1);
    isolate_terminate(isolate);
    store(&state, CALLED);
    wake();
}

/* How much processor time the isolate's thread has used. Where others use the processors, patience is not over by the clock:
 * node may be about to hear, in the midst of its own timers, one of which would be lost. */
static uint64_t ran_ns(void)
{
    return clock_ns((~isolate_thread << 3) | 6 /* PERTHREAD|SCHED, as the kernel numbers such clocks */);
}

/* Whether the thread waits for something, as Atomics.wait does; that it cannot be known is no reason to wait for it. */
static bool is_asleep(void)
{
    struct text path = {0};
    char stat[128] = {0};
    text_add(&path, "/proc/self/task/");
    text_num(&path, isolate_thread);
    text_add(&path, "/stat");
    long fd = SYS(openat, AT_FDCWD, path.buf, O_RDONLY | O_CLOEXEC, 0);
    long n = fd < 0 ? fd : SYS(read, fd, stat, sizeof stat - 1);
    if (fd >= 0)
        SYS(close, fd);
    while (n > 0 && stat[n - 1] != ')')
        n--;
    return n <= 0 || stat[n + 1] != 'R';
}

static void *watch(void *unused)
{
    for (;;) {
        while (!advance(SIGNALLED, CALLED))
            wait_while(QUIET, NULL);
        if (napi_call_threadsafe_function(function, NULL, 0))
            return unused; /* node is about to end */
        while (load(&state) == CALLED) {
            const struct timespec more = {0, PATIENCE_NS};
            uint64_t ran = ran_ns();
            do
                wait_while(CALLED, &more);
            while (load(&state) == CALLED && ran_ns() - ran < PATIENCE_NS && !is_asleep());
            terminate();
        }
    }
}

/* In the event loop: call the function with whether something was terminated; it then empties the stack of callbacks. */
static void heard(napi_env env, napi_value called, void *context, void *data)
{
    (void)context, (void)data;
    store(ours, 1); /* before the next interrupt counts: none is to take the counts while they are given back */
    while (!advance(CALLED, QUIET))
        wait_while(TERMINATING, NULL);
    wake();
    bool broke = load(TERMINATED) != 0;
    if (broke)
        isolate_cancel(isolate); /* what was not entered from JavaScript has left this to do; else it came too late */
    napi_value receiver, told, result;
    if (env && !napi_get_undefined(env, &receiver) && !napi_get_boolean(env, broke, &told))
        napi_call_function(env, receiver, called, 1, &told, &result);
    /* Not before the stack is empty. If the program has changed its hooks since the break, a reason is counted twice or
     * still counted: then node looks where it need not, and finds all as it should be. */
    *checks += taken_checks;
    *totals += taken_totals;
    taken_checks = taken_totals = 0;
    store(ours, 0);
}

static napi_value failed(napi_env env, const char *why)
{
    napi_throw_error(env, NULL, why);
    return NULL;
}

/* arm(): see each SIGINT before node's own handler does, which must be there. May be repeated. */
static napi_value arm(napi_env env, napi_callback_info info)
{
    (void)info;
    struct action now;
    SYS(rt_sigaction, SIGINT_NUMBER, NULL, &now, 8);
    if (now.handler == signalled)
        return NULL;
    if ((uintptr_t)now.handler <= 1)
        return failed(env, "nobody listens to SIGINT");
    listener = now.handler;
    now.handler = signalled;
    SYS(rt_sigaction, SIGINT_NUMBER, &now, NULL, 8);
    return NULL;
}

/* start(function, ours, checks, totals): begin, for the isolate that calls. The last three are Uint32Arrays. */
static napi_value start(napi_env env, napi_callback_info info)
{
    napi_value given[4], name;
    void *kept;
    size_t count = 4;
    uint32_t **const fields[] = {&ours, &checks, &totals};
    if (isolate)
        return failed(env, "already started");
    if (napi_get_cb_info(env, info, &count, given, NULL, NULL) || count != 4)
        return failed(env, "too few arguments");
    for (int i = 0; i < 3; i++)
        if (napi_get_typedarray_info(env, given[i + 1], NULL, NULL, (void **)fields[i], NULL, NULL) || !*fields[i] ||
            napi_create_reference(env, given[i + 1], 1, &kept))
            return failed(env, "no array");
    napi_create_string_utf8(env, "sandfork", NAPI_AUTO_LENGTH, &name);
    if (napi_create_threadsafe_function(env, given[0], NULL, name, 0, 1, NULL, NULL, NULL, heard, &function) ||
        napi_unref_threadsafe_function(env, function))
        return failed(env, "no function");
    isolate = isolate_current();
    isolate_thread = SYS(gettid);
    /* The thread takes over that no signal is for it. */
    unsigned long thread;
    uint64_t all = ~0ull, before;
    SYS(rt_sigprocmask, 2 /* SETMASK */, &all, &before, 8);
    int error = pthread_create(&thread, NULL, watch, NULL);
    SYS(rt_sigprocmask, 2, &before, NULL, 8);
    return error ? failed(env, "no thread can be made") : NULL;
}

__attribute__((visibility("default"))) napi_value napi_register_module_v1(napi_env env, napi_value exports)
{
    napi_value made;
    napi_create_function(env, "start", NAPI_AUTO_LENGTH, start, NULL, &made);
    napi_set_named_property(env, exports, "start", made);
    napi_create_function(env, "arm", NAPI_AUTO_LENGTH, arm, NULL, &made);
    napi_set_named_property(env, exports, "arm", made);
    return exports;
}
