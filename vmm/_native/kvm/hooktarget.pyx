"""A function of a script behind a range of a bus: in front of a device, or as one."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from cpython.ref cimport PyObject

from vmm._native.kvm.bus cimport (
    keep_state, vcpu_here, OUTCOME_CONTINUE, OUTCOME_ERROR, Bus, BusTarget,
)
from vmm._native.kvm.condition cimport (
    ADDRESS, FALSE, REGISTERS, SIZE, VALUE, Condition, read_registers,
)
from vmm._native.kvm.vcpu cimport VcpuFd
from vmm._native.linux.kvm cimport kvm_regs
from vmm._native.linux.kvm_state cimport kvm_sregs2


cdef int hook_access(void *opaque, uint64_t offset, uint8_t *data, uint32_t size,
                     int is_write) noexcept nogil:
    # SAFETY: the bus keeps the object alive as long as it exists itself; data has `size` bytes.
    return (<HookTarget><PyObject *>opaque).serve(offset, data, size, is_write)


cdef class HookTarget(BusTarget):
    """Calls ``function(vcpu, address, value, size, is_write)`` for each access, with the GIL.

    It gives back (value, outcome): of a read what the guest gets, of a write what a watched device
    gets; ``vcpu`` is -1 for an access that no vCPU makes. ``address`` counts from the beginning of
    the range plus ``start``. With ``bus`` an access while not ``enabled`` goes to the device
    behind, and with ``watch`` each one does: reads before the call, writes behind it. The address
    ``spared`` is never the function's, nor what set_condition() keeps from it.
    """

    cdef object function
    cdef Bus bus
    cdef uint64_t start
    cdef readonly bint watch
    cdef public bint enabled
    cdef public long long spared
    cdef readonly uint64_t hits
    cdef Condition condition
    cdef int *fds                # of the vCPUs, by their number
    cdef int fd_count

    def __cinit__(self, function, uint64_t start=0, Bus bus=None, bint watch=False,
                  long long spared=-1):
        self.handler = hook_access
        self.function = function
        self.start = start
        self.bus = bus
        self.watch = watch and bus is not None
        self.enabled = True
        self.spared = spared

    def __dealloc__(self):
        free(self.fds)

    def set_condition(self, Condition condition not None, vcpus):
        """Accesses for which it does not hold are the device's behind, as if nothing were here.

        Once, before the target is on a bus. ``vcpus`` are all VcpuFds by their number.
        """
        if self.condition is not None:
            raise RuntimeError("a condition is set once")
        self.fds = <int *>calloc(len(vcpus) + 1, sizeof(int))
        if self.fds == NULL:
            raise MemoryError
        for vcpu in vcpus:
            self.fds[self.fd_count] = (<VcpuFd?>vcpu).fd
            self.fd_count += 1
        self.condition = condition

    @property
    def passed(self):
        """How often its condition did not hold."""
        return 0 if self.condition is None else self.condition.passed

    cdef bint holds(self, uint64_t address, const uint8_t *data, uint32_t size,
                    int is_write) noexcept nogil:
        """Whether the function is called; also where the condition cannot be looked at."""
        cdef uint64_t registers[REGISTERS]
        cdef kvm_regs regs
        cdef kvm_sregs2 sregs
        cdef int vcpu = vcpu_here()
        if not 0 <= vcpu < self.fd_count:
            return True
        if self.condition.wants_registers:
            if read_registers(self.fds[vcpu], &regs,
                              &sregs if self.condition.wants_system else NULL, registers) < 0:
                return True
        registers[ADDRESS] = address
        registers[SIZE] = size
        registers[VALUE] = 0
        if is_write:
            memcpy(&registers[VALUE], data, size)
        if self.condition.holds(registers) != FALSE:
            return True
        self.condition.pass_by()
        return False

    cdef int serve(self, uint64_t offset, uint8_t *data, uint32_t size,
                   int is_write) noexcept nogil:
        cdef uint64_t address = self.start + offset
        cdef int device = OUTCOME_CONTINUE
        cdef int ours
        if not self.enabled or (self.spared >= 0 and address == <uint64_t>self.spared):
            return self.behind(address, data, size, is_write)
        if self.condition is not None and not self.holds(address, data, size, is_write):
            return self.behind(address, data, size, is_write)
        if self.watch and not is_write:
            device = self.behind(address, data, size, is_write)
        keep_state()
        with gil:
            ours = self.call(address, data, size, is_write)
        if self.watch and is_write:
            device = self.behind(address, data, size, is_write)
        # A device that ends the guest does so whatever the script wants.
        return ours if device == OUTCOME_CONTINUE else device

    cdef int behind(self, uint64_t address, uint8_t *data, uint32_t size,
                    int is_write) noexcept nogil:
        if self.bus is None:
            return OUTCOME_CONTINUE
        return self.bus.device_access(address, data, size, is_write)

    cdef int call(self, uint64_t address, uint8_t *data, uint32_t size, int is_write) noexcept:
        cdef uint64_t value = 0
        self.hits += 1
        memcpy(&value, data, size)
        try:
            found, outcome = self.function(vcpu_here(), address, value, size, is_write != 0)
            value = found
            memcpy(data, &value, size)
            return outcome
        except BaseException:
            # The function catches what scripts raise: this is a value or an outcome that is none.
            return OUTCOME_ERROR
