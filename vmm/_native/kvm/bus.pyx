"""Port and MMIO buses: a sorted table that sends each access to its device."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from cpython.ref cimport PyObject

from vmm._native.kvm.bustable cimport (
    vmm_look_up, vmm_table_put, vmm_table_take, vmm_tables_free, vmm_tables_left,
)

cdef extern from *:
    """
    /* 0: not a thread of ours, 1: one without a Python thread state, 2: one with. */
    static __thread int vmm_own_thread;
    static __thread PyGILState_STATE vmm_gil;
    static __thread PyThreadState *vmm_state;
    static void vmm_own_thread_begins(void) { vmm_own_thread = 1; }
    static void vmm_keep_state(void) {
        if (vmm_own_thread == 1) {
            vmm_own_thread = 2;
            vmm_gil = PyGILState_Ensure();
            vmm_state = PyEval_SaveThread();
        }
    }
    /* Which vCPU this thread runs, -1: none. */
    static __thread int vmm_vcpu = -1;
    static int vmm_vcpu_begins(int index) {
        int before = vmm_vcpu;
        vmm_vcpu = index;
        return before;
    }
    static int vmm_vcpu_here(void) { return vmm_vcpu; }
    static void vmm_own_thread_ends(void) {
        if (vmm_own_thread == 2) {
            PyEval_RestoreThread(vmm_state);
            PyGILState_Release(vmm_gil);
        }
        vmm_own_thread = 0;
    }
    """
    void vmm_own_thread_begins() nogil
    void vmm_keep_state() nogil
    void vmm_own_thread_ends() nogil
    int vmm_vcpu_begins(int index) nogil
    int vmm_vcpu_here() nogil

CONTINUE = OUTCOME_CONTINUE
RESET = OUTCOME_RESET
SHUTDOWN = OUTCOME_SHUTDOWN
KICKED = OUTCOME_KICKED
CRASH = OUTCOME_CRASH
ERROR = OUTCOME_ERROR
STOP = OUTCOME_STOP
FAULT = OUTCOME_FAULT


cdef class BusTarget:
    """A native device: its subclass sets the C handler, which runs without the GIL."""


cdef class PythonTarget(BusTarget):
    """Carries accesses to a Python object's read() and write(), taking the GIL for each."""

    def __cinit__(self, device, *more):
        self.device = device
        self.handler = python_access


cdef int python_access(void *opaque, uint64_t offset, uint8_t *data, uint32_t size,
                       int is_write) noexcept nogil:
    vmm_keep_state()
    with gil:
        return python_access_gil(<PythonTarget><PyObject *>opaque, offset, data, size, is_write)


cdef void own_thread_begins() noexcept nogil:
    vmm_own_thread_begins()


cdef void own_thread_ends() noexcept nogil:
    vmm_own_thread_ends()


cdef void keep_state() noexcept nogil:
    vmm_keep_state()


cdef int vcpu_begins(int index) noexcept nogil:
    return vmm_vcpu_begins(index)


cdef int vcpu_here() noexcept nogil:
    return vmm_vcpu_here()


def current_vcpu():
    """The number of the vCPU that the calling thread runs: whose access a device serves; -1: none.
    """
    return vmm_vcpu_here()


cdef int python_access_gil(PythonTarget target, uint64_t offset, uint8_t *data, uint32_t size,
                           int is_write) noexcept:
    cdef uint64_t value = 0
    try:
        if is_write:
            memcpy(&value, data, size)
            outcome = target.device.write(offset, value, size)
            return 0 if outcome is None else <int>outcome
        value = target.device.read(offset, size)
        memcpy(data, &value, size)
        return OUTCOME_CONTINUE
    except BaseException as error:
        return target.bus.device_raised(target, error)


cdef device_of(BusTarget target):
    return (<PythonTarget>target).device if isinstance(target, PythonTarget) else target


cdef inline int deliver(void *found, uint64_t offset, uint8_t *data, uint32_t size,
                        int is_write) noexcept nogil:
    if found == NULL:
        return OUTCOME_CONTINUE
    # SAFETY: a BusTarget, which is alive as access() says.
    vmm_touch(&(<BusTarget>found).touched)
    return (<BusTarget>found).handler(found, offset, data, size, is_write)


cdef class Bus:
    """One address space of devices (ports, or MMIO).

    attach, detach and move may be called from any Python thread while vCPUs run: ``owners`` and
    changes of the table are the GIL's, and whoever looks something up takes no lock. Overlap is an
    error at once (ValueError names both). cover() and uncover() are the same for targets that
    stand in front of the devices: an access that lies wholly in such a range goes there.
    ``on_error(device, name, error)`` hears what a Python device raised; the access that failed
    reads as ones, or is dropped, and the guest goes on. Without it ``error`` is the first one, and
    the guest does not.
    """

    def __cinit__(self, str name, on_error=None):
        self.name = name
        self.on_error = on_error
        self.owners = {}
        self.covering = {}
        self.retired = []

    def __dealloc__(self):
        vmm_tables_free(&self.table, &self.waiting)

    cdef int access(self, uint64_t address, uint8_t *data, uint32_t size,
                    int is_write) noexcept nogil:
        # Not one that is read while the device runs: it may itself move ranges (a BAR). The target
        # lives in `owners`, `covering` or `retired` until the bus itself goes.
        cdef uint64_t offset = 0
        cdef void *found = vmm_look_up(&self.table, 1, address, size, &offset)
        return deliver(found, offset, data, size, is_write)

    cdef int device_access(self, uint64_t address, uint8_t *data, uint32_t size,
                           int is_write) noexcept nogil:
        cdef uint64_t offset = 0
        cdef void *found = vmm_look_up(&self.table, 0, address, size, &offset)
        return deliver(found, offset, data, size, is_write)

    def attach(self, start, length, target, str name):
        """Give [start, start + length) to ``target`` (a BusTarget or a Python device)."""
        self.add(False, start, length, target, name)

    def cover(self, start, length, target, str name):
        """Let ``target`` stand in front of whatever device is there, or comes there."""
        self.add(True, start, length, target, name)

    def uncover(self, start):
        """Take it away from there; KeyError when nothing stands there."""
        self.remove(True, start)

    @property
    def old_tables(self):
        """How many tables from before a change somebody looks at in this moment."""
        return vmm_tables_left(&self.waiting)

    cdef int add(self, bint covers, start, length, target, str name) except -1:
        cdef BusTarget native
        cdef dict owners = self.covering if covers else self.owners
        if length <= 0 or start < 0 or start + length > 1 << 64:
            raise ValueError(f"{self.name}: {name}: no such range: {start:#x}, {length:#x} bytes")
        for other, (_, other_name, other_length) in owners.items():
            if start < other + other_length and other < start + length:
                raise ValueError(
                    f"{self.name}: {name} at [{start:#x}, {start + length:#x}) overlaps "
                    f"{other_name} at [{other:#x}, {other + other_length:#x})")
        native = target if isinstance(target, BusTarget) else PythonTarget(target)
        if isinstance(native, PythonTarget):
            (<PythonTarget>native).bus = self
            (<PythonTarget>native).name = name
        if native.handler == NULL:
            raise TypeError(f"{self.name}: {name}: a BusTarget without a handler")
        owners[start] = (native, name, length)
        if vmm_table_put(&self.table, &self.waiting, covers, start, length,
                         <void *><PyObject *>native):
            del owners[start]
            raise MemoryError
        self.changes += not covers
        return 0

    cdef int remove(self, bint covers, start) except -1:
        cdef dict owners = self.covering if covers else self.owners
        target, _, _ = owners[start]
        if target not in self.retired:
            self.retired.append(target)
        if vmm_table_take(&self.table, &self.waiting, covers, start):
            raise MemoryError
        del owners[start]
        self.changes += not covers
        return 0

    def detach(self, start):
        """Take back the range that begins at ``start``; KeyError when there is none."""
        self.remove(False, start)

    def move(self, old, new):
        """Move the range at ``old`` to ``new``; on a clash it stays and ValueError is raised.

        It answers at both for a moment, so an access that comes meanwhile is not lost.
        """
        target, name, length = self.owners[old]
        self.attach(new, length, target, name)
        self.detach(old)

    def ranges(self):
        """(start, length, name) of everything attached, ascending."""
        return sorted([(start, length, name) for start, (_, name, length) in self.owners.items()])

    def devices(self):
        """(start, name, device) of everything attached, ascending: Python devices themselves."""
        return sorted([(start, name, device_of(target))
                       for start, (target, name, _) in self.owners.items()],
                      key=lambda found: found[0])

    def touched(self):
        """The devices that a guest's access reached since clear_touched(), in no order."""
        return [device_of(target) for target, _, _ in self.owners.values()
                if (<BusTarget>target).touched]

    def clear_touched(self):
        """Forget which ones; while vCPUs run an access may go unseen."""
        for target, _, _ in self.owners.values():
            (<BusTarget>target).touched = 0

    def read(self, address, int size):
        """What a guest would read at ``address``; for tests and scripts."""
        cdef uint8_t data[8]
        self.script_access(address, size, data, 0, 0)
        return int.from_bytes(data[:size], "little")

    def write(self, address, value, int size):
        """Write as a guest would; returns the outcome; for tests and scripts."""
        cdef uint8_t data[8]
        return self.script_access(address, size, data, value, 1)

    cdef int script_access(self, uint64_t address, int size, uint8_t *data, uint64_t value,
                           int is_write) except -1:
        cdef uint64_t buffer = value if is_write else <uint64_t>0xffffffffffffffff
        cdef int outcome
        if size not in (1, 2, 4, 8):
            raise ValueError(f"an access of {size} bytes: 1, 2, 4 or 8 are possible")
        memcpy(data, &buffer, 8)
        with nogil:
            outcome = self.access(address, data, size, is_write)
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        return outcome

    cdef int device_raised(self, PythonTarget target, error) noexcept:
        # A bug of ours, or a host that lacks something: neither is a reason to end the guest.
        if self.on_error is None:
            if self.error is None:
                self.error = error
            return OUTCOME_ERROR
        try:
            self.on_error(target.device, target.name, error)
        except BaseException:
            # Nothing is left that could tell; the guest goes on all the same.
            return OUTCOME_CONTINUE
        return OUTCOME_CONTINUE
