"""The console's and the random number generator's queues, and the serial port's registers."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from tests.fuzz.drivers.guest cimport *
from vmm._native.console.byteport cimport BytePort
from vmm._native.console.conpump cimport ConsoleWorker
from vmm._native.console.uart cimport Uart
from vmm._native.kvm.bus cimport Bus
from vmm._native.virtio.worker cimport Worker

import os

from tests.fuzz.drivers.guest import Found, Ram, rigs
from vmm._native.virtio.rngpump import RngWorker
from vmm._native.virtio.virtqueue import VirtQueue

cdef enum:
    RNG_MAX = 64 * 1024


cdef void fill(Dice *dice, Rig rig, uint32_t usual) noexcept nogil:
    cdef Piece pieces[24]
    cdef int count
    cdef int readable
    dice_choose_hostility(dice)
    rig.renew(dice)
    for _ in range(1 + dice_below(dice, 3)):
        count = 1 + dice_below(dice, 4)
        readable = dice_below(dice, count + 1)
        for i in range(count):
            pieces[i].length = guest_length(dice, 1 + dice_below(dice, usual))
            pieces[i].address = guest_place(dice, &rig.ring, pieces[i].length)
            pieces[i].writable = i >= readable
        guest_add(dice, &rig.ring, pieces, count)


cdef uint32_t used_length(Rig rig, uint16_t position) noexcept nogil:
    cdef uint32_t *entry = <uint32_t *>&rig.ring.used[2 + 4 * (position % rig.ring.size)]
    return entry[1]


cdef const char *one_of_rng(Dice *dice, Rig rig, Worker worker) noexcept nogil:
    cdef uint16_t before
    cdef uint32_t wanted
    cdef int i
    fill(dice, rig, 40)
    # The last chain is none, so that the loop comes to an end.
    rig.ring.avail[2 + rig.ring.next_avail % rig.ring.size] = 0xffff
    rig.ring.next_avail += 1
    guest_show(dice, &rig.ring)
    if <uint16_t>(rig.ring.avail[1] - rig.queue.next_avail) <= rig.ring.size and (
            rig.ring.avail[1] != rig.ring.next_avail):
        rig.ring.avail[1] = rig.ring.next_avail
    rig.expect()
    before = rig.queue.next_used
    worker.loop()
    worker.broken = 0
    if rig.moves:
        return NULL
    if rig.given_back(before) != rig.chains:
        return b"chains not given back, or bad ones served"
    for i in range(rig.chains):
        wanted = min(rig.expected[i].writable, <uint32_t>RNG_MAX)
        if used_length(rig, <uint16_t>(before + i)) != wanted:
            return b"a used length that is not what was written"
    return NULL


cdef const char *one_of_console(Dice *dice, Rig sent, Rig received, ConsoleWorker worker,
                                BytePort port) noexcept nogil:
    cdef uint64_t expected = port.guest_bytes
    cdef uint64_t room = 0
    cdef uint64_t there
    cdef uint64_t taken
    cdef uint16_t before
    cdef uint8_t typed[64]
    cdef int i
    fill(dice, sent, 200)
    guest_show(dice, &sent.ring)
    sent.expect()
    for i in range(sent.chains):
        expected += sent.expected[i].readable
    worker.send()
    if not sent.moves and port.guest_bytes != expected:
        return b"other bytes sent than the driver gave"
    if not sent.moves and (worker.broken != 0) != sent.broken:
        return b"a good ring refused, or a bad one not seen"
    worker.broken = 0
    memset(typed, 0x41, sizeof(typed))
    port.add_input(typed, dice_below(dice, 64))
    fill(dice, received, 30)
    guest_show(dice, &received.ring)
    received.expect()
    there = port.input_head - port.input_tail
    for i in range(received.chains):
        room += received.expected[i].writable
    before = received.queue.next_used
    worker.deliver()
    taken = there - (port.input_head - port.input_tail)
    if not received.moves and taken != min(there, room):
        return b"input lost, or given where there is no room"
    if taken > there or received.given_back(before) > received.ring.size and not received.moves:
        return b"more given back than was asked for"
    worker.broken = 0
    return NULL


cdef const char *one_of_uart(Dice *dice, Bus bus, Uart uart, BytePort port) noexcept nogil:
    cdef uint8_t data[8]
    cdef uint64_t offset
    cdef uint32_t size
    cdef bint write
    cdef uint8_t scratch
    cdef uint8_t typed[16]
    memset(typed, 0x42, sizeof(typed))
    for _ in range(1 + dice_below(dice, 12)):
        offset = dice_below(dice, 10)
        size = 1 << dice_below(dice, 4) if dice_below(dice, 8) == 0 else 1
        write = dice_below(dice, 2)
        (<uint64_t *>data)[0] = dice_roll(dice) if write else <uint64_t>0xffffffffffffffff
        scratch = uart.scr
        if dice_below(dice, 12) == 0:
            port.add_input(typed, dice_below(dice, 16))
        if bus.access(0x3f8 + offset, data, size, write) != 0:
            return b"an outcome that no serial port has"
        if write or offset + size > 8:
            continue
        if size != 1 and data[0] != 0xff:
            return b"an answer to an access that is not of one byte"
        if size != 1:
            continue
        if offset == 4 and data[0] & 0xe0:
            return b"bits in MCR that there are not"
        if offset == 5 and (data[0] & 0x60) != 0x60:
            return b"a transmitter that is not empty"
        if offset == 7 and data[0] != scratch:
            return b"another value in the scratch register"
        if offset == 2 and data[0] & 1 and data[0] & 0xe:
            return b"an interrupt that is there and is not"
    if uart.loop_count < 0 or uart.loop_count > 64 or uart.ier & 0xf0:
        return b"registers that cannot be"
    return NULL


def run_rng(uint64_t seed, uint64_t first, uint64_t count, uint64_t[::1] progress,
            make=VirtQueue):
    """``count`` inputs from ``first`` on; Found at the first that is answered wrongly."""
    ram = Ram()
    cdef list all_rigs = rigs(ram, [8, 16, 32, 64], make)
    cdef list workers = [RngWorker(rig.queue, -1, -1, -1) for rig in all_rigs]
    cdef const char *wrong = NULL
    cdef uint64_t index = first
    cdef uint32_t number
    cdef Dice dice
    while index < first + count and wrong == NULL:
        progress[0] = index
        dice_begin(&dice, seed, index)
        number = dice_below(&dice, <uint32_t>len(all_rigs))
        wrong = one_of_rng(&dice, <Rig>all_rigs[number], <Worker>workers[number])
        index += 1
    raise_found(index, wrong, ram)


def run_console(uint64_t seed, uint64_t first, uint64_t count, uint64_t[::1] progress,
                make=VirtQueue):
    """As run_rng()."""
    ram = Ram()
    cdef list all_rigs = rigs(ram, [8, 8, 16, 16, 64, 64, 4], make)
    sink = os.open(os.devnull, os.O_WRONLY)
    port = BytePort(-1, sink, -1)
    cdef list workers = []
    cdef const char *wrong = NULL
    cdef uint64_t index = first
    cdef uint32_t number
    cdef Dice dice
    for place in range(0, len(all_rigs), 2):
        pair = all_rigs[place : place + 2]
        workers.append(ConsoleWorker(port, (pair[1].queue, -1, -1), (pair[0].queue, -1, -1), -1))
    try:
        while index < first + count and wrong == NULL:
            progress[0] = index
            dice_begin(&dice, seed, index)
            number = dice_below(&dice, <uint32_t>len(workers))
            wrong = one_of_console(&dice, <Rig>all_rigs[2 * number], <Rig>all_rigs[2 * number + 1],
                                   <ConsoleWorker>workers[number], <BytePort>port)
            index += 1
    finally:
        port.close()
        os.close(sink)
    raise_found(index, wrong, ram)


def run_uart(uint64_t seed, uint64_t first, uint64_t count, uint64_t[::1] progress, make=Uart):
    """As run_rng()."""
    sink = os.open(os.devnull, os.O_WRONLY)
    line = os.eventfd(0, os.EFD_NONBLOCK)
    port = BytePort(-1, sink, -1)
    uart = make(port, line)
    bus = Bus("ports")
    bus.attach(0x3f8, 8, uart, "COM1")
    cdef const char *wrong = NULL
    cdef uint64_t index = first
    cdef Dice dice
    try:
        while index < first + count and wrong == NULL:
            progress[0] = index
            dice_begin(&dice, seed, index)
            wrong = one_of_uart(&dice, <Bus>bus, <Uart>uart, <BytePort>port)
            index += 1
    finally:
        uart.close()
        port.close()
        os.close(sink)
        os.close(line)
    raise_found(index, wrong, None)


cdef raise_found(uint64_t index, const char *wrong, ram):
    what = wrong.decode() if wrong != NULL else None
    if what is None and ram is not None and not ram.unhurt():
        what = "something was written behind guest RAM"
    if what is not None:
        raise Found(index - 1, what)
