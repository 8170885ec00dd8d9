"""What Python packs by hand, against offsetof and sizeof from the kernel's own headers."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from devices import pvpanic
from devices.virtio import block, console
from vmm import vm
from vmm.boot import params
from vmm.boot.bzimage import CMDLINE_SIZE, SETUP_HEADER_OFFSET
from vmm.debug import abilities, exitnames, msrhooks, pagewatch
from vmm.host import kvm, placement

# The kernel's names of exitnames.REASONS, in their order.
EXITS = dict(
    zip(
        (
            "UNKNOWN", "EXCEPTION", "HYPERCALL", "DEBUG", "HLT", "IRQ_WINDOW_OPEN", "SHUTDOWN",
            "FAIL_ENTRY", "INTR", "INTERNAL_ERROR", "SYSTEM_EVENT",
        ),
        exitnames.REASONS,
        strict=True,
    )
)  # fmt: skip
CAPABILITIES = {
    **{name: number for number, name in kvm.REQUIRED_CAPS.items()},
    "COALESCED_MMIO": vm.CAP_COALESCED_MMIO,
    "COALESCED_PIO": vm.CAP_COALESCED_PIO,
    "MAX_VCPUS": kvm.CAP_MAX_VCPUS,
    "NR_MEMSLOTS": pagewatch.CAP_NR_MEMSLOTS,
    "NR_VCPUS": kvm.CAP_NR_VCPUS,
    "SET_GUEST_DEBUG2": abilities.CAP_GUEST_DEBUG2,
    "X2APIC_API": vm.CAP_X2APIC_API,
    "X86_DISABLE_EXITS": placement.CAP_DISABLE_EXITS,
    "X86_MSR_FILTER": msrhooks.CAP_MSR_FILTER,
    "X86_USER_SPACE_MSR": msrhooks.CAP_USER_SPACE_MSR,
}
BOOT = "struct boot_params"
BLK = "struct virtio_blk_config"
EXPECTED = {
    "PVPANIC_PANICKED": pvpanic.PANICKED,
    "PVPANIC_CRASH_LOADED": pvpanic.CRASH_LOADED,
    f"offsetof({BOOT}, acpi_rsdp_addr)": params.ACPI_RSDP_ADDR,
    f"offsetof({BOOT}, e820_entries)": params.E820_ENTRIES,
    f"offsetof({BOOT}, e820_table)": params.E820_TABLE,
    f"offsetof({BOOT}, hdr)": SETUP_HEADER_OFFSET,
    f"offsetof({BOOT}, hdr.type_of_loader)": params.TYPE_OF_LOADER,
    f"offsetof({BOOT}, hdr.ramdisk_image)": params.RAMDISK_IMAGE,
    f"offsetof({BOOT}, hdr.ramdisk_size)": params.RAMDISK_SIZE,
    f"offsetof({BOOT}, hdr.cmd_line_ptr)": params.CMD_LINE_PTR,
    f"offsetof({BOOT}, hdr.cmdline_size)": CMDLINE_SIZE,
    "KVM_EXIT_IO": exitnames.EXIT_IO,
    "KVM_EXIT_MMIO": exitnames.EXIT_MMIO,
    "KVM_EXIT_X86_RDMSR": exitnames.EXIT_RDMSR,
    "KVM_EXIT_X86_WRMSR": exitnames.EXIT_WRMSR,
    **{f"KVM_EXIT_{name}": number for name, number in EXITS.items()},
    **{f"KVM_CAP_{name}": number for name, number in CAPABILITIES.items()},
    f"sizeof({BOOT})": params.ZERO_PAGE_SIZE,
    "sizeof(struct boot_e820_entry)": 20,
    f"offsetof({BLK}, wce)": block.WRITEBACK,
    f"offsetof({BLK}, unused1)": 0x39,
    "sizeof(struct virtio_console_config)": console.CONFIG.size,
    "1 << VIRTIO_BLK_F_SEG_MAX": block.F_SEG_MAX,
    "1 << VIRTIO_BLK_F_RO": block.F_RO,
    "1 << VIRTIO_BLK_F_BLK_SIZE": block.F_BLK_SIZE,
    "1 << VIRTIO_BLK_F_FLUSH": block.F_FLUSH,
    "1 << VIRTIO_BLK_F_TOPOLOGY": block.F_TOPOLOGY,
    "1 << VIRTIO_BLK_F_CONFIG_WCE": block.F_CONFIG_WCE,
    "1 << VIRTIO_BLK_F_MQ": block.F_MQ,
    "1 << VIRTIO_BLK_F_DISCARD": block.F_DISCARD,
    "1 << VIRTIO_BLK_F_WRITE_ZEROES": block.F_WRITE_ZEROES,
    "1 << VIRTIO_CONSOLE_F_SIZE": console.F_SIZE,
}
SOURCE = """
#include <stddef.h>
#include <stdio.h>
#include <misc/pvpanic.h>
#include <asm/bootparam.h>
#include <linux/kvm.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_console.h>
int main(void) { %s return 0; }
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc (apt-get install gcc libc6-dev)")
    folder = tmp_path_factory.mktemp("abi")
    lines = "".join(f'printf("%ld\\n", (long)({expression}));' for expression in EXPECTED)
    (folder / "probe.c").write_text(SOURCE % lines)
    subprocess.run(["gcc", "-o", folder / "probe", folder / "probe.c"], check=True)
    out = subprocess.run([folder / "probe"], check=True, capture_output=True, text=True).stdout
    return dict(zip(EXPECTED, map(int, out.split()), strict=True))


@pytest.mark.parametrize("expression", EXPECTED)
def test_number(found, expression):
    assert found[expression] == EXPECTED[expression]


def test_block_configuration_has_the_specification_s_size():
    # up to and with write_zeroes_may_unmap and its padding
    assert block.CONFIG.size == 0x3C
