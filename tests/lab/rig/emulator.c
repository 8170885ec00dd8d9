/* Keeps the emulator alive where one of its assertions is wrong.
 *
 * A write of CR8 by a nested guest while a virtual interrupt is pending makes QEMU's x86 emulation
 * call cpu_interrupt() without its big lock, and the assertion there ends the whole lab (seen with
 * 7.2 to 11.1; EDK2 restores CR8 after each of its interrupts). To leave the function instead loses
 * nothing: the request is made again at the next entry of the guest. Preloaded, this takes the
 * place of GLib's function that reports failed assertions.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unwind.h>

struct frame {
    uint64_t rbx, rbp, r12, r13, r14, r15, rsp, rip;
};

struct search {
    int depth;
    struct frame found;
};

enum { CALLER_OF_THE_FAILED = 2 }; /* 0 is the function below, 1 the one with the assertion */

static _Unwind_Reason_Code visit(struct _Unwind_Context *context, void *opaque)
{
    struct search *search = opaque;
    if (search->depth++ < CALLER_OF_THE_FAILED)
        return _URC_NO_REASON;
    /* By DWARF's numbers (System V ABI, AMD64 supplement, 3.6.2). */
    search->found = (struct frame){
        .rbx = _Unwind_GetGR(context, 3),
        .rbp = _Unwind_GetGR(context, 6),
        .r12 = _Unwind_GetGR(context, 12),
        .r13 = _Unwind_GetGR(context, 13),
        .r14 = _Unwind_GetGR(context, 14),
        .r15 = _Unwind_GetGR(context, 15),
        .rsp = _Unwind_GetCFA(context),
        .rip = _Unwind_GetIP(context),
    };
    return _URC_END_OF_STACK;
}

__attribute__((noreturn)) static void resume(const struct frame *frame)
{
    __asm__ volatile("mov 0(%%rax), %%rbx\n"
                     "mov 8(%%rax), %%rbp\n"
                     "mov 16(%%rax), %%r12\n"
                     "mov 24(%%rax), %%r13\n"
                     "mov 32(%%rax), %%r14\n"
                     "mov 40(%%rax), %%r15\n"
                     "mov 56(%%rax), %%rdx\n"
                     "mov 48(%%rax), %%rsp\n"
                     "jmp *%%rdx\n"
                     :
                     : "a"(frame)
                     : "rdx", "memory");
    __builtin_unreachable();
}

__attribute__((noreturn)) void g_assertion_message_expr(const char *domain, const char *file,
                                                        int line, const char *function,
                                                        const char *expression)
{
    (void)domain;
    if (!strcmp(function, "cpu_interrupt") || !strcmp(function, "tcg_handle_interrupt")) {
        struct search search = {0};
        _Unwind_Backtrace(visit, &search);
        if (search.found.rip)
            resume(&search.found);
    }
    fprintf(stderr, "ERROR:%s:%d:%s: assertion failed: (%s)\n", file, line, function,
            expression ? expression : "");
    abort();
}
