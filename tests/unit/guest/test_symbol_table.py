"""What one asks a table of symbols, wherever it is from."""

from __future__ import annotations

import pytest

from tests.unit.guest.test_symbols import BASE, FUNC, OBJECT, elf
from vmm._native.memory.guestmem import GuestMemory
from vmm.errors import GuestError
from vmm.guest.pagetables import Paging
from vmm.guest.symbols import Symbols

ROWS = [
    ("sys_read", BASE + 0x40, FUNC),
    ("_text", BASE, 0),
    ("sys_write", BASE + 0x90, FUNC),
    ("twin", BASE + 0x200, FUNC),
    ("twin", BASE + 0x100, FUNC),
    ("jiffies", BASE + 0x300, OBJECT),
]


@pytest.fixture
def symbols(tmp_path) -> Symbols:
    path = tmp_path / "vmlinux"
    path.write_bytes(elf(ROWS))
    return Symbols.from_elf(str(path))


def test_by_name(symbols):
    assert symbols["sys_read"] == BASE + 0x40
    assert symbols["twin"] == BASE + 0x100
    assert symbols.get("nothing") is None
    assert symbols.get("nothing", 5) == 5
    assert "jiffies" in symbols
    assert "nothing" not in symbols
    assert list(symbols) == ["_text", "sys_read", "sys_write", "twin", "jiffies"]
    assert len(symbols) == 6


@pytest.mark.parametrize(("wrong", "near"), [("sys_raed", "sys_read"), ("write", "sys_write")])
def test_an_unknown_name_is_told_with_those_near_it(symbols, wrong, near):
    with pytest.raises(KeyError, match=f"{wrong}.*there are.*{near}"):
        symbols[wrong]


def test_resolve(symbols):
    assert symbols.resolve("sys_read") == BASE + 0x40
    assert symbols.resolve("sys_read+0x10") == BASE + 0x50
    assert symbols.resolve("sys_read + 16") == BASE + 0x50
    assert symbols.resolve(0x1234) == 0x1234
    with pytest.raises(ValueError, match="'1x' is no number"):
        symbols.resolve("sys_read+1x")
    with pytest.raises(KeyError, match="no symbol 'nothing'"):
        symbols.resolve("nothing+1")


def test_search_by_pattern(symbols):
    assert symbols.search("sys_*") == {"sys_read": BASE + 0x40, "sys_write": BASE + 0x90}
    assert symbols.search("nothing*") == {}


def test_sizes(symbols, tmp_path):
    assert symbols.address_and_size("sys_read") == (BASE + 0x40, 0x50)
    assert symbols.address_and_size("jiffies") == (BASE + 0x300, 0)
    path = tmp_path / "System.map"
    path.write_text(f"{BASE:x} T one\n{BASE:x} T alias\n{BASE + 0x30:x} D two\n")
    assert Symbols.from_map(str(path)).address_and_size("one") == (BASE, 0x30)


def test_a_slide_moves_what_is_the_kernels(symbols):
    symbols.slide = 0x200000
    assert symbols["sys_read"] == BASE + 0x200040
    assert symbols.at(BASE + 0x200041) == "sys_read+0x1"
    assert symbols.nearest(BASE + 0x200041) == ("sys_read", BASE + 0x200040)
    assert symbols.search("sys_r*") == {"sys_read": BASE + 0x200040}
    assert "moved by 0x200000" in repr(symbols)


def test_low_addresses_of_a_linux_have_no_name(tmp_path):
    """Only what is per CPU has small numbers, which are no addresses."""
    path = tmp_path / "System.map"
    path.write_text(f"0000000000001000 A per_cpu_thing\n{BASE:x} T _text\n")
    symbols = Symbols.from_map(str(path))
    assert symbols["per_cpu_thing"] == 0x1000
    assert symbols.at(0x1004) is None
    low = tmp_path / "tiny"
    low.write_text("0000000000100000 T _start\n")
    assert Symbols.from_map(str(low)).at(0x100004) == "_start+0x4"


def test_files_that_have_none(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"nothing")
    with pytest.raises(GuestError, match="has no symbol table.*not stripped"):
        Symbols.from_elf(str(path))
    with pytest.raises(GuestError, match="cannot be read|no symbols in it"):
        Symbols.from_map(str(path))
    path.write_bytes(elf(ROWS)[:100])
    with pytest.raises(GuestError, match="file.*(cannot be read|has no symbol table)"):
        Symbols.from_elf(str(path))
    with pytest.raises(GuestError, match="absent"):
        Symbols.from_map(str(tmp_path / "absent"))


def test_the_best_source(tmp_path):
    """An ELF kernel's own, then a System.map with something in it, then RAM."""
    memory = GuestMemory.anonymous([(0, 1 << 20)])
    paging = Paging(0, 0, 0, cr0=0)
    kernel = tmp_path / "vmlinuz-6"
    kernel.write_bytes(elf(ROWS))
    assert Symbols.of(str(kernel), memory, paging).source == str(kernel)
    kernel.write_bytes(b"a bzImage")
    map_file = tmp_path / "System.map-6"
    map_file.write_text(f"{BASE:x} T one\n")
    assert Symbols.of(str(kernel), memory, paging).source == str(map_file)
    map_file.write_text("ffffffffffffffff B The real System.map is in the -dbg package\n")
    with pytest.raises(GuestError, match="no symbols in guest RAM"):
        Symbols.of(str(kernel), memory, paging)
