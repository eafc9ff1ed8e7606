/*
 * The program of a sandbox whose template is driven by no script: wait on ctl for RUN, put its limits in force, write the
 * code. Runs confined. A program that cannot be written is the caller's affair: FAIL carries the errno, and the exit status
 * is the shell's 126.
 */
#ifndef SANDFORK_PROGRAM_H
#define SANDFORK_PROGRAM_H

#include "fail.h"
#include "run.h"

static struct program program;
static bool program_lasts; /* an interpreter that takes further steps from ctl, which it must inherit */
static bool program_is_warm; /* it is what the template was started as, which need only go on */
static const char *program_file; /* NULL: it has no text of its own */
static const char *program_code;
static size_t program_code_len;
static uint64_t program_spent_s; /* processor time of the process before RUN, which is none of the program's */

static void run_field(uint8_t tag, char *value, size_t len)
{
    if (program_field(&program, tag, value, len))
        return;
    uint64_t n = field_u64(value, len);
    if (tag == FIELD_LASTING && n)
        program_lasts = true;
    if (tag == FIELD_WARM && n)
        program_is_warm = true;
    if (tag == FIELD_FILE && is_text(value, len))
        program_file = value;
    else if (tag == FIELD_CODE)
        program_code = value, program_code_len = len;
    else
        run_limit(tag, tag == FIELD_CPU ? n + program_spent_s : n);
}

/* Why a file in the work directory cannot be written, in the words of strerror(3) where those say it. */
static const char *reason_of(long err)
{
    static const struct {
        long err;
        const char *words;
    } reasons[] = {
        {-EISDIR, "Is a directory"},
        {-EACCES, "Permission denied"},
        {-ELOOP, "It is a symbolic link"},
        {-ENOSPC, "No space left on device"},
        {-EFBIG, "File too large"},
        {-ETXTBSY, "Text file busy"},
    };
    for (size_t i = 0; i < sizeof reasons / sizeof *reasons; i++)
        if (reasons[i].err == err)
            return reasons[i].words;
    return NULL;
}

/*
 * Say on stderr why the code has no place: what an earlier program of the session did with its file. The interpreter is
 * not left to say it, for what it found there it could run.
 */
static __attribute__((noreturn)) void refuse_code(int ctl, const char *file, long err)
{
    struct text line = {0};
    text_add(&line, file);
    text_add(&line, ": the program cannot be written there: ");
    if (reason_of(err))
        text_add(&line, reason_of(err));
    else {
        text_add(&line, "error ");
        text_num(&line, -err);
    }
    text_add(&line, "\n");
    write_all(2, line.buf, line.len);
    child_end(ctl, STEP_CODE_FILE, err, 126);
}

static void write_code(int ctl, const char *file, const char *code, size_t len)
{
    long fd = SYS(openat, AT_FDCWD, file, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644);
    long r = fd < 0 ? fd : write_all((int)fd, code, len);
    if (r < 0)
        refuse_code(ctl, file, r);
    SYS(close, fd);
}

/* Say READY, take RUN, put its limits in force and write its file. */
static void program_receive(int ctl)
{
    struct frame head = {FRAME_READY, {0}, 0};
    write_all(ctl, &head, sizeof head);
    long r = read_all(ctl, &head, sizeof head);
    if (r < 0 || head.type != FRAME_RUN || head.len > RUN_MAX)
        child_fail(ctl, STEP_RUN_FRAME, r < 0 ? r : -EPROTO);
    char *body = (char *)SYS(mmap, NULL, head.len + 1, 3 /* READ|WRITE */, 0x22 /* PRIVATE|ANONYMOUS */, -1, 0);
    if ((r = read_all(ctl, body, head.len)) < 0)
        child_fail(ctl, STEP_RUN_FRAME, r);
    struct field_reader reader = {body, head.len};
    size_t len;
    uint8_t tag;
    char *value;
    while (next_field(&reader, &tag, &value, &len))
        run_field(tag, value, len);
    if (reader.left || !program.argc)
        child_fail(ctl, STEP_RUN_FRAME, -EPROTO);
    if (program_file && program_code)
        write_code(ctl, program_file, program_code, program_code_len);
}

static void say_started(int ctl)
{
    struct {
        struct frame head;
        uint64_t ns;
    } started = {{FRAME_STARTED, {0}, 8}, monotonic_ns()};
    write_all(ctl, &started, sizeof started);
}

#endif
