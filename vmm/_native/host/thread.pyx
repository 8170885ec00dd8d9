"""Native threads for vCPUs and I/O loops, which do not hold the GIL."""

from libc.string cimport memset, strncpy

from vmm._native.host.confine cimport confine_thread

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
    #include <sys/prctl.h>
    #include <time.h>
    static void vmm_thread_name(const char *name) { prctl(PR_SET_NAME, name, 0, 0, 0); }
    static void vmm_thread_wait(unsigned long handle) { pthread_join((pthread_t)handle, NULL); }
    /* The vCPUs' kick is SIGRTMIN; this is another one, with a handler that does nothing. */
    #define VMM_URGE_SIGNAL (SIGRTMIN + 1)
    /* By an attribute: the new thread runs nowhere else, and the caller stays where it is. */
    static int vmm_create_on(pthread_t *handle, void *(*main)(void *), void *arg,
                             const void *bitmap, size_t size) {
        pthread_attr_t attributes;
        int rc = pthread_attr_init(&attributes);
        if (rc) return rc;
        if (size) rc = pthread_attr_setaffinity_np(&attributes, size, (const cpu_set_t *)bitmap);
        if (!rc) rc = pthread_create(handle, &attributes, main, arg);
        pthread_attr_destroy(&attributes);
        return rc;
    }
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
    int vmm_create_on(pthread_t *handle, void *(*main)(void *) noexcept nogil, void *arg,
                      const void *bitmap, size_t size) nogil
    void vmm_heed_urging() nogil
    void vmm_thread_urge(pthread_t handle) nogil
    void vmm_thread_name(const char *name) nogil
    void vmm_thread_wait(pthread_t handle) nogil


cdef void *enter(void *raw) noexcept nogil:
    # No malloc() and no free(): the first of either in a thread maps 64 MiB for it, and a vCPU
    # would wait for that.
    cdef Thread *thread = <Thread *>raw
    vmm_thread_name(thread.name)
    confine_thread(thread.kind)
    thread.main(thread.arg)
    return NULL


cdef int thread_start(Thread *thread, int kind, const char *name, thread_main main,
                      void *arg) noexcept nogil:
    return thread_start_on(thread, kind, name, main, arg, NULL, 0)


cdef int thread_start_on(Thread *thread, int kind, const char *name, thread_main main, void *arg,
                         const void *bitmap, size_t size) noexcept nogil:
    cdef sigset_t everything
    cdef sigset_t before
    thread.kind = kind
    thread.main = main
    thread.arg = arg
    memset(thread.name, 0, sizeof(thread.name))
    strncpy(thread.name, name, sizeof(thread.name) - 1)
    sigfillset(&everything)
    memset(&before, 0, sizeof(before))
    # The new thread inherits the mask; blocking around the creation leaves no window.
    pthread_sigmask(SIG_SETMASK, &everything, &before)
    cdef int rc = vmm_create_on(&thread.handle, enter, thread, bitmap, size)
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
