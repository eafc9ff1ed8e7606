/* END, said by the process that took RUN when its program has nothing more to do or to print. */
#ifndef SANDFORK_END_H
#define SANDFORK_END_H

#include "messages.h"
#include "sys.h"

/* What tells a descriptor from another that was opened in its place, and a process from its children. */
struct identity {
    uint64_t inode;
    uint32_t device, pid;
};

static struct identity identity_of(int fd)
{
    struct statx st = {0};
    SYS(statx, fd, "", AT_EMPTY_PATH, STATX_INO, &st);
    return (struct identity){st.stx_ino, st.stx_dev_minor, (uint32_t)SYS(getpid)};
}

static struct identity runner; /* who took the last RUN, and where from */

#define LINGER_US 300

/*
 * Say END, and wait until the answer has probably left: a process that exits holds its processor in the kernel for longer
 * than that takes, and the answer's reader may wake up on it. Who needs the exit status before it can answer hangs up.
 *
 * A child that the program forked comes to its end here, too, and a program that closes all it did not open may have a
 * file of its own under our number: both say nothing. Without END the exit status tells the server.
 */
static void end_run(int fd, int status, const uint64_t *times)
{
    struct {
        struct frame head;
        struct end_frame body;
    } end = {{FRAME_END, {0}, sizeof end.body}, {status, 0, times[0], times[1]}};
    struct identity now = identity_of(fd);
    if (now.inode != runner.inode || now.device != runner.device || now.pid != runner.pid)
        return;
    if (SYS(write, fd, &end, sizeof end) == sizeof end) {
        struct sf_pollfd hang_up = {.fd = fd};
        struct timespec most = {0, LINGER_US * 1000};
        SYS(ppoll, &hang_up, 1, &most, NULL, 0);
    }
}

#endif
