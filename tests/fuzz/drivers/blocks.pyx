"""Requests of a virtio disk, over a file in memory, against what virtio 1.2, 5.2.6 says."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from tests.fuzz.drivers.guest cimport *
from vmm._native.disk.blkpump cimport BlkWorker
from vmm._native.disk.layer import Layer
from vmm._native.disk.overlay import Overlay
from vmm._native.disk.overlaypump import OverlayBlkWorker

import mmap
import os

from tests.fuzz.drivers.guest import Found, Ram, rigs

cdef enum:
    SECTORS = 512
    TAIL = 64                    # sectors behind the disk's end that nobody may touch
    UNASKED = 0xee               # a status byte before the device wrote one
    OK = 0
    IOERR = 1
    UNSUPP = 2
    UNKNOWN = 3                  # nothing is expected

KINDS = (0, 1, 4, 8, 11, 13)
cdef uint32_t KIND_OF[8]
KIND_OF[:] = [0, 1, 0, 1, 4, 8, 11, 13]


cdef struct Asked:
    uint8_t status               # expected
    char *answer


cdef uint64_t a_sector(Dice *dice) noexcept nogil:
    cdef uint32_t way = dice_below(dice, 16)
    if way == 0:
        return dice_roll(dice)
    if way == 1:
        return SECTORS - dice_below(dice, 10) + dice_below(dice, 4)
    return dice_below(dice, SECTORS)


cdef uint8_t answer_of(uint32_t kind, uint64_t sector, uint64_t length, bint read_only,
                       const uint8_t *data) noexcept nogil:
    # What the specification says, read on its own.
    cdef uint64_t first
    cdef uint32_t sectors
    cdef uint32_t flags
    if kind == 0 or kind == 1:
        if (kind == 1 and read_only) or length % 512:
            return IOERR
        return IOERR if sector > SECTORS or length // 512 > SECTORS - sector else OK
    if kind == 4:
        return OK
    if kind == 8:
        return OK if length >= 20 else IOERR
    if kind == 11 or kind == 13:
        if read_only or length != 16:
            return IOERR
        memcpy(&first, data, 8)
        memcpy(&sectors, data + 8, 4)
        memcpy(&flags, data + 12, 4)
        if flags > 1 or (flags and kind == 11):
            return UNSUPP
        return IOERR if first > SECTORS or sectors > SECTORS - first else OK
    return UNSUPP


cdef int make_request(Dice *dice, Rig rig, Asked *asked, bint read_only) noexcept nogil:
    # A chain as a driver sends it; 0 when the ring is full.
    cdef Piece pieces[24]
    cdef uint8_t data[16]
    cdef int count = 1
    cdef int last
    cdef uint64_t total = 0
    cdef char *at
    cdef uint32_t kind = KIND_OF[dice_below(dice, 8)]
    cdef uint64_t sector = a_sector(dice)
    cdef uint32_t flags = dice_below(dice, 2) if dice_below(dice, 4) == 0 else 0
    cdef uint64_t first = a_sector(dice)
    cdef uint32_t amount = dice_below(dice, 40)
    if dice_below(dice, 40) == 0:
        kind = <uint32_t>dice_roll(dice)
    pieces[0] = Piece(guest_place(dice, &rig.ring, 16), 16, 0)
    if kind == 11 or kind == 13:
        memcpy(data, &first, 8)
        memcpy(data + 8, &amount, 4)
        memcpy(data + 12, &flags, 4)
        pieces[1] = Piece(guest_place(dice, &rig.ring, 16), 16, 0)
        if dice_below(dice, 20) == 0:
            pieces[1].length = dice_below(dice, 40) + 1
        at = guest_at(&rig.ring, pieces[1].address, 16)
        if at != NULL:
            memcpy(at, data, 16)
        total = pieces[1].length
        count = 2
    elif kind != 4:
        last = 1 + dice_below(dice, 3)
        for _ in range(last):
            pieces[count].length = 512 * (1 + dice_below(dice, 4))
            if dice_below(dice, 16) == 0:
                pieces[count].length = 1 + dice_below(dice, 2000)
            pieces[count].length = guest_length(dice, pieces[count].length)
            pieces[count].address = guest_place(dice, &rig.ring, pieces[count].length)
            pieces[count].writable = kind != 1
            total += pieces[count].length
            count += 1
    at = guest_at(&rig.ring, pieces[0].address, 16)
    if at != NULL:
        memcpy(at, &kind, 4)
        memcpy(at + 8, &sector, 8)
    pieces[count] = Piece(guest_place(dice, &rig.ring, 1), 1, 1)
    asked.answer = guest_at(&rig.ring, pieces[count].address, 1)
    if asked.answer != NULL:
        asked.answer[0] = <char>UNASKED
    asked.status = answer_of(kind, sector, total, read_only, data)
    return guest_add(dice, &rig.ring, pieces, count + 1)


cdef const char *one(Dice *dice, Rig rig, BlkWorker worker) noexcept nogil:
    cdef Asked asked[4]
    cdef int count = 0
    cdef uint16_t before
    dice_choose_hostility(dice)
    rig.renew(dice)
    for _ in range(1 + dice_below(dice, 3)):
        count += make_request(dice, rig, &asked[count], worker.read_only)
    guest_show(dice, &rig.ring)
    rig.expect()
    before = rig.queue.next_used
    worker.serve()
    if (worker.broken != 0) != rig.broken and not rig.moves:
        if worker.broken:
            return b"a good ring refused"
        return b"a bad ring that is not seen"
    worker.broken = 0
    if rig.given_back(before) != rig.chains and not rig.moves:
        return b"requests not answered"
    if dice.hostile:
        return NULL
    for i in range(count):
        if <uint8_t>asked[i].answer[0] != asked[i].status:
            return b"another status than the specification's"
    return NULL


class Setting:
    """A worker of each kind over a file with a tail, and what the file was."""

    def __init__(self, blind=False):
        self.files = []
        self.blind = blind

    def file(self):
        fd = os.memfd_create("disk")
        os.ftruncate(fd, (SECTORS + TAIL) * 512)
        os.pwrite(fd, b"\xa5" * (SECTORS + TAIL) * 512, 0)
        self.files.append((fd, mmap.mmap(fd, (SECTORS + TAIL) * 512)))
        return fd

    def worker(self, rig, number, factory):
        fd = self.file()
        kind = number % 5
        # A disk whose requests are not held against its size has no end.
        sectors = SECTORS + TAIL // 2 if self.blind else SECTORS
        worker = factory(rig.queue, fd, sectors, kind == 1, False, b"serial", -1, -1, -1)
        worker.polling = False
        if kind == 2:
            worker.set_direct(512, 4096)
        if kind == 3:
            worker.writeback = 0
        return worker

    def wrong(self):
        """What happened behind the disks' ends."""
        for fd, view in self.files:
            if os.fstat(fd).st_size != (SECTORS + TAIL) * 512:
                return "the disk's file has another size"
            if view[SECTORS * 512 :] != b"\xa5" * TAIL * 512:
                return "something was written behind the disk's end"
        return None

    def close(self):
        for fd, view in self.files:
            view.close()
            os.close(fd)


def overlay_worker(queue, fd, sectors, *rest):
    """One over layers in memory."""
    worker = OverlayBlkWorker(queue, fd, sectors, *rest)
    size = sectors * 512
    worker.overlay = Overlay(fd, size, lambda: Layer(os.memfd_create("layer"), size))
    return worker


def run(uint64_t seed, uint64_t first, uint64_t count, uint64_t[::1] progress, *,
        overlay=False, blind=False):
    """``count`` inputs from ``first`` on; Found at the first that is answered wrongly."""
    ram = Ram()
    cdef list all_rigs = rigs(ram, [16, 16, 16, 16, 64, 8])
    cdef list workers = []
    cdef const char *wrong = NULL
    cdef uint64_t index = first
    cdef uint64_t number
    cdef Dice dice
    setting = Setting(blind)
    try:
        for place, rig in enumerate(all_rigs):
            factory = overlay_worker if overlay else BlkWorker
            workers.append(setting.worker(rig, place, factory))
        while index < first + count and wrong == NULL:
            progress[0] = index
            dice_begin(&dice, seed, index)
            number = dice_below(&dice, <uint32_t>len(all_rigs))
            wrong = one(&dice, <Rig>all_rigs[number], <BlkWorker>workers[number])
            index += 1
            if index % 4096 == 0 and wrong == NULL and setting.wrong():
                break
        what = wrong.decode() if wrong != NULL else setting.wrong()
        if what is None and not ram.unhurt():
            what = "something was written behind guest RAM"
    finally:
        setting.close()
    if what is not None:
        raise Found(index - 1, what)
