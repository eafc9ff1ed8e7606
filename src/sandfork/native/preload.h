/*
 * How an interpreter that was started with preload.so becomes a zygote, and its child the program; see preload.c, which
 * tells this what the interpreter does until then.
 */
#ifndef SANDFORK_PRELOAD_H
#define SANDFORK_PRELOAD_H

#include "end.h"
#include "exec.h"
#include "hugetext.h"
#include "variables.h"
#include "zygote.h"

#define MARK "/sandbox/.fork"
#define ORDERS_FD 100
#define REPORTS_FD 101
#define PROFILE_FD 102
#define DRIVER_FD 103
#define FIRST_FD 3
#define STRING(macro) STRING_OF(macro)
#define STRING_OF(word) #word
#define CLOCKS_MAX 16
#define DIRECTORIES_MAX 4
#define PREPARED_BYTES (1u << 20)

extern unsigned long getauxval(unsigned long type) __attribute__((weak));
extern int on_exit(void (*handler)(int status, void *given), void *given) __attribute__((weak));
extern int fflush(void *file) __attribute__((weak));

static struct confinement confinement;

enum way { NEVER, AT_OPEN, AT_READ, AT_MARK, AT_FORK };

static enum way fork_at; /* NEVER: this is not the interpreter, or it has forked already */
static char settings[PATH_MAX * 2];
static const char *program_path;

/* What the interpreter did with the program's file before the fork. */
static struct {
    int fd; /* 0: it has not opened it */
    bool cloexec;
    char *first; /* where it has the first byte of it */
} opened;

static uint64_t open_fds, cloexec_fds; /* of the interpreter's own below CTL_FD, as it forked */

/* Where the interpreter keeps what time it was when it started. */
static struct clock {
    long *place, value;
} clocks[CLOCKS_MAX];
static size_t clock_count;

/* Directories that it made for what it writes to while it runs. */
static char directories[DIRECTORIES_MAX][PATH_MAX];
static size_t directory_count;

static uint64_t started_ns; /* when the program began */

static bool seeded; /* it gave the C library's random numbers a seed, which its children must not share */

static __attribute__((noreturn)) void give_up(const char *what, long err)
{
    struct text line = {0};
    text_add(&line, what);
    if (err) {
        text_add(&line, ": error ");
        text_num(&line, -err);
    }
    text_add(&line, "\n");
    write_all(2, line.buf, line.len);
    for (;;)
        SYS(exit_group, 1);
}

/* --- becoming a zygote --- */

static long configure(void)
{
    long r = read_all(PROFILE_FD, &confinement.profile, sizeof confinement.profile);
    if (r < 0)
        return r;
    if (!profile_fits(&confinement.profile))
        return -EINVAL;
    r = read_all(PROFILE_FD, confinement.bpf, confinement.profile.bpf_len * sizeof *confinement.bpf);
    if (r >= 0)
        r = read_all(PROFILE_FD, confinement.seal, confinement.profile.seal_len * sizeof *confinement.seal);
    SYS(close, PROFILE_FD);
    return r;
}

static int count_threads(void)
{
    char entries[4096];
    int count = -2; /* "." and ".." */
    long fd = SYS(openat, AT_FDCWD, "/proc/self/task", O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
    for (long n; fd >= 0 && (n = SYS(getdents64, fd, entries, sizeof entries)) > 0;)
        for (long at = 0; at < n; at += *(uint16_t *)(entries + at + 16 /* d_reclen */))
            count++;
    SYS(close, fd);
    return count;
}

static void note_descriptors(void)
{
    for (int fd = FIRST_FD; fd < CTL_FD; fd++) {
        long flags = SYS(fcntl, fd, F_GETFD, 0);
        open_fds |= (uint64_t)(flags >= 0) << fd;
        cloexec_fds |= (uint64_t)(flags > 0) << fd;
    }
}

/* What the interpreter had open it must not share with others, nor find taken by what it opens next. */
static void stand_in_for_descriptors(void)
{
    for (int fd = FIRST_FD; fd < CTL_FD; fd++) {
        if (!(open_fds >> fd & 1))
            continue;
        long null = SYS(openat, AT_FDCWD, "/dev/null", O_RDWR | O_CLOEXEC, 0);
        if (null != fd) {
            SYS(dup3, null, fd, O_CLOEXEC);
            SYS(close, null);
        }
        if (!(cloexec_fds >> fd & 1))
            SYS(fcntl, fd, F_SETFD, 0);
    }
}

/* Put the program's file where the interpreter has it open. False where only a fresh interpreter can take it. */
static bool open_program(void)
{
    char head[2];
    if (!opened.fd)
        return true;
    long fd = SYS(openat, AT_FDCWD, program_path, O_RDONLY | O_CLOEXEC, 0);
    if (fd < 0)
        return false;
    if (opened.first) {
        long n = SYS(read, fd, head, sizeof head);
        if (n < 1 || (n == 2 && head[0] == '#' && head[1] == '!')) {
            SYS(close, fd);
            return false; /* it looks for options of its own there */
        }
        *opened.first = head[0];
        SYS(lseek, fd, 1, 0);
    }
    SYS(dup3, fd, opened.fd, opened.cloexec ? O_CLOEXEC : 0);
    if (fd != opened.fd)
        SYS(close, fd);
    return true;
}

static void set_clocks(void)
{
    struct timespec now;
    SYS(clock_gettime, 0 /* CLOCK_REALTIME */, &now);
    for (size_t i = 0; i < clock_count; i++)
        if (*clocks[i].place == clocks[i].value)
            *clocks[i].place = now.tv_sec;
}

void srand(unsigned seed);

/* Give a child what its interpreter got when it started. False: it cannot have it. */
static bool renew(void)
{
    for (size_t i = 0; i < directory_count; i++) {
        long r = SYS(mkdirat, AT_FDCWD, directories[i], 0700);
        if (r < 0 && r != -EEXIST)
            return false;
    }
    unsigned seed;
    if (seeded && SYS(getrandom, &seed, sizeof seed, 0) != sizeof seed)
        return false;
    if (seeded)
        srand(seed);
    return true;
}

static void be_program(void)
{
    stand_in_for_descriptors();
    program_receive(CTL_FD);
    if (!program_is_warm || !renew() || !open_program()) {
        for (int signal = 1; signal < 32; signal++)
            signal_disposition(signal, false);
        program_exec(CTL_FD);
    }
    set_clocks();
    started_ns = monotonic_ns();
    say_started(CTL_FD);
    runner = identity_of(CTL_FD);
}

/*
 * The program has come to its end by itself: all else that is done then is done, but for the C library's own streams. What
 * is still to come is the end of a process, which the answer need not wait for.
 */
static void at_exit(int status, void *given)
{
    (void)given;
    if (runner.pid != (uint32_t)SYS(getpid))
        return; /* a template, or a process that the program forked */
    fflush(NULL);
    uint64_t times[] = {started_ns, monotonic_ns()};
    end_run(CTL_FD, status, times);
}

/*
 * Have a parked child take its page faults before there is a program: its copies of what the interpreter writes to, within
 * PREPARED_BYTES, and the page tables of what it reads.
 */
static void prepare_memory(void)
{
    size_t left = PREPARED_BYTES;
    struct mapping m;
    for (const char *line = read_maps(); line && *line;) {
        line = read_mapping(line, &m);
        size_t size = m.end - m.start;
        if (m.protection == (MAPPED_READ | MAPPED_WRITE) && !m.shared && size <= left) {
            SYS(madvise, m.start, size, 23 /* MADV_POPULATE_WRITE, Linux 5.14 */);
            left -= size;
        } else if (m.protection & MAPPED_READ && m.protection & MAPPED_EXEC) {
            SYS(madvise, m.start, size, 22 /* MADV_POPULATE_READ */);
        }
    }
}

/* Returns in each child, as the program. `caller` is a function of the interpreter's. */
static void become_zygote(const void *caller)
{
    void *tid_address = NULL;
    fork_at = NEVER;
    int threads = count_threads();
    if (threads != 1)
        give_up("the interpreter has started a thread: forking with locks held by it would hang", 0);
    if (SYS(getpid) <= 2)
        give_up("pid too low: libraries compare pids to notice a fork", 0);
    long r = configure();
    if (r < 0)
        give_up("reading the confinement profile", r);
    SYS(close, DRIVER_FD);
    note_descriptors();
    huge_text((uint64_t)caller);
    if (getauxval)
        huge_text(getauxval(9 /* AT_ENTRY */));
    SYS(prctl, PR_GET_TID_ADDRESS, &tid_address, 0, 0, 0);
    if ((r = load_filter(confinement.bpf, confinement.profile.bpf_len)) < 0)
        give_up("loading the seccomp policy", r);
    report_ready(REPORTS_FD);
    if ((r = zygote_fork(&confinement, ORDERS_FD, REPORTS_FD, tid_address)) < 0)
        SYS(exit_group, 0);
    if (!(r & ORDER_URGENT))
        prepare_memory();
    be_program();
}

/* --- before main --- */

static bool same_file(const char *a, const char *b)
{
    struct statx of_a, of_b;
    return SYS(statx, AT_FDCWD, a, 0, STATX_INO, &of_a) >= 0 && SYS(statx, AT_FDCWD, b, 0, STATX_INO, &of_b) >= 0 &&
           of_a.stx_ino == of_b.stx_ino && of_a.stx_dev_major == of_b.stx_dev_major &&
           of_a.stx_dev_minor == of_b.stx_dev_minor;
}

static char *next_word(char **at)
{
    char *word = *at;
    while (**at && **at != ' ')
        ++*at;
    if (**at)
        *(*at)++ = 0;
    return word;
}

static enum way way_of(const char *word)
{
    static const char *const names[] = {"never", "open", "read", "mark", "fork"};
    for (int way = AT_OPEN; way <= AT_FORK; way++)
        if (str_eq(word, names[way]))
            return (enum way)way;
    return NEVER;
}

/* Ours go above those of a program; an interpreter's first is 3, as ever. */
static void lift_descriptors(const char *driver)
{
    for (int i = 0; i < 3; i++)
        SYS(dup3, FIRST_FD + i, ORDERS_FD + i, O_CLOEXEC);
    if (*driver) {
        SYS(dup3, FIRST_FD + 4, DRIVER_FD, O_CLOEXEC);
        SYS(symlinkat, "/proc/self/fd/" STRING(DRIVER_FD), AT_FDCWD, driver);
    }
    SYS(close_range, FIRST_FD, FIRST_FD + (*driver ? 4 : 3), 0);
}

/* With the directories above it; set_up has taken the path apart from what follows it. */
static void make_program_file(char *path)
{
    for (char *at = path + 1; *at; at++) {
        if (*at != '/')
            continue;
        *at = 0;
        SYS(mkdirat, AT_FDCWD, path, 0755);
        *at = '/';
    }
    long fd = SYS(openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    long r = fd < 0 ? fd : write_all((int)fd, "\n", 1);
    SYS(close, fd);
    if (r < 0)
        give_up(path, r);
}

static __attribute__((constructor)) void set_up(void)
{
    const char *given = variable("SANDFORK_FORK");
    size_t size = given ? str_len(given) + 1 : 0;
    if (!size || size > sizeof settings)
        return;
    memcpy(settings, given, size);
    char *at = settings;
    enum way way = way_of(next_word(&at));
    char *path = next_word(&at);
    const char *interpreter = next_word(&at);
    if (!same_file("/proc/self/exe", interpreter))
        return; /* a script that starts it, or a command of that */
    /* Twice in the environment is twice a shell's doing. */
    take_variable("SANDFORK_FORK");
    take_variable("LD_PRELOAD");
    take_variable("LD_BIND_NOW");
    lift_descriptors(next_word(&at));
    program_path = path;
    make_program_file(path);
    fork_at = way;
    /* Before the interpreter has any of its own: handlers run in the reverse order. */
    if (on_exit && fflush)
        on_exit(at_exit, NULL);
}

#endif
