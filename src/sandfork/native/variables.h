/* The environment of a process that another program of its own was started with. */
#ifndef SANDFORK_VARIABLES_H
#define SANDFORK_VARIABLES_H

#include "sys.h"

extern char **environ __attribute__((weak));

/* Take a variable out, also where /proc/self/environ shows what we were started with. */
static void take_variable(const char *name)
{
    size_t len = str_len(name);
    for (char **each = environ; each && *each; each++) {
        char *text = *each;
        if (!bytes_eq(text, name, len) || text[len] != '=')
            continue;
        memset(text, 0, str_len(text));
        for (; *each; each++)
            *each = each[1];
        return;
    }
}

static const char *variable(const char *name)
{
    size_t len = str_len(name);
    for (char **each = environ; each && *each; each++)
        if (bytes_eq(*each, name, len) && (*each)[len] == '=')
            return *each + len + 1;
    return NULL;
}

#endif
