/*
 * Preloaded into User-Mode Linux, whose buffer for a process's vector registers has a fixed size: that
 * of AVX-512. Where the processor has more (AMX), the kernel refuses to set less than everything. So
 * what User-Mode Linux does not know of stays as it is.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>

#define NT_X86_XSTATE 0x202L

typedef long (*ptrace_fn)(int, int, void *, void *);

long ptrace(enum __ptrace_request request, ...) {
    static ptrace_fn real;
    static char all[65536];
    va_list arguments;
    int pid;
    void *address, *data;
    long result;

    va_start(arguments, request);
    pid = va_arg(arguments, int);
    address = va_arg(arguments, void *);
    data = va_arg(arguments, void *);
    va_end(arguments);
    if (!real)
        real = (ptrace_fn)dlsym(RTLD_NEXT, "ptrace");
    result = real(request, pid, address, data);
    if (result == -1 && errno == EFAULT && request == PTRACE_SETREGSET && (long)address == NT_X86_XSTATE) {
        const struct iovec *known = data;
        struct iovec whole = {all, sizeof all};

        if (real(PTRACE_GETREGSET, pid, address, &whole) == -1)
            return -1;
        if (known->iov_len > whole.iov_len) {
            errno = EFAULT;
            return -1;
        }
        memcpy(all, known->iov_base, known->iov_len);
        result = real(PTRACE_SETREGSET, pid, address, &whole);
    }
    return result;
}
