/*
 * The parsers of the native side over arbitrary bytes, with the compiler's sanitizers: a read or write out of bounds ends
 * this program with a report. Reads inputs from stdin, each a u32 length and that many bytes, until the end.
 *
 *   fuzz_native fields       next_field, program_field and field_u64 over a buffer that ends where the input ends
 *   fuzz_native agent DIR    a cell's agent serving the input as its stream of requests, in the work directory DIR
 */
#include "agent.h"
#include "fields.h"

#define FUZZ_INPUT_MAX (1u << 20)

/* The host's C library, without its headers: they and the kernel's define the same structs. */
extern void *malloc(size_t n);
extern void free(void *p);
extern int printf(const char *format, ...);

static struct program program;

/* A buffer of exactly the input's size, so that one byte too far is one byte outside. */
static char *next_input(uint32_t *len)
{
    if (read_all(0, len, sizeof *len) < 0 || *len > FUZZ_INPUT_MAX)
        return NULL;
    char *input = malloc(*len ? *len : 1);
    if (read_all(0, input, *len) < 0)
        return NULL;
    return input;
}

static unsigned long touch_text(const char *text)
{
    return str_len(text);
}

static unsigned long fuzz_fields(char *input, uint32_t len)
{
    struct field_reader reader = {input, len};
    uint8_t tag;
    char *value;
    size_t size;
    unsigned long seen = 0;
    memset(&program, 0, sizeof program);
    while (next_field(&reader, &tag, &value, &size)) {
        for (size_t i = 0; i < size; i++)
            seen += (unsigned char)value[i];
#ifdef FUZZ_ONE_TOO_FAR /* the control: this must be seen */
        seen += (unsigned char)value[size];
#endif
        seen += field_u64(value, size) & 1;
        program_field(&program, tag, value, size);
    }
    for (size_t i = 0; i < program.argc; i++)
        seen += touch_text(program.argv[i]);
    for (size_t i = 0; i < program.envc; i++)
        seen += touch_text(program.env[i]);
    return seen;
}

/* The agent serves in a child of its own, as it may end at any request; how it ended is what counts. */
static int fuzz_agent(const char *directory, const char *input, uint32_t len)
{
    int pair[2];
    if (SYS(socketpair, SF_AF_UNIX, 1 /* SOCK_STREAM */, 0, pair) < 0)
        return -1;
    long pid = SYS(clone, SF_SIGCHLD, 0, 0, 0, 0);
    if (pid == 0) {
        SYS(close, pair[0]);
        int work = (int)SYS(openat, AT_FDCWD, directory, O_RDONLY | O_DIRECTORY, 0);
        agent_serve(pair[1], work);
    }
    SYS(close, pair[1]);
    static char replies[65536];
    uint32_t at = 0;
    for (;;) {
        /* Take what it says while there is more to tell it, or both would wait for ever. */
        long n = 0;
        if (at < len && (n = SYS(sendto, pair[0], input + at, len - at, SF_MSG_DONTWAIT | SF_MSG_NOSIGNAL, NULL, 0)) > 0)
            at += (uint32_t)n;
        if (at == len || (n < 0 && n != -EAGAIN))
            SYS(shutdown, pair[0], 1 /* SHUT_WR */), at = len;
        long r = SYS(recvfrom, pair[0], replies, sizeof replies, at == len ? 0 : SF_MSG_DONTWAIT, NULL, NULL);
        if (r == 0 || (r < 0 && r != -EAGAIN))
            break;
    }
    SYS(close, pair[0]);
    int status = 0;
    while (SYS(wait4, pid, &status, 0, NULL) == -EINTR)
        ;
    return status;
}

int main(int argc, char **argv)
{
    unsigned long seen = 0, inputs = 0;
    uint32_t len;
    for (char *input; (input = next_input(&len)); inputs++) {
        if (argc == 2)
            seen += fuzz_fields(input, len);
        else if (fuzz_agent(argv[2], input, len) != 0)
            return 1;
        free(input);
    }
    printf("%lu inputs, %lu\n", inputs, seen);
    return 0;
}
