"""Signals, timers and eventfds around KVM_RUN, as static C of the module that includes them."""

from libc.stdint cimport uint8_t

from vmm._native.linux.kvm cimport kvm_run

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <errno.h>
    #include <poll.h>
    #include <pthread.h>
    #include <signal.h>
    #include <time.h>
    #include <stdint.h>
    #include <sys/eventfd.h>
    #include <sys/syscall.h>
    #include <unistd.h>
    #include <linux/kvm.h>
    static __thread struct kvm_run *vmm_my_run;
    /* Ends this thread's KVM_RUN with EINTR, one that is just about to begin as well. */
    static void vmm_kick_handler(int signal) {
        (void)signal;
        if (vmm_my_run) vmm_my_run->immediate_exit = 1;
    }
    static int vmm_kick_install(void) {
        struct sigaction action = {0};
        action.sa_handler = vmm_kick_handler;
        sigfillset(&action.sa_mask);
        return sigaction(SIGRTMIN, &action, NULL);
    }
    static void vmm_kick_unblock(void) {
        sigset_t set;
        sigemptyset(&set);
        sigaddset(&set, SIGRTMIN);
        pthread_sigmask(SIG_UNBLOCK, &set, NULL);
    }
    static int vmm_gettid(void) { return (int)syscall(SYS_gettid); }
    static void vmm_run_begins(struct kvm_run *run) { vmm_my_run = run; }
    static struct sigaction vmm_python_sigint;
    static void vmm_sigint_handler(int signal) {
        vmm_kick_handler(signal);
        vmm_python_sigint.sa_handler(signal);
    }
    /* Python's own handler only leaves a note, for which a thread in KVM_RUN must come back. */
    static int vmm_heed_sigint(void) {
        struct sigaction action;
        if (getpid() != vmm_gettid() || sigaction(SIGINT, NULL, &action)) return 0;
        if (action.sa_flags & SA_SIGINFO) return 0;
        if (action.sa_handler == SIG_DFL || action.sa_handler == SIG_IGN) return 0;
        /* A hook of a guest that runs on this thread runs another guest. */
        if (action.sa_handler == vmm_sigint_handler) return 0;
        vmm_python_sigint = action;
        action.sa_handler = vmm_sigint_handler;
        return sigaction(SIGINT, &action, NULL) == 0;
    }
    static void vmm_unheed_sigint(void) { sigaction(SIGINT, &vmm_python_sigint, NULL); }
    /* Kicks the calling thread after so many nanoseconds, and then each millisecond. */
    static int vmm_timer_start(timer_t *timer, long long ns) {
        struct sigevent event = {0};
        struct itimerspec when = {{0, 1000000}, {ns / 1000000000, ns % 1000000000}};
        event.sigev_notify = SIGEV_THREAD_ID;
        event.sigev_signo = SIGRTMIN;
        event._sigev_un._tid = vmm_gettid();
        if (timer_create(CLOCK_MONOTONIC, &event, timer)) return errno;
        if (!timer_settime(*timer, 0, &when, NULL)) return 0;
        timer_delete(*timer);
        return errno;
    }
    static int vmm_tgkill(int tid) { return (int)syscall(SYS_tgkill, getpid(), tid, SIGRTMIN); }
    static void vmm_notify(int fd) {
        unsigned long long one = 1;
        ssize_t rc = fd < 0 ? 0 : write(fd, &one, sizeof one);
        (void)rc;
    }
    static void vmm_wait_for(int fd) {
        struct pollfd entry = {fd, POLLIN, 0};
        uint64_t value;
        if (poll(&entry, 1, -1) > 0) {
            ssize_t rc = read(fd, &value, sizeof value);
            (void)rc;
        }
    }
    #define vmm_load(p) __atomic_load_n(p, __ATOMIC_SEQ_CST)
    #define vmm_store(p, v) __atomic_store_n(p, v, __ATOMIC_SEQ_CST)
    static void vmm_swap_byte(uint8_t *p, uint8_t expected, uint8_t v) {
        __atomic_compare_exchange_n(p, &expected, v, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    }
    """
    int vmm_kick_install() nogil
    void vmm_kick_unblock() nogil
    int vmm_gettid() nogil
    void vmm_run_begins(kvm_run *run) nogil
    int vmm_heed_sigint()
    void vmm_unheed_sigint()
    ctypedef struct timer_t:
        pass
    int vmm_timer_start(timer_t *timer, long long ns) nogil
    int timer_delete(timer_t timer) nogil
    int vmm_tgkill(int tid) nogil
    void vmm_notify(int fd) nogil
    void vmm_wait_for(int fd) nogil
    int vmm_load(int *p) nogil
    void vmm_store(int *p, int v) nogil
    void vmm_store_byte "vmm_store"(uint8_t *p, uint8_t v) nogil
    # Only where it is `expected`.
    void vmm_swap_byte(uint8_t *p, uint8_t expected, uint8_t v) nogil
    int usleep(unsigned int microseconds) nogil
