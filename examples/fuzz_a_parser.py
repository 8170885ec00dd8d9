"""Where does this parser of the kernel lead? Fuzzing by snapshot, restore and coverage.

    python examples/fuzz_a_parser.py [FUNCTION [RUNS [KERNEL [INITRAMFS]]]]

FUNCTION(text, length, ...) is called as in4_pton() is: with bytes on the kernel's stack. A
breakpoint in each basic block tells when an input leads to new code; it is hit once and taken away.
"""

from __future__ import annotations

import random
import sys

from guests import settings

import vmm
from vmm.debug.disassembly import block_starts, code_bits

SECONDS = 300
ROOM = 1024
ALPHABET = b"0123456789.:-xabcf \0\xff"


class Fuzzer:
    """Calls a function of a guest again and again. The guest stands in the context to use."""

    def __init__(self, guest: vmm.Guest, function: int, blocks: list[int]) -> None:
        self.guest = guest
        # A call begins in the first block: no breakpoint is needed to know that.
        self.reached = {function}
        self.points = {b: guest.breakpoint(b, self.reach) for b in blocks if b != function}
        cpu = guest.cpus[0]
        self.end, self.text = cpu.address, cpu.regs.rsp - ROOM
        word = 8 if code_bits(cpu.sregs.as_dict()) == 64 else 4
        stack = (self.text - ROOM) // 16 * 16 - word
        cpu.memory.write(stack, self.end.to_bytes(word, "little"))
        result = self.text + ROOM // 2
        cpu.regs.update({"rip": function, "rsp": stack, "rdi": self.text, "rdx": result})
        cpu.regs.update({"rcx": (1 << 64) - 1, "r8": 0})
        self.base = guest.snapshot()

    def reach(self, cpu):
        """A block is reached for the first time: that is all its breakpoint is for."""
        self.reached.add(cpu.address)
        self.points[cpu.address].enabled = False

    def call(self, text: bytes) -> vmm.Stop:
        """One call; a breakpoint where it comes back to."""
        self.guest.restore(self.base)
        cpu = self.guest.cpus[0]
        cpu.memory.write(self.text, text)
        cpu.regs.rsi = len(text)
        return self.guest.run(until=self.end, seconds=2)

    def fuzz(self, runs: int, seed: int = 1) -> list[bytes]:
        """The inputs that led to new blocks, and on stdout those that did not come back."""
        chance, corpus = random.Random(seed), [b"1"]
        for _ in range(runs):
            text = bytearray(chance.choice(corpus))
            for _ in range(chance.randint(1, 3)):
                place = chance.randint(0, len(text))
                text[place : place + chance.randint(0, 1)] = bytes([chance.choice(ALPHABET)])
            before = len(self.reached)
            stop = self.call(bytes(text[: ROOM // 2]))
            if stop.address != self.end:
                print(f"{bytes(text)!r} does not come back: {stop}")
            if len(self.reached) > before:
                corpus.append(bytes(text))
        return corpus


def blocks_of(guest: vmm.Guest, function: int, size: int) -> list[int]:
    """The basic blocks of a function of so many bytes."""
    code = guest.cpus[0].disassemble(size, function)
    return block_starts([one for one in code if one.address < function + size])


def main(name: str = "in4_pton", runs: str = "500", *files: str) -> int:
    """Fuzz in the context of the first system call."""
    with vmm.Guest(**settings(files)) as guest:
        guest.run(until="start_kernel", seconds=SECONDS)
        print(guest.run(until="do_syscall_64", seconds=SECONDS))
        function, size = guest.symbols.address_and_size(name)
        fuzzer = Fuzzer(guest, function, blocks_of(guest, function, size))
        for text in fuzzer.fuzz(int(runs)):
            print(f"new code by {text!r}")
        print(f"{len(fuzzer.reached)} of {len(fuzzer.points) + 1} blocks of {name}, {runs} calls")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
