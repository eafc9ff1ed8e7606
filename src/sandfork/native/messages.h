/*
 * What the server, the warden, the zygotes and the sandboxes say to each other.
 *
 *   server  <-- SEQPACKET -->  warden   struct request / struct event, descriptors by SCM_RIGHTS
 *   cell     -- SEQPACKET -->  zygote   struct fork_order + descriptors: "fork a child into me"
 *   child    -- SEQPACKET -->  warden   struct fork_report: born; or a zygote: ready, or none could be made
 *   server  <-- stream     -->  child   frames (ctl): READY, RUN, END, FAIL
 *   server  <-- stream     -->  cell    frames (agent): file transfer
 *
 * Numbers are in host byte order: all ends run on one machine. tiers/process/messages.py mirrors this file, and a
 * test compares the two.
 */
#ifndef SANDFORK_MESSAGES_H
#define SANDFORK_MESSAGES_H

#include <stdint.h>

#define SLOTS_MAX 8192
#define ROOTS_MAX 64
#define ZYGOTES_MAX 256
#define PROFILES_MAX 16
#define HIERARCHIES_MAX 8
#define MESSAGE_MAX 131072
#define CPU_PERIOD_US 100000 /* the kernel's own */

enum request_op {
    REQ_PROFILE = 1, /* id; payload: struct profile + BPF instructions */
    REQ_ROOT = 2,    /* id; fd: a file with the mount plan; without one the root is dropped */
    REQ_ZYGOTE = 3,  /* id, root, profile; payload: fields argv/env; fds: log, then those named by the payload */
    REQ_SPAWN = 4,   /* slot, zygote; limits; fds: ctl, stdin, stdout, stderr, agent (not to join) */
    REQ_LIMITS = 5,  /* slot; limits */
    REQ_CLOSE = 6,   /* slot: kill everything in it and free it */
    REQ_RETIRE = 7,  /* id: end a zygote; its sandboxes live on */
    REQ_SIGNAL = 8,  /* slot; kind: the signal for its program and the processes of its group */
    REQ_KILL = 9,    /* slot: kill its program and what belongs to that (kin.h), and nothing else of the sandbox */
};

struct limits {
    uint64_t memory_bytes;
    uint64_t disk_bytes;
    uint64_t inodes;
    uint32_t pids;
    uint32_t open_files;
    uint32_t cpu_s; /* for REQ_LIMITS, of a process that cannot lower its own rlimits; 0: it can */
    uint32_t cpu_quota_us; /* of processor time in every CPU_PERIOD_US, all processes together; 0: no quota */
};

struct request {
    uint32_t op;
    uint32_t id; /* profile, root, zygote or slot */
    uint32_t root; /* for REQUEST_JOIN: the slot whose sandbox is joined */
    uint32_t zygote;
    uint32_t profile;
    uint32_t kind; /* enum child_kind, for REQ_ZYGOTE */
    struct limits limits;
    uint32_t payload_len;
    uint32_t flags;
};

#define REQUEST_SHARED_NETNS 1u
#define REQUEST_URGENT 2u /* somebody waits for this sandbox: no rehearsal */
#define REQUEST_JOIN 4u /* a further process for the sandbox of slot `root`; this slot has nothing of its own but the process */
#define REQUEST_TERMINAL 8u /* stdin is a terminal, to be the controlling one */

enum child_kind {
    KIND_FORK = 1, /* an interpreter with zygote.so: returns to the interpreter in the child */
    KIND_PARK = 2, /* the child execs the template's argv at once, which then waits on ctl */
    KIND_NONE = 3, /* the child waits for RUN and execs its argv */
};

enum event_op {
    EV_ROOT = 1,       /* id, step, err: built (err 0) or failed */
    EV_ZYGOTE = 2,     /* id, maxrss_kb: ready */
    EV_ZYGOTE_END = 3, /* id, status: it died, or never came up */
    EV_SPAWN_FAILED = 4,
    EV_EXIT = 5,   /* slot, status, usage: the user process ended */
    EV_LIMITS = 6, /* slot, step, err */
    EV_CLOSED = 7, /* slot, flags: free again; err != 0: something was left in it */
    EV_WARDEN = 8, /* the warden is up */
    EV_KILLED = 9, /* slot, err; status: how many were there, which may take a moment to be gone */
};

struct event {
    uint32_t op;
    uint32_t id;
    int32_t status; /* as wait4 gives it */
    uint32_t step;
    uint32_t err;
    uint32_t flags;
    uint64_t utime_us;
    uint64_t stime_us;
    uint64_t maxrss_kb;
    uint64_t inblock;
    uint64_t oublock;
};

#define CLOSED_NEW_NETNS 1u /* the slot's network namespace had carried packets or sockets and was replaced */

/*
 * cell -> zygote; fds: cell pidfd (reduced: the work directory), ctl, stdin, stdout, stderr, then one per cgroup hierarchy.
 * Where there is no cgroup, `pids` and `memory_bytes` are limits of each process instead (0: none). `uid` is for
 * ORDER_REDUCED only. No two orders of a warden have the same `serial`.
 */
struct fork_order {
    uint32_t slot;
    uint32_t serial;
    uint32_t open_files;
    uint32_t cgroup_fds;
    uint32_t flags;
    uint32_t pids;
    uint32_t uid;
    uint32_t pad;
    uint64_t memory_bytes;
};

enum { ORDER_CELL, ORDER_CTL, ORDER_STDIN, ORDER_STDOUT, ORDER_STDERR, ORDER_CGROUPS };

#define ORDER_INTO_CGROUP 1u /* the one cgroup fd is a v2 directory: be born in it */
#define ORDER_URGENT 2u
#define ORDER_REDUCED 4u /* no namespaces: see reduced.h */
#define ORDER_TERMINAL 8u
#define ORDER_MARKER 16u /* no order, and without descriptors: asks what came of the one with this serial */

#define REPORT_READY 0xffffffffu /* slot of a zygote's first report; pid is its own, step its resident memory in KB */
#define REPORT_GARBLED 0xfffffffeu

/*
 * Said by a child of itself as its first act (the kernel tells the warden its pid), by a cell or zygote that failed, or with
 * STEP_MARKER in answer to a marker, after all that was asked before it.
 */
struct fork_report {
    uint32_t slot;
    uint32_t serial;
    int32_t pid; /* a cell's or zygote's -errno; in a marker's answer the child's, or 0 if no such order came; else 0 */
    uint32_t step;
};

/* Frames on ctl and agent: this header, then `len` bytes. */
struct frame {
    uint8_t type;
    uint8_t pad[3];
    uint32_t len;
};

#define FRAME_READY '!'   /* child -> server: parked */
#define FRAME_RUN 'R'     /* server -> child: fields */
#define FRAME_STARTED 'S' /* child -> server: u64 ns, the program is about to be exec'd */
#define FRAME_END 'E'     /* child -> server: struct end_frame */
#define FRAME_FAIL 'X'    /* child -> server: struct fail_frame */
#define FRAME_DISPLAY 'D' /* child -> server, between RUN and END: a rich value, in JSON */

struct end_frame {
    int32_t exit_code;
    uint32_t pad;
    uint64_t ready_ns;
    uint64_t done_ns;
};

struct fail_frame {
    uint32_t step;
    uint32_t err;
};

/*
 * Agent frames. A request is a u64 holding the path's length in its upper 16 bits and a number in the lower 48, then
 * the path (relative to the work directory), then content. The answer is a run of DATA, ended by one OK or ERR (u64).
 */
#define FRAME_PUT 'P'    /* number: mode; content: the file's */
#define FRAME_GET 'G'    /* number: most bytes wanted; DATA are the file's bytes, OK their count */
#define FRAME_LIST 'L'   /* number: most entries wanted; a DATA per entry: u64 size, u8 type (getdents64), name */
#define FRAME_STAT 'F'   /* OK: bytes free in the work directory's file system, 0 when it has no inode left */
#define FRAME_DELETE 'U'
#define FRAME_SIZE 'Q'   /* of a regular file: a DATA of two u64, size and inode number */
#define FRAME_READ 'r'   /* number: offset; content: u64, most bytes wanted; OK: inode number */
#define FRAME_WRITE 'w'  /* number: offset; content: what to write there, in a file that is there; OK: inode number */
#define FRAME_KILL 'K'   /* kill every process of the sandbox but its init */
#define FRAME_OK 'O'
#define FRAME_ERR 'Z'    /* errno */
#define FRAME_DATA 'D'

/* Fields inside RUN, plans and zygote payloads: this header, then `len` bytes. Texts end with a NUL that counts. */
struct field {
    uint8_t tag;
    uint8_t pad[3];
    uint32_t len;
};

#define FIELD_ARGV 'a'
#define FIELD_ENV 'e'       /* NAME=value */
#define FIELD_FILE 'f'      /* file name in the work directory that the code is written to */
#define FIELD_CODE 'c'
#define FIELD_OPEN_FILES 'n' /* u64 */
#define FIELD_CPU 'p'        /* u64 seconds */
#define FIELD_FSIZE 's'      /* u64 bytes */
#define FIELD_PIDS 'k'       /* u64, where there is no cgroup */
#define FIELD_MEMORY 'm'     /* u64 bytes of one process' own, where there is no cgroup */
#define FIELD_LASTING 'l'    /* u64: not 0 when the process takes a RUN after this one, too */
#define FIELD_RICH 'r'       /* u64: not 0 when DISPLAY is wanted */
#define FIELD_WARM 'w'       /* u64: not 0 when the program is started as its template was, with the same words and variables */
#define FIELD_STDIN 'i'      /* path of the file that is stdin of this step, for a lasting process */

/* Fields of a mount plan: NUL-terminated strings in this order; the last one is also ended by a NUL. */
#define PLAN_DIR 'D'     /* path */
#define PLAN_LINK 'L'    /* path, target */
#define PLAN_FILE 'F'    /* path, content */
#define PLAN_BIND 'B'    /* path, source: read-only, nosuid, nodev, recursive */
#define PLAN_DEVICE 'V'  /* path, source: a device node, writable */
#define PLAN_PROC 'P'    /* path: where each mount namespace puts a /proc of its own */

/* Where a child-side set-up step failed. errors.py names them. */
enum step {
    STEP_NONE = 0,
    STEP_CLONE,
    STEP_CGROUP,
    STEP_CGROUP_NS,
    STEP_SETNS_ROOT,
    STEP_SETNS_NET,
    STEP_SETNS_USER,
    STEP_SETNS_CELL,
    STEP_SETNS_PID,
    STEP_UNSHARE,
    STEP_TMPFS,
    STEP_PROC,
    STEP_CHDIR,
    STEP_FDS,
    STEP_RLIMIT,
    STEP_CAPBSET,
    STEP_UID,
    STEP_CAPSET,
    STEP_NNP,
    STEP_LANDLOCK,
    STEP_SECCOMP,
    STEP_EXEC,
    STEP_RUN_FRAME,
    STEP_CODE_FILE,
    STEP_MOUNT,
    STEP_PIVOT,
    STEP_NETNS,
    STEP_USERNS,
    STEP_ORDER,
    STEP_SLOT,
    STEP_PLAN,
    STEP_REMOUNT,
    STEP_LEFTOVER,
    STEP_WORK_DIR,
    STEP_ZYGOTE, /* it died, or was retired: another may do */
    STEP_MARKER, /* a fork_report that answers one */
};

/*
 * How children of a zygote are confined; REQ_PROFILE's payload, followed by two BPF programs of 8-byte instructions:
 * `bpf_len` of the allow list, loaded in the zygote and inherited, then `seal_len` of what the child loads last. The first
 * still allows the few calls that make and confine a child; the second takes them away. The kernel obeys the stricter
 * answer, so the child ends under the whole policy, and loading the long program is paid once a zygote, not once a child.
 */
struct profile {
    uint64_t landlock_fs;     /* handled rights; 0: no Landlock on this kernel (accepted in the configuration) */
    uint64_t landlock_net;
    uint64_t landlock_scoped;
    uint32_t bpf_len;
    uint32_t drop_bounding; /* highest capability number + 1 */
    uint32_t flags;
    uint32_t seal_len;
    uint32_t paths_len;
    uint32_t pad;
};

/* In a profile for ORDER_REDUCED, bytes after the programs: what may be opened, each one of these and a path with its NUL. */
#define PATH_READ 'R'   /* a file or a tree: read and execute */
#define PATH_DEVICE 'W' /* a device: read and write */

#define PROFILE_KEEP_GROUPS 1u /* an unprivileged start may not call setgroups: the kernel forbids it to single-uid maps */

/* Where a parked or a lasting interpreter that was exec'd finds ctl: libuv closes what it finds up to here in the children that it makes. */
#define PARK_CTL_FD 15
#define REHEARSAL "SANDFORK_REHEARSAL" /* a variable of a parked JVM: see park_jvm.c; not for one that somebody waits for */
#define CTL_FD 63 /* high enough not to disturb the program's numbering, low enough for the embedded fd table */
#define SANDBOX_UID 1000
#define BPF_MAX 2048
#define SEAL_MAX 64
#define PATHS_MAX 4096

#endif
