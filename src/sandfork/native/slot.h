/*
 * A slot: the place one sandbox at a time lives in. It owns what is dear to make and holds no trace of its last tenant:
 *
 *   two host uids (one for the cell's init, one for the program) and a user namespace that maps just them
 *   a network namespace with its loopback up, used again only if the kernel's counters show that it never carried a
 *     packet and no socket is left in it; otherwise a new one takes its place
 *   a cgroup per hierarchy: on v1 kept and reset but for pids, whose figures cannot be, and for memory while the last tenant's
 *     is still in it; on v2 made anew for every tenant
 */
#ifndef SANDFORK_SLOT_H
#define SANDFORK_SLOT_H

#include "messages.h"
#include "sys.h"

enum slot_state { SLOT_FREE, SLOT_FORKING, SLOT_LIVE, SLOT_CLOSING };

struct slot {
    int user_ns; /* 0: not made yet */
    int net_ns;
    int32_t cell; /* pid of the cell's init; 0: gone */
    int32_t user; /* pid of the program; 0: not yet or gone */
    int32_t leader; /* the same, also when it is gone: of the session that it led */
    uint8_t state;
    uint8_t has_cgroup;
    uint8_t shared_net;
    uint8_t failed; /* EV_SPAWN_FAILED was sent */
    uint8_t joins;    /* its program is in the sandbox of slot `home`, and it has neither cell nor cgroup of its own */
    uint16_t guests;  /* slots that join this one */
    uint32_t home;
    struct limits limits; /* in force */
};

struct hierarchy {
    char name[16]; /* "unified", or a v1 controller */
    int dir;       /* the instance's own directory in it */
};

struct host {
    struct hierarchy hierarchies[HIERARCHIES_MAX];
    int hierarchy_count;
    bool unified;
    bool single_uid; /* an unprivileged start: only our own uid is mapped */
    bool reduced;    /* no namespaces: see reduced_warden.h */
    int own_net_ns;
    int net_dir; /* /proc/self/net */
    int shared_net_ns;
    char pristine[8192]; /* what /proc/self/net says in a namespace never used */
    size_t pristine_len;
    struct slot slots[SLOTS_MAX];
};

static struct host host;

static void slot_path(struct text *t, uint32_t slot, const char *file)
{
    t->len = 0;
    text_add(t, "s");
    text_num(t, slot);
    if (file) {
        text_add(t, "/");
        text_add(t, file);
    }
}

static const struct hierarchy *hierarchy_named(const char *name)
{
    for (int i = 0; i < host.hierarchy_count; i++)
        if (str_eq(host.hierarchies[i].name, name))
            return &host.hierarchies[i];
    return NULL;
}

static long write_limit(const struct hierarchy *h, uint32_t slot, const char *file, uint64_t value)
{
    struct text path = {0}, number = {0};
    slot_path(&path, slot, file);
    text_num(&number, (int64_t)value);
    return write_file_at(h->dir, path.buf, number.buf);
}

/* v1 keeps memory <= memory+swap at every moment, so which one moves first depends on the direction. */
static long limit_memory_v1(const struct hierarchy *h, uint32_t slot, uint64_t bytes)
{
    long r = write_limit(h, slot, "memory.limit_in_bytes", bytes);
    long swap = write_limit(h, slot, "memory.memsw.limit_in_bytes", bytes);
    if (r == -EINVAL && swap >= 0)
        r = write_limit(h, slot, "memory.limit_in_bytes", bytes);
    if (r < 0 || (swap < 0 && swap != -ENOENT))
        return r < 0 ? r : swap;
    /* Socket buffers have a counter of their own there, which counts nothing until it has a limit. */
    r = write_limit(h, slot, "memory.kmem.tcp.limit_in_bytes", bytes / 8);
    return r == -ENOENT ? 0 : r;
}

static long limit_memory(uint32_t slot, uint64_t bytes)
{
    const struct hierarchy *h = hierarchy_named(host.unified ? "unified" : "memory");
    if (!h)
        return 0;
    if (!host.unified)
        return limit_memory_v1(h, slot, bytes);
    long r = write_limit(h, slot, "memory.swap.max", 0);
    if (r < 0 && r != -ENOENT)
        return r;
    r = write_limit(h, slot, "memory.oom.group", 1);
    return r < 0 ? r : write_limit(h, slot, "memory.max", bytes);
}

static long limit_pids(uint32_t slot, uint32_t pids)
{
    const struct hierarchy *h = hierarchy_named(host.unified ? "unified" : "pids");
    return h ? write_limit(h, slot, "pids.max", pids) : 0;
}

/* v1 mounts cpu by itself or with cpuacct, under whose name it is known then. */
static const struct hierarchy *cpu_hierarchy(void)
{
    if (host.unified)
        return hierarchy_named("unified");
    const struct hierarchy *h = hierarchy_named("cpu");
    return h ? h : hierarchy_named("cpuacct");
}

static long limit_cpu_v1(const struct hierarchy *h, uint32_t slot, uint32_t quota_us)
{
    const uint64_t none = (uint64_t)-1;
    long r = quota_us ? write_limit(h, slot, "cpu.cfs_period_us", CPU_PERIOD_US) : 0;
    if (r >= 0)
        r = write_limit(h, slot, "cpu.cfs_quota_us", quota_us ? quota_us : none);
    /* Only v1 refuses more than a cgroup above has, whose quota is then the one that holds. */
    return r == -EINVAL && quota_us ? write_limit(h, slot, "cpu.cfs_quota_us", none) : r;
}

static long limit_cpu_v2(const struct hierarchy *h, uint32_t slot, uint32_t quota_us)
{
    struct text path = {0}, value = {0};
    slot_path(&path, slot, "cpu.max");
    if (quota_us)
        text_num(&value, quota_us);
    else
        text_add(&value, "max");
    text_add(&value, " ");
    text_num(&value, CPU_PERIOD_US);
    return write_file_at(h->dir, path.buf, value.buf);
}

/* Other limits have rlimits in their place where there is no cgroup; this one has nothing, so it must not seem to hold. */
static long limit_cpu(uint32_t slot, uint32_t quota_us)
{
    const struct hierarchy *h = cpu_hierarchy();
    if (!h)
        return quota_us ? -EOPNOTSUPP : 0;
    return host.unified ? limit_cpu_v2(h, slot, quota_us) : limit_cpu_v1(h, slot, quota_us);
}

static long slot_limits(uint32_t id, const struct limits *want)
{
    struct slot *s = &host.slots[id];
    long r = 0;
    if (want->memory_bytes != s->limits.memory_bytes && (r = limit_memory(id, want->memory_bytes)) < 0)
        return r;
    s->limits.memory_bytes = want->memory_bytes;
    if (want->pids != s->limits.pids && (r = limit_pids(id, want->pids)) < 0)
        return r;
    s->limits.pids = want->pids;
    if (want->cpu_quota_us != s->limits.cpu_quota_us && (r = limit_cpu(id, want->cpu_quota_us)) < 0)
        return r;
    s->limits.cpu_quota_us = want->cpu_quota_us;
    return 0;
}

/* What is killed needs processor time to die, and the next tenant of a cgroup that is kept has a quota of its own or none. */
static long slot_lift_quota(uint32_t id)
{
    struct limits *limits = &host.slots[id].limits;
    if (!limits->cpu_quota_us)
        return 0;
    long r = limit_cpu(id, 0);
    if (r >= 0)
        limits->cpu_quota_us = 0;
    return r;
}

static long slot_make_cgroups(uint32_t id)
{
    struct text path = {0};
    slot_path(&path, id, NULL);
    for (int i = 0; i < host.hierarchy_count; i++) {
        long r = SYS(mkdirat, host.hierarchies[i].dir, path.buf, 0755);
        if (r < 0 && r != -EEXIST)
            return r;
    }
    host.slots[id].limits = (struct limits){0};
    host.slots[id].has_cgroup = 1;
    return 0;
}

/* One descriptor per hierarchy for the program to join by: v1 `tasks`, or the v2 directory to be born in. */
static long slot_open_cgroups(uint32_t id, int *fds)
{
    struct text path = {0};
    slot_path(&path, id, host.unified ? NULL : "tasks");
    for (int i = 0; i < host.hierarchy_count; i++) {
        int flags = host.unified ? O_RDONLY | O_DIRECTORY : O_WRONLY;
        long fd = SYS(openat, host.hierarchies[i].dir, path.buf, flags | O_CLOEXEC, 0);
        if (fd < 0) {
            while (i--)
                SYS(close, fds[i]);
            return fd;
        }
        fds[i] = (int)fd;
    }
    return 0;
}

/* Put a new cgroup in the place of an empty one. One that could not be made is made with the next tenant's others. */
static long renew_cgroup(const struct hierarchy *h, uint32_t id)
{
    struct text path = {0};
    slot_path(&path, id, NULL);
    long r = SYS(unlinkat, h->dir, path.buf, AT_REMOVEDIR);
    if (r < 0)
        return r;
    r = SYS(mkdirat, h->dir, path.buf, 0755);
    if (r < 0)
        host.slots[id].has_cgroup = 0;
    return r;
}

/* v1 offers no way to reset pids.peak and pids.events, and a cgroup of pids is cheap to make. */
static long renew_pids_cgroup(uint32_t id)
{
    const struct hierarchy *pids = hierarchy_named("pids");
    if (!pids)
        return 0;
    host.slots[id].limits.pids = 0;
    return renew_cgroup(pids, id);
}

/*
 * After the last process is reaped: 0, or -EBUSY when something is still in a cgroup. A process of the slot is in all its
 * cgroups or in none, for it cannot leave one, so one that can be removed shows that all are empty.
 */
static long slot_reset_cgroups(uint32_t id)
{
    struct text path = {0};
    struct slot *s = &host.slots[id];
    if (!s->has_cgroup)
        return 0;
    if (host.unified) {
        slot_path(&path, id, NULL);
        s->has_cgroup = 0;
        return SYS(unlinkat, host.hierarchies[0].dir, path.buf, AT_REMOVEDIR);
    }
    long r = slot_lift_quota(id);
    return r < 0 ? r : renew_pids_cgroup(id);
}

/* What an empty memory cgroup may still be charged with: the kernel's own caches, which it takes back when it likes. */
#define LEFT_CHARGED_MAX (2 << 20)

/*
 * Have v1 count memory anew for the next tenant. Not at the end of the last one: the kernel takes its files down a moment after
 * its processes, and till then they are charged and would be part of the next one's usage and peak. A cgroup that still holds
 * them when the next one comes is left to them, and another takes its place.
 */
static long slot_renew_memory(uint32_t id)
{
    const struct hierarchy *memory = host.unified ? NULL : hierarchy_named("memory");
    struct text path = {0};
    if (!memory)
        return 0;
    slot_path(&path, id, "memory.usage_in_bytes");
    int64_t charged = read_number_at(memory->dir, path.buf);
    if (charged < 0)
        return charged;
    if (charged <= LEFT_CHARGED_MAX)
        return write_limit(memory, id, "memory.max_usage_in_bytes", 0);
    host.slots[id].limits.memory_bytes = 0;
    return renew_cgroup(memory, id);
}

/* A process in a new user namespace, alive just long enough for that to be mapped and opened. */
static long make_user_ns(uint32_t id)
{
    long pid = clone_sleeper(CLONE_NEWUSER);
    if (pid < 0)
        return pid;
    static const char *const files[] = {"uid_map", "gid_map"};
    long r = 0;
    for (int i = 0; i < 2 && r >= 0; i++) {
        struct text path = {0}, map = {0};
        text_add(&path, "/proc/");
        text_num(&path, pid);
        if (host.single_uid) {
            struct text deny = path;
            text_add(&deny, "/setgroups");
            write_file_at(AT_FDCWD, deny.buf, "deny");
            text_add(&map, "1000 0 1\n");
        } else {
            text_add(&map, "0 ");
            text_num(&map, 1 + 2 * (int64_t)id);
            text_add(&map, " 1\n1000 ");
            text_num(&map, 2 + 2 * (int64_t)id);
            text_add(&map, " 1\n");
        }
        text_add(&path, "/");
        text_add(&path, files[i]);
        r = write_file_at(AT_FDCWD, path.buf, map.buf);
    }
    if (r >= 0) {
        struct text path = {0};
        text_add(&path, "/proc/");
        text_num(&path, pid);
        text_add(&path, "/ns/user");
        r = SYS(openat, AT_FDCWD, path.buf, O_RDONLY | O_CLOEXEC, 0);
    }
    SYS(kill, pid, SF_SIGKILL);
    SYS(wait4, pid, NULL, SF_WALL, NULL);
    return r;
}

/* --- network namespaces --- */

/*
 * What a network namespace says of its past: packets over its loopback, its protocols' counters, IPv6 flow labels, and,
 * in the first line of sockstat, the sockets in it (the other lines count the whole host's memory). 0: more than fits.
 */
static size_t read_net(char *to, size_t size)
{
    static const char *const files[] = {"dev", "snmp", "snmp6", "ip6_flowlabel", "sockstat"};
    size_t len = 0, start = 0;
    for (int i = 0; i < 5; i++) {
        /* Looked up below /proc/self/net, which is whatever namespace we are in; each is short enough for one read. */
        long fd = SYS(openat, host.net_dir, files[i], O_RDONLY | O_CLOEXEC, 0);
        long n = fd < 0 ? fd : SYS(read, fd, to + len, size - len);
        start = len;
        if (n > 0)
            len += (size_t)n;
        if (fd >= 0)
            SYS(close, fd);
    }
    if (len == size)
        return 0;
    while (start < len && to[start] != '\n')
        start++;
    return start;
}

static long raise_loopback(void)
{
    struct {
        char name[16];
        short flags;
        char rest[22];
    } request = {"lo", 0x1 /* IFF_UP */ | 0x40 /* IFF_RUNNING */, {0}};
    long sock = SYS(socket, 2 /* AF_INET */, 2 /* SOCK_DGRAM */ | SF_SOCK_CLOEXEC, 0);
    if (sock < 0)
        return sock;
    long r = SYS(ioctl, sock, 0x8914 /* SIOCSIFFLAGS */, &request);
    SYS(close, sock);
    return r;
}

/* A new network namespace with nothing in it but, when asked, its own loopback. Returns a descriptor. */
static long make_net_ns(bool loopback)
{
    long r = SYS(unshare, CLONE_NEWNET);
    if (r < 0)
        return r;
    long fd = SYS(openat, AT_FDCWD, "/proc/self/ns/net", O_RDONLY | O_CLOEXEC, 0);
    if (fd >= 0 && loopback) {
        r = raise_loopback();
        if (!host.pristine_len)
            host.pristine_len = read_net(host.pristine, sizeof host.pristine);
    }
    long back = SYS(setns, host.own_net_ns, CLONE_NEWNET);
    if (r >= 0 && back < 0)
        r = back;
    if (r < 0 && fd >= 0)
        SYS(close, fd);
    return r < 0 ? r : fd;
}

static bool net_ns_is_pristine(int fd)
{
    static char now[sizeof host.pristine];
    if (SYS(setns, fd, CLONE_NEWNET) < 0)
        return false;
    size_t len = read_net(now, sizeof now);
    if (SYS(setns, host.own_net_ns, CLONE_NEWNET) < 0)
        SYS(exit_group, 70); /* never go on in a tenant's namespace */
    return len && len == host.pristine_len && bytes_eq(now, host.pristine, len);
}

/* Make whatever the slot lacks for its next tenant. */
static long slot_prepare(uint32_t id, bool shared_net, uint32_t *step)
{
    struct slot *s = &host.slots[id];
    long r;
    *step = STEP_USERNS;
    if (!s->user_ns) {
        if ((r = make_user_ns(id)) < 0)
            return r;
        s->user_ns = (int)r;
    }
    *step = STEP_NETNS;
    s->shared_net = shared_net;
    if (!shared_net && !s->net_ns) {
        if ((r = make_net_ns(true)) < 0)
            return r;
        s->net_ns = (int)r;
    }
    *step = STEP_CGROUP;
    if (!s->has_cgroup && host.hierarchy_count)
        return slot_make_cgroups(id);
    return 0;
}

#endif
