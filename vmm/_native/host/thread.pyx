"""Native threads for vCPUs and I/O loops, which do not hold the GIL."""

from libc.string cimport memset

cdef extern from "<signal.h>" nogil:
    ctypedef struct sigset_t:
        pass
    int SIG_SETMASK
    int sigfillset(sigset_t *set)
    int pthread_sigmask(int how, const sigset_t *set, sigset_t *old)

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <errno.h>
    #include <pthread.h>
    #include <signal.h>
    #include <stdlib.h>
    #include <string.h>
    #include <time.h>
    typedef void (*vmm_thread_main)(void *);
    struct vmm_thread_box { vmm_thread_main main; void *arg; };
    static void *vmm_thread_enter(void *raw) {
        struct vmm_thread_box box = *(struct vmm_thread_box *)raw;
        free(raw);
        box.main(box.arg);
        return NULL;
    }
    static int vmm_thread_create(unsigned long *handle, const char *name,
                                 vmm_thread_main main, void *arg) {
        struct vmm_thread_box *box = malloc(sizeof *box);
        char short_name[16] = {0};
        int rc;
        if (!box) return ENOMEM;
        box->main = main;
        box->arg = arg;
        rc = pthread_create((pthread_t *)handle, NULL, vmm_thread_enter, box);
        if (rc) { free(box); return rc; }
        strncpy(short_name, name, 15);
        pthread_setname_np(*(pthread_t *)handle, short_name);
        return 0;
    }
    static void vmm_thread_wait(unsigned long handle) { pthread_join((pthread_t)handle, NULL); }
    /* The vCPUs' kick is SIGRTMIN; this is another one, with a handler that does nothing. */
    #define VMM_URGE_SIGNAL (SIGRTMIN + 1)
    #define VMM_URGE_NS 100000000L
    static void vmm_urge_handler(int signal) { (void)signal; }
    static void vmm_heed_urging(void) {
        struct sigaction action = {0};
        sigset_t set;
        action.sa_handler = vmm_urge_handler;
        sigfillset(&action.sa_mask);
        sigaction(VMM_URGE_SIGNAL, &action, NULL);
        sigemptyset(&set);
        sigaddset(&set, VMM_URGE_SIGNAL);
        pthread_sigmask(SIG_UNBLOCK, &set, NULL);
    }
    static void vmm_thread_urge(unsigned long handle) {
        struct timespec until;
        for (;;) {
            clock_gettime(CLOCK_REALTIME, &until);
            until.tv_nsec += VMM_URGE_NS;
            if (until.tv_nsec >= 1000000000L) { until.tv_sec++; until.tv_nsec -= 1000000000L; }
            if (pthread_timedjoin_np((pthread_t)handle, NULL, &until) != ETIMEDOUT) return;
            pthread_kill((pthread_t)handle, VMM_URGE_SIGNAL);
        }
    }
    """
    void vmm_heed_urging() nogil
    void vmm_thread_urge(pthread_t handle) nogil
    int vmm_thread_create(pthread_t *handle, const char *name, thread_main main, void *arg) nogil
    void vmm_thread_wait(pthread_t handle) nogil


cdef int thread_start(Thread *thread, const char *name, thread_main main, void *arg) noexcept nogil:
    cdef sigset_t everything
    cdef sigset_t before
    sigfillset(&everything)
    memset(&before, 0, sizeof(before))
    # The new thread inherits the mask; blocking around the creation leaves no window.
    pthread_sigmask(SIG_SETMASK, &everything, &before)
    cdef int rc = vmm_thread_create(&thread.handle, name, main, arg)
    pthread_sigmask(SIG_SETMASK, &before, NULL)
    thread.started = rc == 0
    return rc


cdef void thread_join(Thread *thread) noexcept nogil:
    if thread.started:
        vmm_thread_wait(thread.handle)
        thread.started = False


cdef void thread_heed_urging() noexcept nogil:
    vmm_heed_urging()


cdef void thread_join_urging(Thread *thread) noexcept nogil:
    if thread.started:
        vmm_thread_urge(thread.handle)
        thread.started = False
