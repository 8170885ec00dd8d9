"""kallsyms in RAM, of each form that Linux has had, whole and damaged."""

from __future__ import annotations

import random
import time

import pytest

from tests.support.fake_kernel import BANNER, FORMS, IMAGE_GPA, LINKED, FakeKernel
from vmm._native.memory.guestmem import GuestMemory
from vmm.errors import GuestError
from vmm.guest import kallsyms
from vmm.guest.kernelimage import kernel_paging
from vmm.guest.pagetables import PAGE_SIZE, Paging
from vmm.guest.symbolat import symbol_at
from vmm.guest.symbols import Symbols, own_paging, running_slide

SLIDE = 0x1F600000
LONG_NAME = "x" * 200
SYMBOLS = [
    ("T", "start_kernel", 0x1000),
    ("t", "do_idle", 0x1100),
    ("T", "do_sys_openat2", 0x1200),
    ("T", "alias_of_open", 0x1200),
    ("t", LONG_NAME, 0x1300),
    ("D", "jiffies", 0x250000),
    *[("t", f"handler_{n}", 0x2000 + 16 * n) for n in range(700)],
]


@pytest.mark.parametrize("slide", [0, SLIDE])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_with_and_without_kaslr(form, slide):
    kernel = FakeKernel(SYMBOLS, form, slide)
    for symbols in (
        Symbols.from_ram(kernel.memory, kernel.paging),
        Symbols.from_ram(kernel.memory),
    ):
        assert len(symbols) == len(kernel.rows)
        assert {name: symbols[name] for name in symbols} == {n: a for _, n, a in kernel.rows}
        base = LINKED + slide
        assert symbols.at(base + 0x1105) == "do_idle+0x5"
        assert symbols.at(base + 0x1200) == "do_sys_openat2"
        assert symbols.at(base + 0x250000) == "jiffies"
        assert symbols.at(base - 1) is None
        assert symbols.at(base + (8 << 20)) is None
        assert "alias_of_open" in symbols
        assert "no_such" not in symbols
        assert LONG_NAME in symbols


def test_where_the_image_lies():
    kernel = FakeKernel(SYMBOLS, slide=SLIDE)
    found = kallsyms.find(kernel.memory)
    assert found.delta == IMAGE_GPA - (LINKED + SLIDE)


def test_user_tables_of_an_isolated_kernel():
    """In user mode cr3 has tables that lack the kernel; those before them have it."""
    kernel = FakeKernel(SYMBOLS, slide=SLIDE)
    memory, root = kernel.memory, 0x20000
    memory.write(root, memory.read(kernel.paging.root, PAGE_SIZE))
    memory.write(root + PAGE_SIZE, bytes(PAGE_SIZE))
    user = kernel.paging.at(root + PAGE_SIZE)
    paging, stretches = kernel_paging(memory, user)
    assert paging.root == root
    assert [(s.gva, s.gpa, s.size) for s in stretches] == [(LINKED + SLIDE, IMAGE_GPA, 4 << 20)]
    assert Symbols.from_ram(memory, user)["do_idle"] == LINKED + SLIDE + 0x1100


def test_a_banner_in_the_log_leads_nowhere():
    kernel = FakeKernel(SYMBOLS)
    kernel.memory.write(0x1000, BANNER)  # whole, but no kernel around it
    kernel.memory.write(0x2000, BANNER.replace(b"\n", b""))
    assert Symbols.from_ram(kernel.memory)["do_idle"] == LINKED + 0x1100


def test_no_linux_there():
    memory = GuestMemory.anonymous([(0, 1 << 20)])
    with pytest.raises(GuestError, match="no symbols in guest RAM.*give a vmlinux"):
        Symbols.from_ram(memory)
    memory.write(0x8000, BANNER)
    with pytest.raises(GuestError, match="no symbols"):
        Symbols.from_ram(memory)


def test_names_that_would_write_to_a_terminal():
    kernel = FakeKernel([*SYMBOLS, ("T", "evil\x1b[2Jname", 0x1400)])
    assert symbol_at("/no/kernel", LINKED + 0x1400, kernel.memory, kernel.paging) == (
        "evil?[2Jname"
    )


def test_the_boot_watch_asks_the_kernel_itself(tmp_path):
    kernel = FakeKernel(SYMBOLS, "6.1", SLIDE)
    path = tmp_path / "vmlinuz-6"
    path.write_bytes(b"a bzImage")
    (tmp_path / "System.map-6").write_text(f"{LINKED + SLIDE:x} T wrong\n")
    for address in (LINKED + SLIDE + 0x1105, IMAGE_GPA + 0x1105):
        assert symbol_at(str(path), address, kernel.memory, kernel.paging) == "do_idle+0x5"
    # Before the kernel has its tables.
    early = Paging(0, 0, 0, cr0=0)
    assert symbol_at(str(path), IMAGE_GPA, kernel.memory, early) is None
    assert symbol_at(str(path), LINKED + SLIDE, kernel.memory, early) == "wrong"


@pytest.mark.parametrize("slide", [0, SLIDE])
@pytest.mark.parametrize("own", [True, False], ids=["kallsyms", "tables alone"])
def test_a_map_of_the_link_and_a_kernel_that_moved(tmp_path, slide, own):
    kernel = FakeKernel(SYMBOLS, "6.12", slide)
    if not own:
        kernel.memory.write(kernel.kallsyms_gpa, bytes(len(kernel.kallsyms)))
    path = tmp_path / "System.map"
    lines = [f"{a - slide if a > LINKED else a:016x} {t} {n}\n" for t, n, a in kernel.rows]
    path.write_text("".join(lines))
    symbols = Symbols.from_map(str(path))
    symbols.slide = running_slide(symbols, kernel.memory, kernel.paging)
    assert symbols.slide == slide
    assert {name: symbols[name] for name in symbols} == {n: a for _, n, a in kernel.rows}
    assert symbols.at(LINKED + slide + 0x1105) == "do_idle+0x5"


def test_damage_is_an_error_and_takes_no_time():
    """Bytes of the tables changed at random: a wrong name, or none; never anything else."""
    chance = random.Random(5)
    kernel = FakeKernel(SYMBOLS, "6.1")
    started = time.process_time()
    for _ in range(20):
        kernel.memory.write(kernel.kallsyms_gpa, kernel.kallsyms)
        for _ in range(chance.choice((1, 4, 500))):
            at = kernel.kallsyms_gpa + chance.randrange(len(kernel.kallsyms))
            kernel.memory.write(at, bytes([chance.randrange(256)]))
        try:
            symbols = Symbols.from_ram(kernel.memory, kernel.paging)
            symbols.at(LINKED + 0x1105)
            symbols.get("do_idle")
        except GuestError:
            continue
    assert time.process_time() - started < 20


@pytest.mark.parametrize("filler", [b"\0", b"\xff", b"\x01", kallsyms.DIGITS])
def test_ram_full_of_what_the_search_looks_for(filler):
    kernel = FakeKernel(SYMBOLS)
    size = 8 << 20
    kernel.memory.write(4 << 20, (filler * (size // len(filler) + 1))[:size])
    for gpa in range(4 << 20, 12 << 20, 1 << 18):
        kernel.memory.write(gpa, BANNER)
    started = time.process_time()
    with pytest.raises(GuestError, match="no symbols"):
        Symbols.from_ram(kernel.memory, kernel.paging)
    assert time.process_time() - started < 10


@pytest.mark.parametrize("levels", [4, 5])
def test_tables_of_a_kernel_whose_processors_nobody_asks(levels):
    kernel = FakeKernel([("D", "init_top_pgt", 0x380000)], slide=SLIDE, levels=levels)
    symbols = Symbols.from_ram(kernel.memory)
    assert own_paging(kernel.memory, symbols) is None
    top = kernel.memory.read(kernel.paging.root, PAGE_SIZE)
    kernel.memory.write(kernel.gpa(symbols["init_top_pgt"]), top)
    found = own_paging(kernel.memory, symbols)
    assert found is not None
    assert found == kernel.paging.at(IMAGE_GPA + 0x380000)


def test_symbols_by_where_the_image_is():
    kernel = FakeKernel(SYMBOLS, slide=SLIDE)
    assert Symbols.from_ram(kernel.memory, image=IMAGE_GPA)["do_idle"] == LINKED + SLIDE + 0x1100
