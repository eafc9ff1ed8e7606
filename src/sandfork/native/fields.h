/* Reading the tag-length-value fields of RUN frames, mount plans and zygote payloads. Nothing here trusts a length. */
#ifndef SANDFORK_FIELDS_H
#define SANDFORK_FIELDS_H

#include "messages.h"
#include "sys.h"

struct field_reader {
    char *at;
    size_t left;
};

/*
 * Step to the next field: true and `tag`, `value`, `len` set; false at the end or when a length runs past it
 * (then `left` stays non-zero). A writer ends every text field with a NUL of its own, so values are strings as they lie.
 */
static inline bool next_field(struct field_reader *r, uint8_t *tag, char **value, size_t *len)
{
    struct field head;
    if (r->left < sizeof head)
        return false;
    memcpy(&head, r->at, sizeof head);
    if (head.len > r->left - sizeof head)
        return false;
    *tag = head.tag;
    *value = r->at + sizeof head;
    *len = head.len;
    r->at += sizeof head + head.len;
    r->left -= sizeof head + head.len;
    return true;
}

static inline bool is_text(const char *value, size_t len)
{
    return len > 0 && value[len - 1] == 0;
}

static inline uint64_t field_u64(const char *value, size_t len)
{
    uint64_t n = 0;
    if (len == sizeof n)
        memcpy(&n, value, sizeof n);
    return n;
}

#define STRINGS_MAX 4096

struct program {
    char *argv[STRINGS_MAX + 1];
    char *env[STRINGS_MAX + 1];
    size_t argc, envc;
};

/* Whether two NAME=value texts have the same name. */
static inline bool same_name(const char *a, const char *b)
{
    while (*a && *a == *b && *a != '=')
        a++, b++;
    return *a == *b && *a == '=';
}

/* A later value of a name takes the place of an earlier one: programs take the first of two, or the last. */
static inline bool program_env(struct program *p, char *value)
{
    size_t at = 0;
    while (at < p->envc && !same_name(p->env[at], value))
        at++;
    if (at == STRINGS_MAX)
        return false;
    p->env[at] = value;
    if (at == p->envc)
        p->envc++;
    return true;
}

/* Take a variable out; `pair` is its name and "=". */
static inline void program_without(struct program *p, const char *pair)
{
    size_t kept = 0;
    for (size_t at = 0; at < p->envc; at++)
        if (!same_name(p->env[at], pair))
            p->env[kept++] = p->env[at];
    while (p->envc > kept)
        p->env[--p->envc] = NULL;
}

static inline bool program_field(struct program *p, uint8_t tag, char *value, size_t len)
{
    if (tag == FIELD_ARGV && is_text(value, len) && p->argc < STRINGS_MAX)
        p->argv[p->argc++] = value;
    else if (tag == FIELD_ENV && is_text(value, len))
        return program_env(p, value);
    else
        return false;
    return true;
}

#endif
