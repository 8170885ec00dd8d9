/* Takes the snapshot, and adopts it: what in an interpreter belongs to a process and a thread. */
#define Py_BUILD_CORE 1
#include "snapshot.h"

#include "internal/pycore_runtime.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* linux/mman.h from 5.14 on */
#endif

extern char vmm_snapshot_start[], vmm_snapshot_end[]; /* snapshot.ld */

/* The one thread of the interpreter, in the snapshot; NULL before it is taken. */
static PyThreadState *thread;

/* The pages that `start` writes to, by their numbers in the snapshot, without an order; one of no
 * pages ends the list. The build measures them, and writes them here into the executable
 * (rehearsal.py); until then there is none.
 */
static volatile struct {
    uint32_t first, count;
} written[VMM_SNAPSHOT_RANGES];

int vmm_snapshot_is_taken(void)
{
    return thread != NULL;
}

static int write_all(int fd, const char *at, size_t length)
{
    while (length) {
        ssize_t done = write(fd, at, length);
        if (done < 0)
            return -1;
        at += done;
        length -= (size_t)done;
    }
    return 0;
}

/* Entries of a folder of /proc, without "." and ".."; the folder itself may be one. */
static int entries(const char *path)
{
    DIR *folder = opendir(path);
    int count = -2;
    while (folder && readdir(folder))
        count++;
    if (folder)
        closedir(folder);
    return count;
}

int vmm_snapshot_take(const char *path)
{
    size_t length = (size_t)(vmm_snapshot_end - vmm_snapshot_start);
    uint64_t head[4 + 2 * VMM_AREAS] = {(uintptr_t)vmm_snapshot_start, length, (uintptr_t)written};
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd < 0)
        return -1;
    thread = PyThreadState_Get();
    /* Of this process alone, and set by the one that resumes. */
    thread->thread_id = thread->native_thread_id = 0;
    _PyRuntime.main_thread = 0;
    vmm_heap_close();
    vmm_heap_areas(head + 3);
    /* The three standard streams, the snapshot's file and the listing; the first thread and this one. */
    if (entries("/proc/self/fd") != 5 || entries("/proc/self/task") != 2) {
        fprintf(stderr, "a module opens a file or starts a thread when it is imported\n");
        errno = EBUSY;
        return -1;
    }
    if (write_all(fd, (char *)head, sizeof head) < 0 || write_all(fd, vmm_snapshot_start, length) < 0)
        return -1;
    return close(fd);
}

void vmm_snapshot_touch(void)
{
    /* A few calls in place of a thousand page faults; a kernel before 5.14 has only these. */
    for (int range = 0; range < VMM_SNAPSHOT_RANGES && written[range].count; range++) {
        size_t first = written[range].first, count = written[range].count;
        madvise(vmm_snapshot_start + first * PAGE, count * PAGE, MADV_POPULATE_WRITE);
    }
}

int vmm_snapshot_resume(void)
{
    Py_tss_t *key = &_PyRuntime.gilstate.autoTSSkey;
    thread->thread_id = PyThread_get_thread_ident();
    thread->native_thread_id = PyThread_get_thread_native_id();
    _PyRuntime.main_thread = thread->thread_id;
    /* The key by which a thread finds its state is of the process that made it. */
    *key = (Py_tss_t)Py_tss_NEEDS_INIT;
    if (PyThread_tss_create(key) || PyThread_tss_set(key, thread))
        return -1;
    PyOS_setsig(SIGPIPE, SIG_IGN);
    PyOS_setsig(SIGXFSZ, SIG_IGN);
    return 0;
}
