/*
 * park_jvm.so: a Java virtual machine that is booted and waits for its program. The dynamic linker loads this in front of
 * the `java` launcher's own library, so the launcher's main() comes here, with its words; from then on this is the launcher:
 *
 *   boot with the options -> rehearse -> READY, RUN (program.h) -> the main class is looked for and run as `java` does it
 *
 * All that `java` does in Java is done by the same code, the JDK's own LauncherHelper: how the words of the command line
 * become strings, how the main class is found, and what is said when there is none. Calls from here leave no frames, so
 * stack traces are those of a plain run.
 *
 * The words are those of a plain run, too. Options end before the main class; RUN brings the whole line again, of which
 * what follows the options counts. A class path may name directories that are filled after READY: they must be there
 * before the machine boots, which takes what is not there for an archive.
 *
 * The variable REHEARSAL holds the name of the program's file, a line feed, and a program for it. With stdin, stdout and
 * stderr out of reach the main class runs that, in a thread of its own.
 */
#include "jni.h"
#include "end.h"
#include "program.h"
#include "variables.h"

#define PUBLIC __attribute__((visibility("default")))
#define HELPER "sun/launcher/LauncherHelper"
#define BY_NAME 1 /* how LauncherHelper is told a class */
#define OPTIONS_MAX 128
#define REHEARSAL_MAX 65536
#define THREAD_ATTRIBUTES_BYTES 64

extern void *dlopen(const char *path, int flags) __attribute__((weak));
extern void *dlsym(void *handle, const char *name) __attribute__((weak));
extern int on_exit(void (*function)(int, void *), void *argument) __attribute__((weak));
extern int fflush(void *file) __attribute__((weak));
extern int putenv(char *text) __attribute__((weak));
extern int pthread_attr_init(void *) __attribute__((weak));
extern int pthread_attr_setstacksize(void *, size_t) __attribute__((weak));
extern int pthread_create(unsigned long *, const void *, void *(*)(void *), void *) __attribute__((weak));
extern int pthread_join(unsigned long, void **) __attribute__((weak));

static struct {
    char **words; /* the main class and what follows it */
    size_t skipped; /* words before it */
    char *rehearsed_file, *rehearsed_code;
    size_t stack_bytes;
    jni_vm vm;
    int status;
    uint64_t began_ns;
} parked;

static struct jvm_option options[OPTIONS_MAX];
static int32_t option_count;

static __attribute__((noreturn)) void give_up(const char *what)
{
    struct text line = {0};
    text_add(&line, "cannot wait for a program: ");
    text_add(&line, what);
    text_add(&line, "\n");
    write_all(2, line.buf, line.len);
    for (;;)
        SYS(exit_group, 1);
}

/* --- the command line --- */

/* A prefix and words between spaces, as a text that lasts. */
static char *joined(const char *prefix, char *const *words, size_t count)
{
    size_t size = str_len(prefix) + 1;
    for (size_t i = 0; i < count; i++)
        size += str_len(words[i]) + 1;
    long room = SYS(mmap, NULL, size, 3 /* READ|WRITE */, 0x22 /* PRIVATE|ANONYMOUS */, -1, 0);
    if (room < 0)
        give_up("there is no memory");
    char *text = (char *)room, *at = text;
    while (*prefix)
        *at++ = *prefix++;
    for (size_t i = 0; i < count; i++) {
        if (i)
            *at++ = ' ';
        for (const char *c = words[i]; *c; c++)
            *at++ = *c;
    }
    return text;
}

static void add_option(char *text)
{
    if (option_count == OPTIONS_MAX)
        give_up("it has too many options");
    options[option_count++].text = text;
}

/* Directories of a class path that are filled later; what cannot be made is none of ours. */
static void make_directories(const char *class_path)
{
    while (*class_path) {
        struct text entry = {0};
        for (; *class_path && *class_path != ':'; class_path++)
            if (entry.len + 1 < sizeof entry.buf)
                entry.buf[entry.len++] = *class_path;
        class_path += *class_path == ':';
        bool archive = entry.len > 4 && bytes_eq(entry.buf + entry.len - 4, ".jar", 4);
        if (entry.len && !archive)
            SYS(mkdirat, AT_FDCWD, entry.buf, 0755);
    }
}

static void set_class_path(char *path)
{
    for (const char *c = path; *c; c++)
        if (*c == '*')
            give_up("its class path holds a pattern");
    make_directories(path);
    add_option(joined("-Djava.class.path=", &path, 1));
}

/* The launcher makes the first thread, so it looks at this option, which is the machine's as well. */
static void set_stack_size(const char *text)
{
    size_t n = 0;
    for (; *text >= '0' && *text <= '9'; text++)
        n = n * 10 + (size_t)(*text - '0');
    char unit = *text | 0x20;
    parked.stack_bytes = n << (unit == 'k' ? 10 : unit == 'm' ? 20 : unit == 'g' ? 30 : 0);
}

static bool is_class_path(const char *word)
{
    return str_eq(word, "-cp") || str_eq(word, "-classpath") || str_eq(word, "--class-path");
}

static void read_words(int argc, char **argv)
{
    int at = 1;
    for (; at < argc && *argv[at] == '-'; at++) {
        if (is_class_path(argv[at]) && at + 1 < argc)
            set_class_path(argv[++at]);
        else
            add_option(argv[at]);
        if (bytes_eq(argv[at], "-Xss", 4))
            set_stack_size(argv[at] + 4);
    }
    if (at >= argc)
        give_up("its command line names no class");
    parked.words = argv + at;
    parked.skipped = (size_t)at;
    add_option(joined("-Dsun.java.command=", argv + at, (size_t)(argc - at)));
    add_option("-Dsun.java.launcher=SUN_STANDARD");
}

/* --- Java --- */

static jobject string_of(jni_env env, jobject helper, const char *text)
{
    jmethod make = jni_method(env, JNI_GET_STATIC_METHOD_ID, helper, "makePlatformString", "(Z[B)Ljava/lang/String;");
    jobject bytes = make ? jni_bytes(env, text) : NULL;
    const union jvalue values[] = {{.boolean = 1}, {.object = bytes}};
    return bytes ? jni_call(env, JNI_CALL_STATIC_OBJECT_METHOD_A, helper, make, values) : NULL;
}

/* NULL, or an array of the words up to a NULL. */
static jobject strings_of(jni_env env, jobject helper, char **words)
{
    size_t count = 0;
    while (words[count])
        count++;
    jobject class = jni_find_class(env, "java/lang/String");
    jobject array = class ? jni_new_array(env, count, class) : NULL;
    for (size_t i = 0; array && i < count; i++) {
        jobject word = string_of(env, helper, words[i]);
        if (!word)
            return NULL;
        jni_put(env, array, i, word);
    }
    return array;
}

static void call_instance(jni_env env, jobject class, jmethod main, const union jvalue *values)
{
    jmethod make = jni_method(env, JNI_GET_METHOD_ID, class, "<init>", "()V");
    jobject object = make ? jni_call(env, JNI_NEW_OBJECT_A, class, make, NULL) : NULL;
    if (object)
        jni_call(env, JNI_CALL_VOID_METHOD_A, object, main, values);
}

/* Whichever main the class has, in the order in which `java` looks; before Java 25 it can be the first one only. Looking
 * for one has the class initialise itself, which may fail. */
static void call_main(jni_env env, jobject class, jobject words)
{
    static const char *const types[] = {"([Ljava/lang/String;)V", "()V"};
    const union jvalue values[] = {{.object = words}};
    for (int i = 0; i < 2; i++) {
        jmethod main = jni_method(env, JNI_GET_STATIC_METHOD_ID, class, "main", types[i]);
        if (main)
            jni_call(env, JNI_CALL_STATIC_VOID_METHOD_A, class, main, values);
        else if (jni_forgive(env, "java/lang/NoSuchMethodError") &&
                 (main = jni_method(env, JNI_GET_METHOD_ID, class, "main", types[i])))
            call_instance(env, class, main, values);
        if (main || i == 1 || !jni_forgive(env, "java/lang/NoSuchMethodError"))
            return;
    }
}

/* Run a class, named by the first word, on the others. What it throws is left to the thread's end. */
static void run_main(jni_env env, char **words)
{
    jobject helper = jni_find_class(env, HELPER);
    jmethod load = helper ? jni_method(env, JNI_GET_STATIC_METHOD_ID, helper, "checkAndLoadMain",
                                       "(ZILjava/lang/String;)Ljava/lang/Class;")
                          : NULL;
    jobject name = load ? string_of(env, helper, words[0]) : NULL;
    const union jvalue values[] = {{.boolean = 1}, {.number = BY_NAME}, {.object = name}};
    jobject class = name ? jni_call(env, JNI_CALL_STATIC_OBJECT_METHOD_A, helper, load, values) : NULL;
    jobject given = class ? strings_of(env, helper, words + 1) : NULL;
    if (given)
        call_main(env, class, given);
}

/* --- before the program --- */

/* A thread that was attached has none, where the launcher's has the system's; libraries look for their files by it. */
static void set_class_loader(jni_env env)
{
    jobject thread = jni_find_class(env, "java/lang/Thread"), loader = jni_find_class(env, "java/lang/ClassLoader");
    jmethod current = jni_method(env, JNI_GET_STATIC_METHOD_ID, thread, "currentThread", "()Ljava/lang/Thread;");
    jmethod get = jni_method(env, JNI_GET_STATIC_METHOD_ID, loader, "getSystemClassLoader", "()Ljava/lang/ClassLoader;");
    jmethod set = jni_method(env, JNI_GET_METHOD_ID, thread, "setContextClassLoader", "(Ljava/lang/ClassLoader;)V");
    const union jvalue values[] = {{.object = jni_call(env, JNI_CALL_STATIC_OBJECT_METHOD_A, loader, get, NULL)}};
    jobject self = jni_call(env, JNI_CALL_STATIC_OBJECT_METHOD_A, thread, current, NULL);
    jni_call(env, JNI_CALL_VOID_METHOD_A, self, set, values);
}

static void *rehearse_in_thread(void *failed)
{
    jni_env env;
    struct jvm_attachment how = {JNI_VERSION_1_2, "main", NULL};
    if (jvm_attach(parked.vm, &env, &how))
        return NULL;
    set_class_loader(env);
    run_main(env, parked.words);
    *(bool *)failed = jni_failed(env);
    jvm_end(parked.vm, JVM_DETACH_CURRENT_THREAD);
    return NULL;
}

static void run_in_thread(void *(*function)(void *), void *argument)
{
    unsigned long thread;
    _Alignas(16) char attributes[THREAD_ATTRIBUTES_BYTES];
    pthread_attr_init(attributes);
    if (parked.stack_bytes)
        pthread_attr_setstacksize(attributes, parked.stack_bytes);
    if (pthread_create(&thread, attributes, function, argument))
        give_up("no thread can be made");
    pthread_join(thread, NULL);
}

static void rehearse(void)
{
    int kept[3];
    bool failed = true;
    long null = SYS(openat, AT_FDCWD, "/dev/null", O_RDWR | O_CLOEXEC, 0);
    long file = SYS(openat, AT_FDCWD, parked.rehearsed_file, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (null < 0 || file < 0 || write_all((int)file, parked.rehearsed_code, str_len(parked.rehearsed_code)) < 0)
        give_up("what it rehearses cannot be written");
    SYS(close, file);
    for (int fd = 0; fd < 3; fd++) {
        kept[fd] = (int)SYS(fcntl, fd, 1030 /* F_DUPFD_CLOEXEC */, CTL_FD + 1);
        SYS(dup3, null, fd, 0);
    }
    run_in_thread(rehearse_in_thread, &failed);
    for (int fd = 0; fd < 3; fd++) {
        SYS(dup3, kept[fd], fd, 0);
        SYS(close, kept[fd]);
    }
    SYS(close, null);
    SYS(unlinkat, AT_FDCWD, parked.rehearsed_file, 0);
    if (failed) /* classes whose initialisation failed stay so */
        give_up("its rehearsal failed");
}

/* The kernel counts from the process' start; a program's time begins with RUN. */
static uint64_t spent_s(void)
{
    struct timespec spent;
    SYS(clock_gettime, 2 /* CLOCK_PROCESS_CPUTIME_ID */, &spent);
    return (uint64_t)spent.tv_sec + 1;
}

static void take_program(void)
{
    program_spent_s = spent_s();
    program_receive(CTL_FD);
    if (program.argc <= parked.skipped)
        child_fail(CTL_FD, STEP_RUN_FRAME, -EPROTO);
    for (size_t i = 0; i < program.envc; i++)
        putenv(program.env[i]);
    runner = identity_of(CTL_FD);
    say_started(CTL_FD);
    parked.began_ns = monotonic_ns();
}

/* What `java` has in this property, which has no arguments yet. */
static void set_command(jni_env env, char **words, size_t count)
{
    jobject helper = jni_find_class(env, HELPER), system = jni_find_class(env, "java/lang/System");
    jmethod set = helper && system ? jni_method(env, JNI_GET_STATIC_METHOD_ID, system, "setProperty",
                                                "(Ljava/lang/String;Ljava/lang/String;)Ljava/lang/String;")
                                   : NULL;
    if (!set)
        return;
    const union jvalue values[] = {{.object = string_of(env, helper, "sun.java.command")},
                                   {.object = string_of(env, helper, joined("", words, count))}};
    jni_call(env, JNI_CALL_STATIC_OBJECT_METHOD_A, system, set, values);
}

/* --- the launcher --- */

static void *open_machine(void)
{
    char path[PATH_MAX] = {0};
    static const char tail[] = "/bin/java", library[] = "/lib/server/libjvm.so";
    long n = SYS(readlinkat, AT_FDCWD, "/proc/self/exe", path, sizeof path - sizeof library);
    size_t len = n > 0 ? (size_t)n : 0;
    if (len < sizeof tail || !str_eq(path + len - (sizeof tail - 1), tail))
        give_up("it is not a JDK's java");
    memcpy(path + len - (sizeof tail - 1), library, sizeof library);
    void *machine = dlopen(path, 2 | 0x100 /* RTLD_NOW | RTLD_GLOBAL */);
    if (!machine)
        give_up("its JDK has no lib/server/libjvm.so");
    return machine;
}

/* Ends of exit(), wherever that is called: System.exit, or the end of the launcher's main. */
static void say_end(int status, void *unused)
{
    (void)unused;
    const uint64_t times[] = {parked.began_ns, monotonic_ns()};
    if (!parked.began_ns)
        return;
    if (fflush)
        fflush(NULL);
    end_run(CTL_FD, status & 0xff, times);
}

static void *boot(void *machine)
{
    jni_env env;
    struct jvm_arguments arguments = {JNI_VERSION_1_2, option_count, options, 0};
    int32_t (*create)(jni_vm *, jni_env *, void *) = dlsym(machine, "JNI_CreateJavaVM");
    parked.status = 1;
    if (!create || create(&parked.vm, &env, &arguments))
        return NULL; /* it has said why */
    if (parked.rehearsed_code)
        rehearse();
    take_program();
    char **words = program.argv + parked.skipped;
    set_command(env, words, program.argc - parked.skipped);
    run_main(env, words);
    parked.status = jni_failed(env) ? 1 : 0;
    jvm_end(parked.vm, JVM_DETACH_CURRENT_THREAD); /* prints what main threw */
    jvm_end(parked.vm, JVM_DESTROY);               /* waits for the other threads */
    return NULL;
}

static void take_rehearsal(void)
{
    static char text[REHEARSAL_MAX];
    const char *given = variable(REHEARSAL);
    size_t size = given ? str_len(given) + 1 : 0;
    if (size > 1 && size <= sizeof text) {
        memcpy(text, given, size);
        char *line_end = text;
        while (*line_end && *line_end != '\n')
            line_end++;
        if (*line_end)
            *line_end++ = 0;
        parked.rehearsed_file = text;
        parked.rehearsed_code = line_end;
    }
    take_variable(REHEARSAL);
}

/* What the launcher's main() calls. Its further arguments are of no use here. */
PUBLIC int JLI_Launch(int argc, char **argv)
{
    if (!dlopen || !dlsym || !putenv || !pthread_create || !pthread_join || !pthread_attr_init || !pthread_attr_setstacksize)
        give_up("its C library lacks a function");
    take_variable("LD_PRELOAD");
    take_rehearsal();
    SYS(dup3, PARK_CTL_FD, CTL_FD, O_CLOEXEC);
    SYS(close, PARK_CTL_FD);
    if (on_exit)
        on_exit(say_end, NULL);
    void *machine = open_machine();
    struct jvm_defaults defaults = {.version = JNI_VERSION_1_1};
    int32_t (*get_defaults)(void *) = dlsym(machine, "JNI_GetDefaultJavaVMInitArgs");
    if (get_defaults)
        get_defaults(&defaults);
    parked.stack_bytes = defaults.java_stack_size > 0 ? (size_t)defaults.java_stack_size : 0;
    read_words(argc, argv);
    run_in_thread(boot, machine);
    return parked.status;
}
