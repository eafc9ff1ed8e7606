/*
 * Calls from an interpreter's own side into what may be traced. What a program traces must not follow it back: from
 * Python 3.12 on, an exception that passes into a frame which tracers cannot see makes the interpreter fail.
 */
#ifndef SANDFORK_TRACED_H
#define SANDFORK_TRACED_H

/* Functions of the interpreter's API, in the order that plain.py gives them in. */
struct interpreter {
    void *(*thread_state)(void);
    void (*stop_tracing)(void *thread_state);
    void (*go_on_tracing)(void *thread_state);
    void *(*call)(void *callable, void *args, void *options);
    void *(*take_raised)(void);
};

/* Return what the call returned or, with `raised` set, what it raised: a new reference. */
static void *call_traced(const struct interpreter *api, void *callable, void *args, int *raised)
{
    void *thread_state = api->thread_state();
    api->go_on_tracing(thread_state);
    void *result = api->call(callable, args, NULL);
    *raised = result == NULL;
    if (*raised)
        result = api->take_raised();
    api->stop_tracing(api->thread_state());
    return result;
}

#endif
