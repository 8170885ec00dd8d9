/* Takes the snapshot, and adopts it: what in an interpreter belongs to a process and a thread. */
#define Py_BUILD_CORE 1
#include "snapshot.h"

#include "internal/pycore_runtime.h"

#include <dirent.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096
#define HUGE_PAGE (2ul << 20)
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* linux/mman.h from 5.14 on */
#endif

extern char vmm_snapshot_start[], vmm_snapshot_end[]; /* snapshot.ld */
extern const Elf64_Ehdr __ehdr_start; /* the linker's: where the file begins in memory */

/* The one thread of the interpreter, in the snapshot; NULL before it is taken. */
static PyThreadState *thread;

/* The pages that `start` writes to, by their numbers in the snapshot, without an order; one of no
 * pages ends the list. The build measures them, and writes them here into the executable
 * (rehearsal.py); until then it is everything.
 */
static volatile struct {
    uint32_t first, count;
} written[VMM_SNAPSHOT_RANGES] = {{0, UINT32_MAX}};

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

/* Where in the executable's file the snapshot begins; -1 where no segment has it (elf(5)). */
static off_t offset_in_file(void)
{
    const char *head = (const char *)&__ehdr_start;
    const Elf64_Phdr *segment = (const Elf64_Phdr *)(head + __ehdr_start.e_phoff);
    for (int n = 0; n < __ehdr_start.e_phnum; n++, segment++) {
        uint64_t at = (uintptr_t)vmm_snapshot_start - segment->p_vaddr;
        if (segment->p_type == PT_LOAD && at < segment->p_filesz)
            return (off_t)(segment->p_offset + at);
    }
    return -1;
}

static int read_all(int fd, char *at, size_t length, off_t offset)
{
    while (length) {
        ssize_t done = pread(fd, at, length, offset);
        if (done <= 0)
            return -1;
        at += done;
        offset += done;
        length -= (size_t)done;
    }
    return 0;
}

/* A huge page with the first 2 MiB of the snapshot in it, at any place; NULL where the host gives none. */
static char *huge_copy(int fd)
{
    unsigned char resident = 0;
    off_t offset = offset_in_file();
    char *area = mmap(NULL, 2 * HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char *at = (char *)(((uintptr_t)area + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1));
    if (area == MAP_FAILED)
        return NULL;
    if (at != area)
        munmap(area, (size_t)(at - area));
    munmap(at + HUGE_PAGE, (size_t)(area + HUGE_PAGE - at));
    if (offset >= 0 && madvise(at, HUGE_PAGE, MADV_HUGEPAGE) == 0) {
        /* One byte written: with a page of 4 KiB the last one is not there. */
        *(volatile char *)at = 0;
        if (mincore(at + HUGE_PAGE - PAGE, PAGE, &resident) == 0 && resident & 1 &&
            read_all(fd, at, HUGE_PAGE, offset) == 0)
            return at;
    }
    munmap(at, HUGE_PAGE);
    return NULL;
}

/* Put a huge page in the place of the snapshot's first 2 MiB, where it is written to most (build.py
 * places it so): one page fault and one read() for hundreds of pages. Returns the number of the
 * first page behind it; 0, and nothing has happened, where there are no huge pages, or no /proc.
 */
static size_t begin_with_huge_page(void)
{
    int fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    char *copy = fd < 0 ? NULL : huge_copy(fd);
    int moved = copy && mremap(copy, HUGE_PAGE, HUGE_PAGE, MREMAP_MAYMOVE | MREMAP_FIXED,
                               vmm_snapshot_start) != MAP_FAILED;
    if (copy && !moved)
        munmap(copy, HUGE_PAGE);
    if (fd >= 0)
        close(fd);
    return moved ? HUGE_PAGE / PAGE : 0;
}

void vmm_snapshot_touch(void)
{
    size_t done = written[0].count ? begin_with_huge_page() : 0;
    /* A few calls in place of hundreds of page faults; a kernel before 5.14 has only these. */
    size_t all = (size_t)(vmm_heap_end() - vmm_snapshot_start + PAGE - 1) / PAGE;
    for (int range = 0; range < VMM_SNAPSHOT_RANGES && written[range].count; range++) {
        size_t first = written[range].first, end = first + written[range].count;
        if (first < done)
            first = done;
        if (end > all)
            end = all;
        if (first < end)
            madvise(vmm_snapshot_start + first * PAGE, (end - first) * PAGE, MADV_POPULATE_WRITE);
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
