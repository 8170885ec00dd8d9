"""Parts of a Guest that need no KVM: patches, keywords, instruction lengths."""

from __future__ import annotations

import pytest

from vmm._native.console.keptport import KeptPort
from vmm._native.memory.guestmem import GuestMemory
from vmm.debug.consoles import KeptConsole
from vmm.debug.keywords import config_of_environment, config_of_keywords
from vmm.debug.onebyte import is_one_byte
from vmm.debug.patches import Patches
from vmm.errors import ConfigError


def memory_with(data: bytes) -> GuestMemory:
    memory = GuestMemory([(0, 0x4000)])
    memory.write(0x1000, data)
    return memory


def test_patches_are_hidden_from_reads_that_cross_them():
    memory = memory_with(b"abcdef")
    patches = Patches(memory)
    patches.add(0x1001, b"\xe6\xe0")
    patches.add(0x1005, b"\xcc")
    patches.put()
    assert memory.read(0x1000, 6) == b"a\xe6\xe0de\xcc"
    for first in range(6):
        for length in range(1, 7 - first):
            assert patches.read(0x1000 + first, length) == b"abcdef"[first : first + length]
    patches.take_all_out()
    assert memory.read(0x1000, 6) == b"abcdef"


def test_what_the_guest_wrote_over_a_patch_stays():
    memory = memory_with(b"abcdef")
    patches = Patches(memory)
    patch = patches.add(0x1001, b"\xe6\xe0")
    patches.put()
    memory.write(0x1002, b"X")
    assert patches.read(0x1000, 4) == b"abXd"
    patches.remove(patch)
    assert memory.read(0x1000, 6) == b"abXdef"


def test_a_write_takes_patches_out_and_they_come_back_around_it():
    memory = memory_with(b"abcdef")
    patches = Patches(memory)
    patches.add(0x1001, b"\xcc")
    patches.put()
    patches.lift(0x1000, 3)
    memory.write(0x1000, b"xyz")
    patches.put()
    assert (memory.read(0x1000, 3), patches.read(0x1000, 3)) == (b"x\xccz", b"xyz")


def test_a_view_takes_all_out_whenever_the_guest_stands_still():
    memory = memory_with(b"abcdef")
    patches = Patches(memory)
    patches.add(0x1001, b"\xcc")
    patches.put()
    patches.stand_still()
    assert memory.read(0x1001, 1) == b"\xcc"
    patches.show_memory()
    assert memory.read(0x1001, 1) == b"b"
    patches.put()
    patches.stand_still()
    assert memory.read(0x1001, 1) == b"b"


@pytest.mark.parametrize(
    ("code", "long_mode", "one"),
    [
        ("55", True, True), ("90", True, True), ("c3", True, True), ("f30f1efa", True, False),
        ("4889e5", True, False), ("40", True, False), ("40", False, True), ("83c001", False, False),
        ("6a00", True, False), ("9a", True, False), ("cd80", True, False),
    ],
)  # fmt: skip
def test_instructions_of_one_byte(code, long_mode, one):
    assert is_one_byte(bytes.fromhex(code)[0], long_mode) is one


def test_keywords_are_the_variables(tmp_path):
    config, kept = config_of_keywords(
        {
            "kernel": tmp_path / "k", "system_image": [tmp_path / "a,b", f"{tmp_path}/c,serial=x"],
            "memory": 8 << 20, "serial": "null", "initramfs": None,
        }
    )  # fmt: skip
    assert (config.kernel_path, config.cpu_count, config.memory.size) == (
        str(tmp_path / "k"), 1, 8 << 20,
    )  # fmt: skip
    assert [image.path for image in config.system_images] == [f"{tmp_path}/a,b", f"{tmp_path}/c"]
    assert config.system_images[1].serial == "x"
    assert (kept, config.initramfs_path, config.memory.shared) == ({"console"}, None, True)


def test_a_memory_setting_is_taken_as_it_is():
    config, _ = config_of_keywords({"kernel": "k", "memory": "size=64M,shared=off"})
    assert (config.memory.size, config.memory.shared) == (64 << 20, False)


def test_unknown_keywords_are_told_with_the_nearest():
    with pytest.raises(ConfigError, match=r"'memmory' \(did you mean memory\?\)"):
        config_of_keywords({"kernel": "k", "memmory": 1})


def test_the_environment_keeps_consoles_that_it_does_not_name():
    prefix = "VLLMD_HYPERVISOR_"
    environment = {f"{prefix}KERNEL_FILEPATH": "k", f"{prefix}CONSOLE": "pty", "TERM": "x"}
    config, kept = config_of_environment(environment)
    assert (config.console.kind, config.serial.kind, kept) == ("pty", "null", {"serial"})


def test_a_kept_console_lets_the_oldest_go():
    port = KeptPort()
    for letter in b"abcdefgh":
        port.guest_write(bytes([letter]) * (4 << 20))
    start, data = port.window()
    assert start + len(data) == port.end == 32 << 20
    assert len(data) <= port.limit
    assert data.endswith(b"h" * (4 << 20))
    assert port.dropped == start
    port.guest_write(b"z" * (64 << 20))
    assert len(port.window()[1]) <= port.limit
    assert port.end == 96 << 20


def test_input_waits_for_room_in_its_order():
    port = KeptPort()
    text = bytes(range(256)) * 100
    port.type(text[:100])
    port.type(text[100:])
    got = b""
    while data := port.guest_read(1000):
        got += data
    assert got == text


def test_words_are_expected_one_behind_the_other():
    console = KeptConsole("serial")
    console.port.guest_write(b"one two one")
    assert console.expect("one").start() == 0
    assert console.expect("one")
    with pytest.raises(RuntimeError, match="its guest is closed"):
        console.expect("one")
    assert console.text == "one two one"
