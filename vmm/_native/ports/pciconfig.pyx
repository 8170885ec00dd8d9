"""PCI configuration space by ports and by ECAM, as far as it needs no Python.

A kernel looks into each of 32 slots, and reads each function's header and capabilities dozens of
times: a third of all its exits to us while it boots. Most of these bytes never change by
themselves; they are read where ConfigSpace keeps them. Everything else goes to Python, which has
the locks. Source: PCI Local Bus Specification 3.0, 3.2.2.3.2; PCI Express Base Specification 5.0,
7.2.2 (ECAM).
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from vmm._native.kvm.bus cimport OUTCOME_CONTINUE, python_access

cdef extern from "Python.h":
    char *PyByteArray_AS_STRING(object) noexcept

cdef enum:
    SPACE_SIZE = 4096       # of a function; what lives is in the first 256 bytes of it
    HEADER_SIZE = 256
    DATA = 4                # offset of the data ports from 0xcf8
    ADDRESS_MASK = 0xfc

cdef uint32_t ENABLE = 1u << 31
PORTS, ECAM = range(2)


cdef class ConfigTable:
    """Which slots of bus 0 have a function, and what can be read of it without Python.

    Filled before the guest runs; vCPU threads only look.
    """

    def __cinit__(self):
        self.kept = []

    def add(self, unsigned int slot, data, asked):
        """A function is in ``slot``. ``data`` (a bytearray): its configuration space; None: Python
        is asked for everything. ``asked``: the dwords of the first 256 bytes that Python is asked
        for, one bit each."""
        if slot >= SLOTS:
            raise ValueError(f"slot {slot}: 0 to {SLOTS - 1} is possible")
        if data is not None:
            if not isinstance(data, bytearray) or len(data) < SPACE_SIZE:
                raise ValueError(f"a bytearray of at least {SPACE_SIZE} bytes is needed")
            # A view keeps the bytes where they are.
            self.kept.append(memoryview(data))
            self.asked[slot] = asked
            # SAFETY: the view above lives as long as the table; all 4096 bytes are there.
            self.plain[slot] = <const uint8_t *>PyByteArray_AS_STRING(data)
        self.present |= 1u << slot


cdef inline bint served(ConfigTable table, uint32_t bus, uint32_t slot, uint32_t function,
                        uint32_t register, uint8_t *data, uint32_t size,
                        int is_write) noexcept nogil:
    """Whether the access is dealt with; ``data`` is all ones before a read."""
    if bus or function or not table.present >> slot & 1:
        return True
    if is_write or table.plain[slot] == NULL or (register & 3) + size > 4:
        return False
    if register < HEADER_SIZE and table.asked[slot] >> (register >> 2) & 1:
        return False
    # SAFETY: add() has seen 4096 bytes there; `register` has 12 bits, and the access stays inside
    # its dword. A vCPU that writes them meanwhile races as it would with real hardware.
    memcpy(data, table.plain[slot] + register, size)
    return True


cdef int ports_access(void *opaque, uint64_t offset, uint8_t *data, uint32_t size,
                      int is_write) noexcept nogil:
    # SAFETY: the bus keeps the object alive while it is attached; data has `size` bytes, at most
    # 4 of them by a port, and offset + size is inside the eight ports.
    cdef uint32_t address = (<ConfigTarget>opaque).address
    if offset < DATA and offset + size <= DATA:
        if is_write:
            # One aligned store. Parts of the register are for whoever has it for itself.
            memcpy(<uint8_t *>&address + offset, data, size)
            (<ConfigTarget>opaque).address = address
        else:
            memcpy(data, <uint8_t *>&address + offset, size)
        return OUTCOME_CONTINUE
    if offset < DATA or not address & ENABLE:
        return OUTCOME_CONTINUE
    if served((<ConfigTarget>opaque).table, address >> 16 & 0xff, address >> 11 & 0x1f,
              address >> 8 & 7, (address & ADDRESS_MASK) + <uint32_t>(offset - DATA), data, size,
              is_write):
        return OUTCOME_CONTINUE
    return python_access(opaque, offset, data, size, is_write)


cdef int ecam_access(void *opaque, uint64_t offset, uint8_t *data, uint32_t size,
                     int is_write) noexcept nogil:
    # SAFETY: as above, with up to 8 bytes; 8 are never served here where a function is.
    if served((<ConfigTarget>opaque).table, offset >> 20, offset >> 15 & 0x1f, offset >> 12 & 7,
              offset & 0xfff, data, size, is_write):
        return OUTCOME_CONTINUE
    return python_access(opaque, offset, data, size, is_write)


cdef class ConfigTarget(PythonTarget):
    """One way to configuration space (PORTS: 0xcf8 to 0xcff, or ECAM), in front of ``device``."""

    def __cinit__(self, device, ConfigTable table, int way):
        self.table = table
        self.handler = ecam_access if way == ECAM else ports_access
