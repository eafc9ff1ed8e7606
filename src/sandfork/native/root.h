/*
 * Build a sandbox root from a mount plan, in a mount namespace of its own:
 *
 *   tmpfs on a scratch directory -> the plan's directories, links, files, binds, devices -> pivot_root -> drop the
 *   host's tree -> make everything read-only
 *
 * What may be seen is policy and arrives as data; nothing but the order is decided here. Kernel 5.12 (mount_setattr).
 */
#ifndef SANDFORK_ROOT_H
#define SANDFORK_ROOT_H

#include "fields.h"

#include <linux/mount.h>

/* Always there, and nothing a plan could want to bind lies below it. */
#define SCRATCH "/sys"

#define SF_MS_REC 16384
#define SF_MS_BIND 4096
#define SF_MS_MOVE 8192
#define SF_MS_PRIVATE (1 << 18)
#define SF_MS_NOSUID 2
#define SF_MS_NODEV 4
#define SF_MS_NOEXEC 8
#define SF_MS_RDONLY 1
#define SF_MS_REMOUNT 32
#define SF_MNT_DETACH 2

static long set_mount_attributes(const char *path, uint64_t set, unsigned flags)
{
    struct mount_attr attr = {.attr_set = set};
    return SYS(mount_setattr, AT_FDCWD, path, flags, &attr, sizeof attr);
}

/*
 * A /proc of our own pid namespace that is mounted nowhere yet. The kernel makes one only for who sees another already,
 * so it is made before a root is entered: roots have none, for theirs would show every sandbox to all.
 */
static long make_proc(const char *hidepid)
{
    long fs = SYS(fsopen, "proc", FSOPEN_CLOEXEC);
    if (fs < 0)
        return fs;
    long r = SYS(fsconfig, fs, FSCONFIG_SET_STRING, "source", "proc", 0);
    if (r >= 0)
        r = SYS(fsconfig, fs, FSCONFIG_SET_STRING, "hidepid", hidepid, 0);
    if (r >= 0)
        r = SYS(fsconfig, fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0);
    if (r >= 0)
        r = SYS(fsmount, fs, FSMOUNT_CLOEXEC, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC);
    SYS(close, fs);
    return r;
}

static long mount_proc(int proc)
{
    long r = SYS(move_mount, proc, "", AT_FDCWD, "/proc", MOVE_MOUNT_F_EMPTY_PATH);
    SYS(close, proc);
    return r;
}

static long touch(const char *path, const char *content, size_t len)
{
    long fd = SYS(openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_CLOEXEC | O_TRUNC, 0644);
    if (fd < 0)
        return fd;
    long r = write_all((int)fd, content, len);
    SYS(close, fd);
    return r;
}

static long plan_bind(const char *path, const char *source, bool device)
{
    struct statx st;
    long r = SYS(statx, AT_FDCWD, source, 0, STATX_TYPE, &st);
    if (r < 0)
        return r;
    if ((st.stx_mode & 0170000) == 0040000)
        r = SYS(mkdirat, AT_FDCWD, path, 0755);
    else
        r = touch(path, "", 0);
    if (r < 0 && r != -EEXIST)
        return r;
    if ((r = SYS(mount, source, path, NULL, SF_MS_BIND | SF_MS_REC, NULL)) < 0)
        return r;
    uint64_t set = MOUNT_ATTR_NOSUID | (device ? MOUNT_ATTR_NOEXEC : MOUNT_ATTR_NODEV | MOUNT_ATTR_RDONLY);
    return set_mount_attributes(path, set, 0x8000 /* AT_RECURSIVE */);
}

static long plan_entry(uint8_t tag, char *value, size_t len)
{
    size_t path_len = str_len(value);
    char *second = value + path_len + 1;
    struct text path = {0};
    if (path_len == 0 || path_len + sizeof SCRATCH >= sizeof path.buf || value[0] != '/')
        return -EINVAL;
    text_add(&path, SCRATCH);
    text_add(&path, value);
    long r = -EINVAL;
    switch (tag) {
    case PLAN_DIR:
        r = SYS(mkdirat, AT_FDCWD, path.buf, 0755);
        return r == -EEXIST ? 0 : r;
    case PLAN_PROC:
        r = SYS(mkdirat, AT_FDCWD, path.buf, 0555);
        return r == -EEXIST ? 0 : r;
    case PLAN_FILE:
        return path_len + 2 > len ? -EINVAL : touch(path.buf, second, len - path_len - 2);
    }
    if (path_len + 2 > len)
        return -EINVAL;
    switch (tag) {
    case PLAN_LINK:
        return SYS(symlinkat, second, AT_FDCWD, path.buf);
    case PLAN_BIND:
        return plan_bind(path.buf, second, false);
    case PLAN_DEVICE:
        return plan_bind(path.buf, second, true);
    }
    return r;
}

/*
 * Run in a child that may be thrown away. Returns 0 with the calling process inside the new root, or -errno with
 * `*step` set and, for STEP_PLAN, `*entry` the index of the plan's entry that failed.
 */
static long build_root(char *plan, size_t len, uint32_t *step, uint32_t *entry)
{
    struct field_reader reader = {plan, len};
    uint8_t tag;
    char *value;
    size_t value_len;
    long r;
    *step = STEP_MOUNT;
    if ((r = SYS(mount, NULL, "/", NULL, SF_MS_REC | SF_MS_PRIVATE, NULL)) < 0)
        return r;
    if ((r = SYS(mount, "sandfork", SCRATCH, "tmpfs", SF_MS_NOSUID | SF_MS_NODEV, "mode=755,size=16m")) < 0)
        return r;
    *step = STEP_PLAN;
    for (*entry = 0; next_field(&reader, &tag, &value, &value_len); ++*entry)
        if (!is_text(value, value_len) || (r = plan_entry(tag, value, value_len)) < 0)
            return r < 0 ? r : -EINVAL;
    if (reader.left)
        return -EINVAL;
    *step = STEP_PIVOT;
    if ((r = SYS(chdir, SCRATCH)) < 0 || (r = SYS(pivot_root, ".", ".")) < 0)
        return r;
    if ((r = SYS(umount2, ".", SF_MNT_DETACH)) < 0 || (r = SYS(chdir, "/")) < 0)
        return r;
    return set_mount_attributes("/", MOUNT_ATTR_RDONLY, 0);
}

#endif
