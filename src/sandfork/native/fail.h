/* The end of a child that cannot become a program. */
#ifndef SANDFORK_FAIL_H
#define SANDFORK_FAIL_H

#include "messages.h"
#include "sys.h"

/* Report a failed step on ctl and die with a status, which is the caller's to see once there is a program. */
static __attribute__((noreturn)) void child_end(int ctl, uint32_t step, long err, int status)
{
    struct {
        struct frame head;
        struct fail_frame body;
    } frame = {{FRAME_FAIL, {0}, sizeof frame.body}, {step, (uint32_t)-err}};
    SYS(write, ctl, &frame, sizeof frame);
    for (;;)
        SYS(exit_group, status);
}

/* Report a step that failed before there was a program. The server turns it into ForkFailed(step, errno). */
static __attribute__((noreturn)) void child_fail(int ctl, uint32_t step, long err)
{
    child_end(ctl, step, err, 125);
}

#endif
