/*
 * Have the program of RUN take the process' place. With FIELD_LASTING what is exec'd is an interpreter with a driver of
 * ours, which finds ctl at PARK_CTL_FD.
 *
 * A program that cannot be executed is the caller's affair: FAIL carries the errno, and the exit status is the shell's 127
 * (not found) or 126.
 */
#ifndef SANDFORK_EXEC_H
#define SANDFORK_EXEC_H

#include "program.h"

static const char *search_path(void)
{
    for (size_t i = 0; i < program.envc; i++)
        if (bytes_eq(program.env[i], "PATH=", 5))
            return program.env[i] + 5;
    return "/usr/local/bin:/usr/bin:/bin";
}

/* execvp: try every directory of PATH for a bare name. Returns -errno. */
static long exec_program(void)
{
    char *name = program.argv[0];
    for (const char *c = name; *c; c++)
        if (*c == '/')
            return SYS(execve, name, program.argv, program.env);
    long result = -ENOENT;
    const char *dir = search_path();
    while (*name && *dir) {
        struct text path = {0};
        for (; *dir && *dir != ':'; dir++)
            if (path.len + 1 < sizeof path.buf)
                path.buf[path.len++] = *dir;
        if (*dir)
            dir++;
        path.buf[path.len] = 0;
        text_add(&path, "/");
        text_add(&path, name);
        long r = SYS(execve, path.buf, program.argv, program.env);
        if (r != -ENOENT && r != -ENOTDIR)
            result = r;
    }
    return result;
}

static __attribute__((noreturn)) void program_exec(int ctl)
{
    long r;
    if (program_lasts && (r = SYS(dup3, ctl, PARK_CTL_FD, 0)) < 0)
        child_fail(ctl, STEP_FDS, r);
    say_started(ctl);
    r = exec_program();
    child_end(ctl, STEP_EXEC, r, r == -ENOENT || r == -ENOTDIR ? 127 : 126);
}

#endif
