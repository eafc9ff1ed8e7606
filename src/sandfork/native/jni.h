/*
 * What park_jvm.c uses of the Java Native Interface, declared here for want of a JDK's headers. Functions are called by
 * their place in the table, which the interface's specification fixes for good.
 */
#ifndef SANDFORK_JNI_H
#define SANDFORK_JNI_H

#include "sys.h"

typedef void *jobject, *jmethod;
typedef const void *const **jni_env; /* of one thread: points to its pointer to the table */
typedef const void *const **jni_vm;

union jvalue {
    uint8_t boolean;
    int32_t number;
    jobject object;
    uint64_t whole;
};

struct jvm_option {
    char *text;
    void *more;
};

struct jvm_arguments {
    int32_t version, count;
    struct jvm_option *options;
    uint8_t ignore_unknown;
};

/* Of version 1.1, which is asked for the size of a thread's stack and for nothing else. */
struct jvm_defaults {
    int32_t version;
    void *properties;
    int32_t check_source, native_stack_size, java_stack_size;
    void *rest[16];
};

struct jvm_attachment {
    int32_t version;
    const char *name;
    jobject group;
};

#define JNI_VERSION_1_1 0x00010001
#define JNI_VERSION_1_2 0x00010002

enum jni_place {
    JNI_FIND_CLASS = 6,
    JNI_THROW = 13,
    JNI_EXCEPTION_OCCURRED = 15,
    JNI_EXCEPTION_CLEAR = 17,
    JNI_NEW_OBJECT_A = 30,
    JNI_IS_INSTANCE_OF = 32,
    JNI_GET_METHOD_ID = 33,
    JNI_CALL_VOID_METHOD_A = 63,
    JNI_GET_STATIC_METHOD_ID = 113,
    JNI_CALL_STATIC_OBJECT_METHOD_A = 116,
    JNI_CALL_STATIC_VOID_METHOD_A = 143,
    JNI_NEW_OBJECT_ARRAY = 172,
    JNI_SET_OBJECT_ARRAY_ELEMENT = 174,
    JNI_NEW_BYTE_ARRAY = 176,
    JNI_SET_BYTE_ARRAY_REGION = 208,
    JNI_EXCEPTION_CHECK = 228,
};

enum jvm_place {
    JVM_DESTROY = 3,
    JVM_ATTACH_CURRENT_THREAD = 4,
    JVM_DETACH_CURRENT_THREAD = 5,
};

static inline bool jni_failed(jni_env env)
{
    return ((uint8_t(*)(jni_env))(*env)[JNI_EXCEPTION_CHECK])(env);
}

static inline jobject jni_find_class(jni_env env, const char *name)
{
    return ((jobject(*)(jni_env, const char *))(*env)[JNI_FIND_CLASS])(env, name);
}

/* Whether what was thrown is of that class; then it is forgotten. */
static inline bool jni_forgive(jni_env env, const char *name)
{
    jobject thrown = ((jobject(*)(jni_env))(*env)[JNI_EXCEPTION_OCCURRED])(env);
    if (!thrown)
        return false;
    ((void (*)(jni_env))(*env)[JNI_EXCEPTION_CLEAR])(env);
    if (((uint8_t(*)(jni_env, jobject, jobject))(*env)[JNI_IS_INSTANCE_OF])(env, thrown, jni_find_class(env, name)))
        return true;
    ((int32_t(*)(jni_env, jobject))(*env)[JNI_THROW])(env, thrown);
    return false;
}

static inline jmethod jni_method(jni_env env, enum jni_place which, jobject class, const char *name, const char *type)
{
    return ((jmethod(*)(jni_env, jobject, const char *, const char *))(*env)[which])(env, class, name, type);
}

/* Call or construct; what is void returns nothing that may be looked at. */
static inline jobject jni_call(jni_env env, enum jni_place how, jobject on, jmethod method, const union jvalue *values)
{
    return ((jobject(*)(jni_env, jobject, jmethod, const union jvalue *))(*env)[how])(env, on, method, values);
}

static inline jobject jni_new_array(jni_env env, size_t count, jobject class)
{
    typedef jobject function(jni_env, int32_t, jobject, jobject);
    return ((function *)(*env)[JNI_NEW_OBJECT_ARRAY])(env, (int32_t)count, class, NULL);
}

static inline void jni_put(jni_env env, jobject array, size_t at, jobject value)
{
    typedef void function(jni_env, jobject, int32_t, jobject);
    ((function *)(*env)[JNI_SET_OBJECT_ARRAY_ELEMENT])(env, array, (int32_t)at, value);
}

static inline jobject jni_bytes(jni_env env, const char *text)
{
    typedef void fill(jni_env, jobject, int32_t, int32_t, const void *);
    int32_t len = (int32_t)str_len(text);
    jobject bytes = ((jobject(*)(jni_env, int32_t))(*env)[JNI_NEW_BYTE_ARRAY])(env, len);
    if (bytes)
        ((fill *)(*env)[JNI_SET_BYTE_ARRAY_REGION])(env, bytes, 0, len, text);
    return bytes;
}

static inline int32_t jvm_attach(jni_vm vm, jni_env *env, struct jvm_attachment *how)
{
    return ((int32_t(*)(jni_vm, jni_env *, void *))(*vm)[JVM_ATTACH_CURRENT_THREAD])(vm, env, how);
}

static inline int32_t jvm_end(jni_vm vm, enum jvm_place how)
{
    return ((int32_t(*)(jni_vm))(*vm)[how])(vm);
}

#endif
