/*
 * What this host refuses of what a sandbox is made of, each tried in a child that is thrown away. Prints a line
 * "errno what" for each refusal, and nothing where all is granted.
 */
#ifndef SANDFORK_PROBE_H
#define SANDFORK_PROBE_H

#include "root.h"

static long told(const char *what, long r)
{
    struct text line = {0};
    if (r >= 0)
        return r;
    text_num(&line, -r);
    text_add(&line, " ");
    text_add(&line, what);
    text_add(&line, "\n");
    write_all(1, line.buf, line.len);
    return r;
}

static long try_clone(uint64_t flags)
{
    long pid = fork_with(flags, SF_SIGCHLD, NULL);
    if (pid == 0)
        for (;;)
            SYS(exit_group, 0);
    return pid < 0 ? pid : SYS(wait4, pid, NULL, 0, NULL);
}

/* In namespaces of our own: what building a root takes. Each call stands on the one before. */
static long try_mounts(void)
{
    long fd = told("joining namespaces", SYS(openat, AT_FDCWD, "/proc/self/ns/uts", O_RDONLY | O_CLOEXEC, 0));
    if (fd < 0 || told("joining namespaces", SYS(setns, fd, CLONE_NEWUTS)) < 0)
        return -1;
    if (told("mounting", SYS(mount, NULL, "/", NULL, SF_MS_REC | SF_MS_PRIVATE, NULL)) < 0)
        return -1;
    told("mounting /proc", SYS(mount, "proc", "/proc", "proc", SF_MS_NOSUID | SF_MS_NODEV | SF_MS_NOEXEC, NULL));
    if (told("mounting", SYS(mount, "sandfork", SCRATCH, "tmpfs", SF_MS_NOSUID | SF_MS_NODEV, "mode=755")) < 0)
        return -1;
    if (told("mount attributes", set_mount_attributes(SCRATCH, MOUNT_ATTR_NOEXEC, 0)) < 0)
        return -1;
    long r = SYS(chdir, SCRATCH);
    return told("pivot_root", r < 0 ? r : SYS(pivot_root, ".", "."));
}

static int probe(void)
{
    static const struct {
        const char *what;
        uint64_t flag;
    } kinds[] = {
        {"pid namespace", CLONE_NEWPID},     {"mount namespace", CLONE_NEWNS},   {"network namespace", CLONE_NEWNET},
        {"ipc namespace", CLONE_NEWIPC},     {"uts namespace", CLONE_NEWUTS},    {"cgroup namespace", CLONE_NEWCGROUP},
    };
    /* Owning a user namespace is what entitles to the others. Without one the question is whether root may. */
    long r = told("user namespace", try_clone(CLONE_NEWUSER));
    uint64_t entitled = r < 0 ? 0 : CLONE_NEWUSER;
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        told(kinds[i].what, try_clone(entitled | kinds[i].flag));
    r = fork_with(entitled | CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWUTS, SF_SIGCHLD, NULL);
    if (r == 0) {
        try_mounts();
        for (;;)
            SYS(exit_group, 0);
    }
    if (r > 0)
        SYS(wait4, r, NULL, 0, NULL);
    return 0;
}

#endif
