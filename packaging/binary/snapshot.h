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

/* So many ranges of pages may be listed that a start writes to. */
#define VMM_SNAPSHOT_RANGES 128

/* Write the snapshot of this process's interpreter to a file: its address, its length, the address
 * of that list, the bytes. No Python code may run meanwhile. Returns 0, or -1 with errno.
 */
int vmm_snapshot_take(const char *path);

/* Get copies of the snapshot's pages that a start writes to, all at once. */
void vmm_snapshot_touch(void);

/* Make the interpreter of the snapshot this process's and this thread's. Returns 0, or -1. */
int vmm_snapshot_resume(void);

#endif
