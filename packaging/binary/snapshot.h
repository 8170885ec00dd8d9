/* The interpreter as it is once everything is imported: taken by the build, resumed at each start. */
#ifndef VMM_SNAPSHOT_H
#define VMM_SNAPSHOT_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

/* From here on, before the interpreter starts, memory is the snapshot's; then the process's own.
 * The end is that of what has been taken.
 */
void vmm_heap_open(void);
void vmm_heap_close(void);
char *vmm_heap_end(void);

/* Whether this process began with a snapshot. */
int vmm_snapshot_is_taken(void);

/* Write the snapshot of this process's interpreter to a file: the address, the length, the bytes.
 * No Python code may run meanwhile. Returns 0, or -1 with errno.
 */
int vmm_snapshot_take(const char *path);

/* Get a copy of all of the snapshot's pages at once, for a process that will write to most of them. */
void vmm_snapshot_touch(void);

/* Make the interpreter of the snapshot this process's and this thread's. Returns 0, or -1. */
int vmm_snapshot_resume(void);

#endif
