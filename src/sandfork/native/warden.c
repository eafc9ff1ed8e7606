/*
 * sandfork-warden: the native side of the process tier. Two processes of one binary:
 *
 *   janitor  root on the host (or the user, without root). Makes the warden, and when the warden is gone removes what
 *            only the host's root can remove. It does nothing else.
 *   warden   pid 1 of its own pid namespace, root of its own user namespace, nobody on the host. It keeps slots, makes
 *            cells, starts zygotes and reaps everything. When it dies the kernel kills every process it ever made; it
 *            ends when the server's socket closes.
 *
 * usage: sandfork-warden SOCKET UID_BASE UID_COUNT NAME=DIRECTORY...
 *        sandfork-warden --reduced DIRECTORY SOCKET UID_BASE UID_COUNT
 *        sandfork-warden --sweep DIRECTORY
 *        sandfork-warden --probe
 *   SOCKET      descriptor of the SEQPACKET socket to the server
 *   UID_BASE    first host uid and gid of the range that the warden's user namespace maps; UID_COUNT 1: our own only
 *   NAME=DIR    a cgroup v1 controller, or "unified", and the directory made for this instance, which holds "keep"
 *
 * --reduced makes sandboxes without namespaces, with their work directories in DIRECTORY (reduced_warden.h); --sweep
 * removes what an instance that was killed left in one; --probe tells what this host refuses (probe.h).
 *
 * The event loop never waits for a process: every step ends in a message or a signal.
 */
#include "cell.h"
#include "exec.h"
#include "kin.h"
#include "probe.h"
#include "reduced_warden.h"
#include "zygote.h"

#include <linux/memfd.h>

struct zygote {
    int32_t pid; /* 0: no such zygote */
    int orders;  /* 0: retired */
    uint32_t root;
    bool ready;
};

struct root {
    int mnt;       /* 0: not built */
    int32_t pid;   /* the builder, while it works */
    int result_fd; /* where it says how it went */
};

static struct confinement profiles[PROFILES_MAX];
static struct root roots[ROOTS_MAX];
static struct zygote zygotes[ZYGOTES_MAX];
static uint16_t slot_zygote[SLOTS_MAX];
static uint8_t slot_pending[SLOTS_MAX]; /* no child was born and no zygote has refused yet */
static uint8_t slot_marker[SLOTS_MAX];  /* a marker order is on its way */
static uint32_t slot_serial[SLOTS_MAX]; /* of the last order; what is reported of another one comes late */
/* The limits wanted for a process that cannot lower its own rlimits and whose pid is not told yet; `cpu_s` 0: none. */
static struct limits slot_wanted[SLOTS_MAX];
static uint32_t slots_used;
static int server = -1, reports_in = -1, reports_out = -1;
static int janitor_end = -1; /* reduced: at its end when the janitor dies */
static char message[MESSAGE_MAX];

/* The end of the warden. With namespaces the kernel kills all that it made; without, it must do so itself. */
static __attribute__((noreturn)) void leave(int status)
{
    for (uint32_t i = 0; i < ZYGOTES_MAX && host.reduced; i++)
        if (zygotes[i].pid)
            SYS(kill, zygotes[i].pid, SF_SIGKILL);
    if (host.reduced)
        reduced_sweep(false);
    for (;;)
        SYS(exit_group, status);
}

static __attribute__((noreturn)) void die(const char *what, long err)
{
    struct text t = {0};
    text_add(&t, "sandfork-warden: ");
    text_add(&t, what);
    text_add(&t, ": errno ");
    text_num(&t, -err);
    text_add(&t, "\n");
    SYS(write, 2, t.buf, t.len);
    for (;;)
        SYS(exit_group, 70);
}

static void tell(const struct event *ev)
{
    long r = send_fds(server, ev, sizeof *ev, NULL, 0);
    if (r == -EPIPE || r == -ECONNRESET)
        leave(0); /* the server is gone, so must all be */
}

static void tell_failure(uint32_t op, uint32_t id, uint32_t step, long err)
{
    struct event ev = {.op = op, .id = id, .step = step, .err = (uint32_t)-err};
    tell(&ev);
}

/* --- roots --- */

static __attribute__((noreturn)) void root_builder(int result, int plan)
{
    struct event ev = {.op = EV_ROOT};
    int mnt = -1;
    long r = SYS(unshare, CLONE_NEWNS);
    if (r >= 0)
        r = mnt = (int)SYS(openat, AT_FDCWD, "/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC, 0);
    ev.step = STEP_UNSHARE;
    long len = SYS(lseek, plan, 0, 2 /* SEEK_END */);
    long at = SYS(mmap, NULL, len, 3 /* READ|WRITE */, 2 /* PRIVATE */, plan, 0);
    if (r >= 0)
        r = len < 0 ? len : at < 0 ? at : build_root((char *)at, (size_t)len, &ev.step, &ev.flags);
    ev.err = r < 0 ? (uint32_t)-r : 0;
    send_fds(result, &ev, sizeof ev, &mnt, mnt >= 0 ? 1 : 0);
    SYS(exit_group, 0);
    for (;;)
        ;
}

/* What was forked from it has mounts of its own. */
static void drop_root(uint32_t id)
{
    if (id < ROOTS_MAX && roots[id].mnt) {
        SYS(close, roots[id].mnt);
        roots[id].mnt = 0;
    }
}

static void close_pair(const int *pair)
{
    for (int i = 0; i < 2; i++)
        if (pair[i] >= 0)
            SYS(close, pair[i]);
}

static void handle_root(const struct request *req, const int *fds, int nfds)
{
    int pair[2] = {-1, -1};
    if (!nfds)
        return drop_root(req->id);
    if (req->id >= ROOTS_MAX || roots[req->id].mnt || roots[req->id].pid || nfds != 1)
        return tell_failure(EV_ROOT, req->id, STEP_SLOT, -EINVAL);
    long r = SYS(socketpair, SF_AF_UNIX, SF_SOCK_SEQPACKET | SF_SOCK_CLOEXEC, 0, pair);
    if (r >= 0)
        r = fork_with(0, SF_SIGCHLD, NULL);
    if (r == 0)
        root_builder(pair[1], fds[0]);
    if (r < 0) {
        close_pair(pair);
        return tell_failure(EV_ROOT, req->id, STEP_CLONE, r);
    }
    SYS(close, pair[1]);
    roots[req->id].pid = (int32_t)r;
    roots[req->id].result_fd = pair[0];
}

/* The builder is reaped: whatever it had to say is in the socket. */
static void root_finished(uint32_t id)
{
    struct root *root = &roots[id];
    struct event ev;
    int fds[FDS_MAX], nfds;
    long n = recv_fds(root->result_fd, &ev, sizeof ev, fds, &nfds, SF_MSG_DONTWAIT);
    SYS(close, root->result_fd);
    root->pid = 0;
    if (n != sizeof ev)
        return tell_failure(EV_ROOT, id, STEP_PLAN, -ECHILD);
    ev.id = id;
    if (nfds == 1 && ev.err == 0)
        root->mnt = fds[0];
    else if (nfds == 1)
        SYS(close, fds[0]);
    tell(&ev);
}

/* --- zygotes --- */

/* What an interpreter's zygote finds open: 0 /dev/null, 1 and 2 the log, then these. */
enum { ZYGOTE_ORDERS = 3, ZYGOTE_REPORTS, ZYGOTE_PROFILE, ZYGOTE_FILES };

static long profile_file(const struct confinement *c)
{
    long fd = SYS(memfd_create, "profile", MFD_CLOEXEC);
    if (fd < 0)
        return fd;
    long r = write_all((int)fd, &c->profile, sizeof c->profile);
    if (r >= 0)
        r = write_all((int)fd, c->bpf, c->profile.bpf_len * sizeof *c->bpf);
    if (r >= 0)
        r = write_all((int)fd, c->seal, c->profile.seal_len * sizeof *c->seal);
    if (r >= 0)
        r = write_all((int)fd, c->paths, c->profile.paths_len);
    if (r >= 0)
        r = SYS(lseek, fd, 0, 0);
    return r < 0 ? r : fd;
}

/* Put `fds[0..n)` at ZYGOTE_ORDERS.. and close all else. They are first lifted out of the way of each other. */
static long arrange_fds(int *fds, int n, int log, bool inherit)
{
    for (int i = 0; i < n; i++) {
        long high = SYS(fcntl, fds[i], 1030 /* F_DUPFD_CLOEXEC */, 100);
        if (high < 0)
            return high;
        fds[i] = (int)high;
    }
    /* A pipe at its end, as the program will have: an interpreter asks once whether its stdin can seek. */
    int ended[2];
    long r = SYS(pipe2, ended, O_CLOEXEC);
    if (r < 0)
        return r;
    SYS(dup3, ended[0], 0, 0);
    SYS(dup3, log, 1, 0);
    SYS(dup3, log, 2, 0);
    for (int i = 0; i < n; i++)
        SYS(dup3, fds[i], ZYGOTE_ORDERS + i, inherit ? 0 : O_CLOEXEC);
    return SYS(close_range, ZYGOTE_ORDERS + n, ~0u, 0);
}

static __attribute__((noreturn)) void native_zygote(const struct confinement *c, const struct request *req)
{
    long r = load_filter(c->bpf, c->profile.bpf_len);
    if (r < 0)
        die("loading the seccomp policy", r);
    report_ready(ZYGOTE_REPORTS);
    if ((r = zygote_fork(c, ZYGOTE_ORDERS, ZYGOTE_REPORTS, NULL)) < 0)
        SYS(exit_group, 0);
    if (r & ORDER_URGENT)
        program_without(&program, REHEARSAL "=");
    if (req->kind == KIND_NONE) {
        program_receive(CTL_FD);
        program_exec(CTL_FD);
    }
    if ((r = SYS(dup3, CTL_FD, PARK_CTL_FD, 0)) >= 0)
        r = SYS(execve, program.argv[0], program.argv, program.env);
    child_fail(CTL_FD, STEP_EXEC, r);
}

/* An interpreter finds what a plain run finds: a work directory that it is in, and in it, for what it keeps for itself,
 * /tmp. Its children get their cell's. */
static long make_work_dir(void)
{
    long r = SYS(mount, "sandbox", "/sandbox", "tmpfs", SF_MS_NOSUID | SF_MS_NODEV, "mode=755,size=16m");
    if (r >= 0)
        r = SYS(mkdirat, AT_FDCWD, "/sandbox/.tmp", 01777);
    if (r >= 0)
        r = SYS(mkdirat, AT_FDCWD, "/sandbox/.shm", 01777);
    return r < 0 ? r : SYS(chdir, "/sandbox");
}

static long enter_root(int mnt)
{
    /* Without a cgroup nothing but the whole machine's memory ends a program's: then the kernel shall take it first. */
    if (!host.hierarchy_count)
        write_file_at(AT_FDCWD, "/proc/self/oom_score_adj", "1000");
    long proc = make_proc("0"), r = proc;
    if (r >= 0)
        r = SYS(setns, mnt, CLONE_NEWNS);
    if (r >= 0)
        r = SYS(unshare, CLONE_NEWNS);
    return r < 0 ? r : mount_proc((int)proc);
}

static __attribute__((noreturn)) void zygote_child(const struct request *req, char *payload, int orders, int *fds,
                                                   int nfds)
{
    const struct confinement *c = &profiles[req->profile];
    struct field_reader reader = {payload, req->payload_len};
    uint8_t tag;
    char *value;
    size_t len;
    while (next_field(&reader, &tag, &value, &len))
        program_field(&program, tag, value, len);
    int keep[FDS_MAX] = {orders, reports_out, (int)profile_file(c)};
    int kept = 3;
    for (int i = 1; i < nfds; i++)
        keep[kept++] = fds[i];
    long r = host.reduced ? enter_reduced_zygote() : enter_root(roots[req->root].mnt);
    if (r >= 0 && !host.reduced && req->kind == KIND_FORK)
        r = make_work_dir();
    if (r >= 0)
        r = arrange_fds(keep, kept, fds[0], req->kind == KIND_FORK);
    if (r < 0)
        die("zygote", r);
    uint64_t none = 0;
    SYS(rt_sigprocmask, SF_SIG_SETMASK, &none, NULL, 8);
    for (int signal = 1; signal < 32; signal++)
        signal_disposition(signal, false); /* what the janitor ignores, programs must not */
    SYS(setsid);
    if (req->kind != KIND_FORK)
        native_zygote(c, req);
    r = SYS(execve, program.argv[0], program.argv, program.env);
    die(program.argv[0], r);
}

static void handle_zygote(const struct request *req, char *payload, int *fds, int nfds)
{
    int pair[2] = {-1, -1};
    if (req->id >= ZYGOTES_MAX || zygotes[req->id].pid || req->root >= ROOTS_MAX ||
        !(roots[req->root].mnt || host.reduced) || req->profile >= PROFILES_MAX || nfds < 1 || nfds > 8)
        return tell_failure(EV_ZYGOTE_END, req->id, STEP_SLOT, -EINVAL);
    long r = SYS(socketpair, SF_AF_UNIX, SF_SOCK_SEQPACKET | SF_SOCK_CLOEXEC, 0, pair);
    if (r >= 0)
        r = fork_with(0, SF_SIGCHLD, NULL);
    if (r == 0)
        zygote_child(req, payload, pair[0], fds, nfds);
    if (r < 0) {
        close_pair(pair);
        return tell_failure(EV_ZYGOTE_END, req->id, STEP_CLONE, r);
    }
    SYS(close, pair[0]);
    zygotes[req->id] = (struct zygote){(int32_t)r, pair[1], req->root, false};
}

static void retire(uint32_t id)
{
    if (id < ZYGOTES_MAX && zygotes[id].orders) {
        SYS(close, zygotes[id].orders);
        zygotes[id].orders = 0;
    }
}

/* --- slots --- */

static void slot_settle(uint32_t id);
static void limit_from_outside(uint32_t id);

static void spawn_failed(uint32_t id, uint32_t step, long err)
{
    struct slot *s = &host.slots[id];
    if (!s->failed && s->state != SLOT_CLOSING)
        tell_failure(EV_SPAWN_FAILED, id, step, err);
    s->failed = 1;
    if (slot_wanted[id].cpu_s)
        limit_from_outside(id);
}

/* Make what the slot lacks and the cell's init in it; its pid, or -errno and `*step`. */
static long spawn_cell(struct cell_birth *birth, const struct request *req, uint32_t *step)
{
    uint32_t id = req->id;
    long r = slot_prepare(id, req->flags & REQUEST_SHARED_NETNS, step);
    if (r >= 0) {
        *step = STEP_CGROUP;
        r = slot_renew_memory(id);
    }
    if (r >= 0)
        r = slot_limits(id, &req->limits);
    host.slots[id].limits.disk_bytes = req->limits.disk_bytes;
    host.slots[id].limits.inodes = req->limits.inodes;
    if (r >= 0)
        r = slot_open_cgroups(id, birth->cgroup_fds);
    if (r < 0)
        return r;
    birth->root_mnt = roots[zygotes[req->zygote].root].mnt;
    *step = STEP_CLONE;
    r = fork_with(CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS, SF_SIGCHLD, NULL);
    if (r == 0)
        cell_main(birth);
    for (int i = 0; i < host.hierarchy_count; i++)
        SYS(close, birth->cgroup_fds[i]);
    return r;
}

/* Have a further process forked into the sandbox of slot `home`: the order its cell sent for its first, sent for it. */
static long spawn_guest(const struct cell_birth *birth, const struct request *req, uint32_t *step)
{
    const struct slot *home = &host.slots[req->root];
    *step = STEP_ORDER;
    long cell = SYS(pidfd_open, home->cell, 0);
    if (cell < 0)
        return cell;
    int fds[FDS_MAX] = {(int)cell, birth->fds[0], birth->fds[1], birth->fds[2], birth->fds[3]};
    struct fork_order order = cell_fork_order(birth, &home->limits);
    order.slot = req->id;
    long r = slot_open_cgroups(req->root, fds + ORDER_CGROUPS);
    if (r >= 0) {
        r = send_fds_now(birth->orders, &order, sizeof order, fds, ORDER_CGROUPS + host.hierarchy_count);
        *step = order_step(r);
        for (int i = 0; i < host.hierarchy_count; i++)
            SYS(close, fds[ORDER_CGROUPS + i]);
    }
    SYS(close, cell);
    return r < 0 ? r : 0;
}

static bool can_be_joined(uint32_t home)
{
    return !host.reduced && home < SLOTS_MAX && host.slots[home].state == SLOT_LIVE && host.slots[home].cell &&
           !host.slots[home].joins;
}

static void handle_spawn(const struct request *req, const int *fds, int nfds)
{
    uint32_t id = req->id, step = STEP_SLOT;
    bool joins = req->flags & REQUEST_JOIN;
    if (id >= SLOTS_MAX || host.slots[id].state != SLOT_FREE || req->zygote >= ZYGOTES_MAX || nfds != (joins ? 4 : 5) ||
        (joins && !can_be_joined(req->root)))
        return tell_failure(EV_SPAWN_FAILED, id, step, -EINVAL);
    if (!zygotes[req->zygote].orders)
        return tell_failure(EV_SPAWN_FAILED, id, STEP_ZYGOTE, -ECHILD);
    struct slot *s = &host.slots[id];
    static uint32_t serials;
    slot_serial[id] = ++serials ? serials : ++serials; /* never 0, which none has */
    struct cell_birth birth = {
        .slot = id,
        .serial = slot_serial[id],
        .open_files = req->limits.open_files,
        .reports = reports_out,
    };
    birth.order_flags = req->flags & REQUEST_URGENT ? ORDER_URGENT : 0;
    birth.order_flags |= req->flags & REQUEST_TERMINAL ? ORDER_TERMINAL : 0;
    birth.orders = zygotes[req->zygote].orders;
    memcpy(birth.fds, fds, (size_t)nfds * sizeof *fds);
    long r = joins           ? spawn_guest(&birth, req, &step)
             : host.reduced ? reduced_spawn(&birth, &req->limits, &step)
                            : spawn_cell(&birth, req, &step);
    if (r < 0)
        return tell_failure(EV_SPAWN_FAILED, id, step, r);
    s->cell = (int32_t)r;
    s->user = s->leader = 0;
    s->failed = 0;
    s->joins = joins;
    s->home = req->root;
    if (joins)
        host.slots[s->home].guests++;
    s->state = SLOT_FORKING;
    slot_zygote[id] = (uint16_t)req->zygote;
    slot_pending[id] = 1;
    if (id >= slots_used)
        slots_used = id + 1;
}

/* A process that joined is gone: the sandbox that it was in may have waited for that. */
static void guest_settled(uint32_t id)
{
    struct slot *s = &host.slots[id];
    struct event ev = {.op = EV_CLOSED, .id = id};
    s->joins = 0;
    s->state = SLOT_FREE;
    tell(&ev);
    host.slots[s->home].guests--;
    slot_settle(s->home);
}

/* Free the slot once nothing of its tenant is left and no answer about it can still come. */
static void slot_settle(uint32_t id)
{
    struct slot *s = &host.slots[id];
    if (s->state != SLOT_CLOSING || slot_pending[id] || slot_marker[id] || s->guests)
        return;
    if (s->joins) {
        if (!s->user)
            guest_settled(id);
        return;
    }
    struct event ev = {.op = EV_CLOSED, .id = id};
    long r = 0;
    if (host.reduced ? !reduced_is_empty(id, &r) : s->cell || s->user)
        return;
    if (!host.reduced)
        r = slot_reset_cgroups(id);
    if (r < 0) {
        ev.step = STEP_LEFTOVER;
        ev.err = (uint32_t)-r;
    }
    if (!s->shared_net && s->net_ns && !net_ns_is_pristine(s->net_ns)) {
        SYS(close, s->net_ns);
        s->net_ns = 0;
        ev.flags |= CLOSED_NEW_NETNS;
    }
    s->state = SLOT_FREE;
    tell(&ev);
}

/*
 * Nobody has answered for this slot's order yet: a child may be on its way into the cell. The answer to a marker, sent
 * behind the order, says what came of it: nothing, or a child that was killed before it could say so or has had no
 * processor for that yet.
 */
static void send_marker(uint32_t id)
{
    struct fork_order marker = {.slot = id, .serial = slot_serial[id], .flags = ORDER_MARKER};
    struct zygote *z = &zygotes[slot_zygote[id]];
    struct sf_iovec iov = {&marker, sizeof marker};
    struct sf_msghdr msg = {.iov = &iov, .iovlen = 1};
    if (slot_marker[id])
        return;
    slot_marker[id] = 1;
    bool sent = z->orders && SYS(sendmsg, z->orders, &msg, SF_MSG_NOSIGNAL | SF_MSG_DONTWAIT) == sizeof marker;
    if (!sent && z->pid > 0)
        SYS(kill, z->pid, SF_SIGKILL); /* retired or stuck: its death settles the slot */
}

/* Kill what is in the slot: with its init the whole sandbox, or the one process that joined. */
static void slot_kill(const struct slot *s)
{
    int32_t pid = s->joins ? s->user : s->cell;
    if (pid)
        SYS(kill, pid, SF_SIGKILL);
}

static void handle_close(uint32_t id);

/* A sandbox is closed whole: those that joined it would find nothing there any more. */
static void close_guests(uint32_t home)
{
    for (uint32_t i = 0; i < slots_used && host.slots[home].guests; i++)
        if (host.slots[i].joins && host.slots[i].home == home && host.slots[i].state != SLOT_FREE)
            handle_close(i);
}

static void handle_close(uint32_t id)
{
    if (id >= SLOTS_MAX || host.slots[id].state == SLOT_CLOSING)
        return;
    if (host.slots[id].state == SLOT_FREE) {
        /* Its birth failed before there was anything to close. */
        struct event ev = {.op = EV_CLOSED, .id = id};
        return tell(&ev);
    }
    struct slot *s = &host.slots[id];
    s->state = SLOT_CLOSING;
    if (!s->joins)
        slot_lift_quota(id); /* one that cannot be lifted is told with what is left in the slot */
    if (slot_pending[id])
        send_marker(id);
    else
        slot_kill(s);
    if (s->guests)
        close_guests(id);
    slot_settle(id);
}

/* For the whole process group, as a terminal's Ctrl-C is; for the program alone when it has left its group. */
static void handle_signal(uint32_t id, uint32_t number)
{
    if (id >= SLOTS_MAX || host.slots[id].state != SLOT_LIVE || !host.slots[id].user || number == 0 || number > 64)
        return;
    /* SAFETY: the program is the leader of a session of its own, so its group has processes of its sandbox only. */
    if (SYS(kill, -host.slots[id].user, number) == -ESRCH)
        SYS(kill, host.slots[id].user, number);
}

static void handle_kill(uint32_t id)
{
    if (id >= SLOTS_MAX)
        return;
    const struct slot *s = &host.slots[id];
    /* SAFETY: only processes of the sandbox's own cgroup are looked at, and the leader is none but its program. */
    long r = s->state == SLOT_LIVE && s->leader ? kill_kin(s->joins ? s->home : id, s->leader) : 0;
    struct event ev = {.op = EV_KILLED, .id = id, .status = r > 0 ? (int32_t)r : 0, .err = r < 0 ? (uint32_t)-r : 0};
    tell(&ev);
}

static long remount_work(uint32_t id, const struct limits *want)
{
    struct slot *s = &host.slots[id];
    long pid = fork_with(0, SF_SIGCHLD, NULL);
    if (pid == 0) {
        struct text options = {0};
        text_add(&options, "size=");
        text_num(&options, (int64_t)want->disk_bytes);
        text_add(&options, ",nr_inodes=");
        text_num(&options, (int64_t)want->inodes);
        long fd = SYS(pidfd_open, s->cell, 0);
        long r = fd < 0 ? fd : SYS(setns, fd, CLONE_NEWNS);
        if (r >= 0)
            r = SYS(mount, NULL, "/sandbox", NULL, SF_MS_REMOUNT | SF_MS_NOSUID | SF_MS_NODEV, options.buf);
        SYS(exit_group, r < 0 ? -r : 0);
    }
    int status = 0;
    long r = pid < 0 ? pid : SYS(wait4, pid, &status, 0, NULL);
    return r < 0 ? r : -(long)((status >> 8) & 0xff);
}

static void limit_from_outside(uint32_t id)
{
    const struct slot *s = &host.slots[id];
    const struct limits want = slot_wanted[id];
    slot_wanted[id].cpu_s = 0;
    long r = 0; /* what died needs none, and its death is told */
    if (s->user)
        r = host.reduced ? reduced_limit(id, s->user, &want) : lower_rlimits_of(s->user, &want);
    tell_failure(EV_LIMITS, id, r < 0 ? STEP_RLIMIT : STEP_NONE, r < 0 ? r : 0);
}

static void handle_limits(const struct request *req)
{
    uint32_t id = req->id;
    /* A program may be parked, and the server know it, before its zygote has had a processor to report it here. */
    if (id >= SLOTS_MAX || (host.slots[id].state != SLOT_LIVE && host.slots[id].state != SLOT_FORKING))
        return tell_failure(EV_LIMITS, id, STEP_SLOT, -EINVAL);
    struct slot *s = &host.slots[id];
    uint32_t step = STEP_CGROUP;
    long r = s->joins ? 0 : slot_limits(id, &req->limits);
    if (r >= 0 && !host.reduced && !s->joins && (req->limits.disk_bytes != s->limits.disk_bytes || req->limits.inodes != s->limits.inodes)) {
        step = STEP_REMOUNT;
        r = remount_work(id, &req->limits);
        s->limits.disk_bytes = req->limits.disk_bytes;
        s->limits.inodes = req->limits.inodes;
    }
    if (r >= 0 && req->limits.cpu_s) {
        slot_wanted[id] = req->limits;
        if (slot_pending[id])
            return; /* its pid is not told yet */
        return limit_from_outside(id);
    }
    tell_failure(EV_LIMITS, id, r < 0 ? step : STEP_NONE, r < 0 ? r : 0);
}

static void handle_profile(const struct request *req, const char *payload)
{
    struct profile head;
    if (req->id >= PROFILES_MAX || req->payload_len < sizeof head)
        die("profile", -EINVAL);
    memcpy(&head, payload, sizeof head);
    size_t bpf = head.bpf_len * sizeof(struct sock_filter), seal = head.seal_len * sizeof(struct sock_filter);
    if (!profile_fits(&head) || req->payload_len != sizeof head + bpf + seal + head.paths_len)
        die("profile length", -EINVAL);
    profiles[req->id].profile = head;
    memcpy(profiles[req->id].bpf, payload + sizeof head, bpf);
    memcpy(profiles[req->id].seal, payload + sizeof head + bpf, seal);
    memcpy(profiles[req->id].paths, payload + sizeof head + bpf + seal, head.paths_len);
}

static void handle_request(void)
{
    int fds[FDS_MAX], nfds;
    struct request req;
    long n = recv_fds(server, message, sizeof message, fds, &nfds, 0);
    if (n == 0 || n == -ECONNRESET)
        leave(0);
    if (n < (long)sizeof req)
        die("request", n < 0 ? n : -EPROTO);
    memcpy(&req, message, sizeof req);
    if (req.payload_len != (uint64_t)n - sizeof req)
        die("request length", -EPROTO);
    char *payload = message + sizeof req;
    if (req.op == REQ_SPAWN)
        handle_spawn(&req, fds, nfds);
    else if (req.op == REQ_CLOSE)
        handle_close(req.id);
    else if (req.op == REQ_LIMITS)
        handle_limits(&req);
    else if (req.op == REQ_PROFILE)
        handle_profile(&req, payload);
    else if (req.op == REQ_ROOT)
        handle_root(&req, fds, nfds);
    else if (req.op == REQ_ZYGOTE)
        handle_zygote(&req, payload, fds, nfds);
    else if (req.op == REQ_RETIRE)
        retire(req.id);
    else if (req.op == REQ_SIGNAL)
        handle_signal(req.id, req.kind);
    else if (req.op == REQ_KILL)
        handle_kill(req.id);
    else
        die("request op", -EPROTO);
    for (int i = 0; i < nfds; i++)
        SYS(close, fds[i]);
}

/* --- what the children say --- */

static void zygote_ready(int32_t pid, uint32_t resident)
{
    for (uint32_t i = 0; i < ZYGOTES_MAX; i++)
        if (zygotes[i].pid == pid) {
            struct event ev = {.op = EV_ZYGOTE, .id = i, .maxrss_kb = resident};
            zygotes[i].ready = true;
            tell(&ev);
        }
}

static void child_born(uint32_t id, int32_t pid)
{
    struct slot *s = &host.slots[id];
    slot_pending[id] = 0;
    s->user = s->leader = pid;
    if (s->state == SLOT_FORKING)
        s->state = SLOT_LIVE;
}

static void no_child(uint32_t id, uint32_t step, long err)
{
    slot_pending[id] = 0;
    spawn_failed(id, step, err);
}

/* `pid` is the child that the zygote made for the slot, which may be dead; 0: the zygote has had no such order. */
static void marker_answered(uint32_t id, int32_t pid)
{
    const struct slot *s = &host.slots[id];
    slot_marker[id] = 0;
    if (!slot_pending[id] || (!pid && s->cell))
        return; /* it has reported meanwhile, or its cell is still on the way to the order: that, or the cell's end, tells */
    if (pid > 0 && SYS(kill, pid, 0) == 0)
        child_born(id, pid);
    else
        no_child(id, STEP_CLONE, -ECHILD);
}

static void handle_report(const struct fork_report *rep, int32_t sender)
{
    if (rep->slot == REPORT_READY)
        return zygote_ready(sender, rep->step);
    if (rep->slot >= SLOTS_MAX)
        return;
    uint32_t id = rep->slot;
    const struct slot *s = &host.slots[id];
    if (s->state == SLOT_FREE || rep->serial != slot_serial[id]) {
        /* Its zygote died at once, so that nobody could tell that there was a child: another was made in its place. */
        if (rep->step == STEP_NONE)
            SYS(kill, sender, SF_SIGKILL);
        return;
    }
    if (rep->step == STEP_MARKER)
        marker_answered(id, rep->pid);
    else if (rep->step == STEP_NONE)
        child_born(id, sender);
    else
        no_child(id, rep->step, rep->pid);
    if (s->state == SLOT_CLOSING)
        slot_kill(s);
    if (slot_wanted[id].cpu_s)
        limit_from_outside(id);
    slot_settle(id);
}

/* Receive a report and who sent it: the kernel puts its pid, as we know it, beside the message. */
static long recv_report(struct fork_report *rep, int32_t *sender)
{
    struct {
        struct sf_cmsghdr head;
        int32_t pid;
        uint32_t uid, gid;
    } control = {0};
    struct sf_iovec iov = {rep, sizeof *rep};
    struct sf_msghdr msg = {.iov = &iov, .iovlen = 1, .control = &control, .controllen = sizeof control};
    long r = SYS(recvmsg, reports_in, &msg, SF_MSG_DONTWAIT);
    *sender = control.pid;
    return r;
}

static void drain_reports(void)
{
    struct fork_report rep;
    int32_t sender;
    while (recv_report(&rep, &sender) == sizeof rep)
        handle_report(&rep, sender);
}

static void zygote_died(uint32_t id, int status)
{
    struct event ev = {.op = EV_ZYGOTE_END, .id = id, .status = status};
    retire(id);
    zygotes[id] = (struct zygote){0};
    for (uint32_t i = 0; i < slots_used; i++)
        if (slot_zygote[i] == id && (slot_pending[i] || slot_marker[i])) {
            slot_pending[i] = slot_marker[i] = 0;
            spawn_failed(i, STEP_ZYGOTE, -ECHILD);
            if (host.slots[i].state == SLOT_CLOSING)
                slot_kill(&host.slots[i]);
            slot_settle(i);
        }
    tell(&ev);
}

/* The cell died while its order may or may not have reached the zygote. */
static void cell_died(uint32_t id)
{
    host.slots[id].cell = 0;
    if (slot_pending[id]) {
        spawn_failed(id, STEP_ORDER, -ECHILD);
        send_marker(id);
    }
    slot_settle(id);
}

static void user_died(uint32_t id, int status, const struct rusage *ru)
{
    struct slot *s = &host.slots[id];
    s->user = 0;
    struct event ev = {
        .op = EV_EXIT,
        .id = id,
        .status = status,
        .utime_us = (uint64_t)ru->ru_utime.tv_sec * 1000000u + (uint64_t)ru->ru_utime.tv_usec,
        .stime_us = (uint64_t)ru->ru_stime.tv_sec * 1000000u + (uint64_t)ru->ru_stime.tv_usec,
        .maxrss_kb = (uint64_t)ru->ru_maxrss,
        .inblock = (uint64_t)ru->ru_inblock,
        .oublock = (uint64_t)ru->ru_oublock,
    };
    if (s->state == SLOT_LIVE)
        tell(&ev);
    slot_settle(id);
}

static void reaped(int32_t pid, int status, const struct rusage *ru)
{
    for (uint32_t i = 0; i < slots_used; i++) {
        if (host.slots[i].user == pid)
            return user_died(i, status, ru);
        if (host.slots[i].cell == pid)
            return cell_died(i);
    }
    for (uint32_t i = 0; i < ZYGOTES_MAX; i++)
        if (zygotes[i].pid == pid)
            return zygote_died(i, status);
    for (uint32_t i = 0; i < ROOTS_MAX; i++)
        if (roots[i].pid == pid)
            return root_finished(i);
    uint32_t id = host.reduced ? reduced_killer_ended(pid, status, slots_used) : SLOTS_MAX;
    if (id < SLOTS_MAX)
        return slot_settle(id);
    /* A child killed before it could report its birth: whose it was, the answers to markers tell. */
    for (uint32_t i = 0; i < slots_used && !host.reduced; i++)
        if (slot_pending[i])
            send_marker(i);
}

/* Reap a child, or any when `pid` is -1; false when it, or none, has died. */
static bool reap(int32_t pid)
{
    int status;
    struct rusage ru;
    long dead = SYS(wait4, pid, &status, 1 /* WNOHANG */, &ru);
    if (dead <= 0)
        return false;
    /* A child reports its birth before all else, so its death cannot be seen first, if the reports are read first. */
    drain_reports();
    reaped((int32_t)dead, status, &ru);
    return true;
}

#define FEW_SLOTS 128
#define LOOK_LATER_NS 1000000

static uint64_t look_at_all_ns; /* when; 0: no need */

static void reap_all(void)
{
    look_at_all_ns = 0;
    while (reap(-1))
        ;
}

/*
 * SIGCHLD named a child. More may have died, for it is not sent again while it is pending; but to look for any, the kernel
 * goes through all there are, parked ones too. Where those are many, the one that was named and all that are to die are
 * looked at by themselves, and all the others a little later.
 */
static void reap_named(int32_t pid)
{
    if (slots_used <= FEW_SLOTS)
        return reap_all();
    reap(pid);
    for (uint32_t i = 0; i < slots_used; i++) {
        const struct slot *s = &host.slots[i];
        if (s->state == SLOT_CLOSING && s->user)
            reap(s->user);
        if (s->state == SLOT_CLOSING && s->cell)
            reap(s->cell);
    }
    if (!look_at_all_ns)
        look_at_all_ns = monotonic_ns() + LOOK_LATER_NS;
}

/* What poll may wait for; NULL: as long as it takes. */
static const struct timespec *until_next_look(struct timespec *left)
{
    uint64_t now = look_at_all_ns ? monotonic_ns() : 0;
    if (!look_at_all_ns)
        return NULL;
    *left = (struct timespec){0, now < look_at_all_ns ? (long)(look_at_all_ns - now) : 0};
    return left;
}

static __attribute__((noreturn)) void warden_loop(void)
{
    int pair[2];
    uint64_t mask = 1ull << (SF_SIGCHLD - 1);
    long r = SYS(socketpair, SF_AF_UNIX, SF_SOCK_SEQPACKET | SF_SOCK_CLOEXEC, 0, pair);
    if (r < 0)
        die("socketpair", r);
    int one = 1;
    if ((r = SYS(setsockopt, pair[0], SF_SOL_SOCKET, 16 /* SO_PASSCRED */, &one, sizeof one)) < 0)
        die("SO_PASSCRED", r);
    reports_in = pair[0];
    reports_out = pair[1];
    SYS(prctl, PR_SET_NAME, "sandfork-warden", 0, 0, 0);
    SYS(rt_sigprocmask, SF_SIG_BLOCK, &mask, NULL, 8);
    long signals = SYS(signalfd4, -1, &mask, 8, SF_SOCK_CLOEXEC | SF_SOCK_NONBLOCK);
    if (signals < 0)
        die("signalfd", signals);
    struct event up = {.op = EV_WARDEN};
    tell(&up);
    for (;;) {
        struct sf_pollfd polled[] = {{server, 1, 0}, {reports_in, 1, 0}, {(int)signals, 1, 0}, {janitor_end, 1, 0}};
        struct timespec left;
        r = SYS(ppoll, polled, host.reduced ? 4 : 3, until_next_look(&left), NULL, 0);
        if (r < 0 && r != -EINTR)
            die("poll", r);
        if (look_at_all_ns && monotonic_ns() >= look_at_all_ns)
            reap_all();
        if (polled[1].revents)
            drain_reports();
        if (polled[2].revents) {
            uint32_t info[32]; /* struct signalfd_siginfo; the fourth is who died */
            if (SYS(read, signals, info, sizeof info) == sizeof info)
                reap_named((int32_t)info[3]);
        }
        if (polled[0].revents)
            handle_request();
        if (polled[3].revents)
            leave(0);
    }
}

/* --- start --- */

static void warden_main(int go)
{
    char byte;
    long r = read_all(go, &byte, 1); /* the janitor has mapped our ids */
    SYS(close, go);
    if (r < 0)
        die("start", r);
    if (!host.single_uid && (r = SYS(setgroups, 0, NULL)) < 0)
        die("setgroups", r);
    if ((r = SYS(setresgid, 0, 0, 0)) < 0 || (r = SYS(setresuid, 0, 0, 0)) < 0)
        die("setresuid", r);
    /* The change of ids made us undumpable, and our children's /proc files the host root's; we must write their maps. */
    SYS(prctl, PR_SET_DUMPABLE, 1, 0, 0, 0);
    SYS(prctl, PR_SET_PDEATHSIG, SF_SIGKILL, 0, 0, 0);
    if ((r = SYS(mount, NULL, "/", NULL, SF_MS_REC | SF_MS_PRIVATE, NULL)) < 0)
        die("making mounts private", r);
    if ((r = SYS(mount, "proc", "/proc", "proc", SF_MS_NOSUID | SF_MS_NODEV | SF_MS_NOEXEC, NULL)) < 0)
        die("mounting /proc (in a container it must be unmasked)", r);
    if ((r = SYS(sethostname, "sandbox", 7)) < 0)
        die("sethostname", r);
    host.own_net_ns = (int)SYS(openat, AT_FDCWD, "/proc/self/ns/net", O_RDONLY | O_CLOEXEC, 0);
    host.net_dir = (int)SYS(openat, AT_FDCWD, "/proc/self/net", O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
    if (host.net_dir < 0)
        die("/proc/self/net", host.net_dir);
    if ((r = make_net_ns(false)) < 0)
        die("network namespace", r);
    host.shared_net_ns = (int)r;
    warden_loop();
}

static void reduced_main(int go)
{
    janitor_end = go;
    long r = SYS(prctl, PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
    if (r < 0)
        die("becoming a subreaper", r);
    warden_loop();
}

static void parse_hierarchy(char *arg)
{
    struct hierarchy *h = &host.hierarchies[host.hierarchy_count];
    size_t n = 0;
    while (arg[n] && arg[n] != '=')
        n++;
    if (!arg[n] || n >= sizeof h->name || host.hierarchy_count >= HIERARCHIES_MAX)
        die(arg, -EINVAL);
    memcpy(h->name, arg, n);
    h->dir = (int)SYS(openat, AT_FDCWD, arg + n + 1, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
    if (h->dir < 0)
        die(arg, h->dir);
    host.hierarchy_count++;
    if (str_eq(h->name, "unified"))
        host.unified = true;
}

static int64_t parse_number(const char *s)
{
    int64_t n = 0;
    for (; *s >= '0' && *s <= '9'; s++)
        n = n * 10 + (*s - '0');
    if (*s)
        die("number", -EINVAL);
    return n;
}

static long map_ids(long pid, int64_t base, int64_t count)
{
    static const char *const files[] = {"uid_map", "gid_map"};
    for (int i = 0; i < 2; i++) {
        struct text path = {0}, map = {0};
        text_add(&path, "/proc/");
        text_num(&path, pid);
        if (count == 1) {
            struct text deny = path;
            text_add(&deny, "/setgroups");
            write_file_at(AT_FDCWD, deny.buf, "deny");
            base = i ? SYS(getegid) : SYS(geteuid);
        }
        text_add(&path, "/");
        text_add(&path, files[i]);
        text_add(&map, "0 ");
        text_num(&map, base);
        text_add(&map, " ");
        text_num(&map, count);
        long r = write_file_at(AT_FDCWD, path.buf, map.buf);
        if (r < 0)
            return r;
    }
    return 0;
}

static void enter_keep(long pid)
{
    struct text number = {0};
    text_num(&number, pid);
    for (int i = 0; i < host.hierarchy_count; i++) {
        long r = write_file_at(host.hierarchies[i].dir, "keep/cgroup.procs", number.buf);
        if (r < 0)
            die("keep/cgroup.procs", r);
    }
}

/* Remove every cgroup below `dir`; true when none is left. The processes are dead, but leave asynchronously. */
static bool sweep(int dir)
{
    bool clean = true;
    SYS(lseek, dir, 0, 0);
    for (long n; (n = SYS(getdents64, dir, message, sizeof message)) > 0;)
        for (long at = 0; at < n;) {
            struct sf_dirent *d = (struct sf_dirent *)(message + at);
            at += d->reclen;
            if (d->type == 4 /* DT_DIR */ && d->name[0] != '.')
                clean &= SYS(unlinkat, dir, d->name, AT_REMOVEDIR) == 0;
        }
    return clean;
}

static void sweep_hierarchy(const struct hierarchy *h, const char *path)
{
    for (int tries = 0; tries < 400; tries++) {
        struct timespec nap = {0, 5000000};
        if (sweep(h->dir) && SYS(unlinkat, AT_FDCWD, path, AT_REMOVEDIR) == 0)
            return;
        SYS(ppoll, NULL, 0, &nap, NULL, 0);
    }
    die(path, -EBUSY);
}

/*
 * The owner of a user namespace pays for what is counted inside it per user (message queues, pending signals, inotify).
 * That must be the warden's own uid, not root's: sandboxes could use up what the host's services are allowed.
 */
static long fork_warden(int64_t base, int64_t count)
{
    if (!host.single_uid) {
        long r = SYS(prctl, PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP, 0, 0, 0); /* a change of uid keeps capabilities */
        if (r < 0 || (r = SYS(setresuid, -1, base, -1)) < 0)
            return r;
    }
    long pid = fork_with(CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWNET,
                         SF_SIGCHLD, NULL);
    /* Still as the owner: anybody else would need CAP_SYS_ADMIN for it, which root of a container lacks. */
    long r = pid > 0 ? map_ids(pid, base, count) : 0;
    if (pid > 0 && !host.single_uid) {
        SYS(setresuid, -1, 0, -1);
        SYS(prctl, PR_SET_SECUREBITS, 0, 0, 0, 0);
    }
    if (r < 0)
        die("uid_map", r);
    return pid;
}

static void outlive_signals(void)
{
    SYS(setsid);
    SYS(umask, 022);
    signal_disposition(SF_SIGINT, true);
    signal_disposition(SF_SIGTERM, true);
    signal_disposition(SF_SIGHUP, true);
    signal_disposition(SF_SIGPIPE, true);
    SYS(prctl, PR_SET_NAME, "sandfork-janitor", 0, 0, 0);
    /* One byte is no core file, and the one value for which the kernel starts no core handler: it would run as root. */
    const struct rlimit64 core = {1, 1};
    SYS(prlimit64, 0, RLIMIT_CORE, &core, NULL);
}

static int janitor(int argc, char **argv)
{
    int go[2];
    if (argc < 4)
        die("usage: sandfork-warden SOCKET UID_BASE UID_COUNT NAME=DIRECTORY...", -EINVAL);
    server = (int)parse_number(argv[1]);
    int64_t base = parse_number(argv[2]), count = parse_number(argv[3]);
    for (int i = 4; i < argc; i++)
        parse_hierarchy(argv[i]);
    host.single_uid = count == 1;
    outlive_signals();
    long r = SYS(pipe2, go, O_CLOEXEC);
    if (r < 0)
        die("pipe", r);
    long pid = fork_warden(base, count);
    if (pid == 0) {
        SYS(close, go[1]);
        warden_main(go[0]);
    }
    if (pid < 0)
        die("clone with namespaces", pid);
    SYS(close, server);
    enter_keep(pid);
    SYS(write, go[1], "g", 1);
    SYS(close, go[1]);
    int status = 0;
    while (SYS(wait4, pid, &status, 0, NULL) == -EINTR)
        ;
    for (int i = 0; i < host.hierarchy_count; i++) {
        char *path = argv[4 + i];
        while (*path++ != '=')
            ;
        sweep_hierarchy(&host.hierarchies[i], path);
    }
    return (status >> 8) & 0xff;
}

static void sweep_or_die(bool strangers)
{
    long r = reduced_sweep(strangers);
    if (r < 0)
        die(reduced.path, r);
}

static void open_work(const char *path)
{
    host.reduced = true;
    reduced.path = path;
    reduced.work = (int)SYS(openat, AT_FDCWD, path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC, 0);
    if (reduced.work < 0)
        die(path, reduced.work);
}

static int reduced_janitor(char **argv)
{
    int go[2], status = 0;
    open_work(argv[0]);
    server = (int)parse_number(argv[1]);
    reduced.uid_base = (uint32_t)parse_number(argv[2]);
    reduced.uid_count = (uint32_t)parse_number(argv[3]);
    outlive_signals();
    long r = keep_few_capabilities(false);
    if (r < 0)
        die("keeping CAP_CHOWN, CAP_KILL, CAP_SETGID, CAP_SETUID and CAP_SETPCAP", r);
    if ((r = SYS(prctl, PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)) < 0 || (r = SYS(pipe2, go, O_CLOEXEC)) < 0)
        die("janitor", r);
    long pid = fork_with(0, SF_SIGCHLD, NULL);
    if (pid == 0) {
        SYS(close, go[1]);
        reduced_main(go[0]);
    }
    if (pid < 0)
        die("fork", pid);
    SYS(close, server);
    SYS(close, go[0]);
    while (SYS(wait4, pid, &status, 0, NULL) == -EINTR)
        ;
    sweep_or_die(false);
    return (status >> 8) & 0xff;
}

/* The kernel starts us with argc and argv on the stack. */
__attribute__((used, noreturn)) static void start(long *stack)
{
    int argc = (int)stack[0], status;
    char **argv = (char **)(stack + 1);
    if (argc == 6 && str_eq(argv[1], "--reduced"))
        status = reduced_janitor(argv + 2);
    else if (argc == 3 && str_eq(argv[1], "--sweep")) {
        open_work(argv[2]);
        sweep_or_die(true);
        status = 0;
    } else if (argc == 2 && str_eq(argv[1], "--probe"))
        status = probe();
    else
        status = janitor(argc, argv);
    SYS(exit_group, status);
    for (;;)
        ;
}

#if defined(__x86_64__)
__asm__(".globl _start\n_start:\n xor %ebp, %ebp\n mov %rsp, %rdi\n and $-16, %rsp\n call start\n");
#elif defined(__aarch64__)
__asm__(".globl _start\n_start:\n mov x29, #0\n mov x0, sp\n bl start\n");
#endif
