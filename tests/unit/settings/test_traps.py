"""What environment files, shells, docker, Kubernetes and Windows do to settings."""

from __future__ import annotations

import pytest

from tests.unit.settings.test_config import config, environment, problems
from vmm.errors import ConfigError, setting_of
from vmm.settings.config import PREFIX, SETTINGS, Config, identity
from vmm.settings.parse import pci_address

DIGITS = "9" * 5000


@pytest.mark.parametrize("end", ["\r", "\n", "\r\n", "\n\n"])
def test_line_ends_are_no_part_of_a_value(end):
    found = config(
        KERNEL_FILEPATH=f"/boot/vmlinuz{end}", CMDLINE=f"console=hvc0{end}", CPU_COUNT=f"2{end}",
        NAME=f"vm{end}", DEBUG=f"off{end}", CONSOLE=f"pty{end}", SERIAL=f"file=/s{end}",
        MEMORY_CONFIG=f"size=1G,shared=off{end}", SYSTEM_IMAGE_FILEPATH=f'"/a.img"{end}',
        DEVICE_FILEPATH_LIST=f"01:00.0{end}", STOP_TIMEOUT_SECONDS=f"5{end}",
        INITRAMFS_FILEPATH=f"/i{end}", LOG_FILEPATH=f"journald{end}", GPUDIRECT_CLIQUE=f"3{end}",
    )  # fmt: skip
    assert found.kernel_path == "/boot/vmlinuz"
    assert (found.cmdline, found.cpu_count, found.name) == ("console=hvc0", 2, "vm")
    assert (found.debug, found.console.kind, found.serial.path) == (False, "pty", "/s")
    assert not found.memory.shared
    assert [image.path for image in found.system_images] == ["/a.img"]
    assert found.log_destinations == ("journald",)
    assert (found.initramfs_path, found.gpudirect_clique) == ("/i", 3)
    assert found.stop_timeout_seconds == 5
    assert any("line end" in warning for warning in found.warnings)


def test_a_value_of_nothing_but_a_line_end_is_not_set():
    assert f"{PREFIX}KERNEL_FILEPATH is not set" in problems(KERNEL_FILEPATH="\r")
    assert config(INITRAMFS_FILEPATH="\r\n").initramfs_path is None


def test_blanks_around_commas_and_at_the_ends():
    found = config(
        SYSTEM_IMAGE_FILEPATH=" /a.img , /b c.img ,\t/d.img ", LOG_FILEPATH="/x, journald",
        MEMORY_CONFIG=" size=1G , shared = off ", DEVICE_FILEPATH_LIST="01:00.0 , 01:00.1",
        KERNEL_FILEPATH=" /k ",
    )  # fmt: skip
    assert [image.path for image in found.system_images] == ["/a.img", "/b c.img", "/d.img"]
    assert found.log_destinations == ("/x", "journald")
    assert (found.memory.size, found.memory.shared) == (1 << 30, False)
    assert [device.value for device in found.devices] == ["0000:01:00.0", "0000:01:00.1"]
    assert found.kernel_path == "/k"


@pytest.mark.parametrize(
    ("text", "images"),
    [
        ('"/a,b.img"', ("/a,b.img",)),
        ('"/a,b.img","/c.img"', ("/a,b.img", "/c.img")),
        ('/c.img , "/a,b.img"', ("/c.img", "/a,b.img")),
        ('" /a.img "', ("/a.img",)),
        ('"/a.img" , " /b.img"', ("/a.img", " /b.img")),
        ('"/a.img"', ("/a.img",)),
        ("'/a.img'", ("/a.img",)),
        ('/x/"a,b".img', ("/x/a,b.img",)),
        ("'\"/a,b.img\"'", ('/a,b.img',)),
    ],
)  # fmt: skip
def test_quotes_protect_commas_wherever_they_stand(text, images):
    for name in ("SYSTEM_IMAGE_FILEPATH", "CONFIG_IMAGE_FILEPATH"):
        found = config(**{name: text})
        given = (found.system_images, found.config_images)[name[0] == "C"]
        assert tuple(image.path for image in given) == images
    assert identity({PREFIX + "SYSTEM_IMAGE_FILEPATH": text})[1] == images[0]


def test_quotes_around_other_lists_are_dockers():
    found = config(MEMORY_CONFIG='"size=1G,shared=off"', DEVICE_FILEPATH_LIST='"01:00.0,02:00.0"')
    assert not found.memory.shared
    assert len(found.devices) == 2
    assert "one path" in config(SYSTEM_IMAGE_FILEPATH='"/a.img,/b.img"').warnings[0]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("CPU_COUNT", DIGITS), ("CPU_COUNT", "0" * 5000 + "1"), ("CPU_COUNT", "1_0"),
        ("CPU_COUNT", "²"), ("CPU_COUNT", "٤"), ("CPU_COUNT", "+4"),
        ("MEMORY_CONFIG", f"size={DIGITS}"), ("MEMORY_CONFIG", f"size={DIGITS}G"),
        ("MEMORY_CONFIG", "size=²G"), ("MEMORY_CONFIG", f"size=1G,host_numa_node={DIGITS}"),
        ("GPUDIRECT_CLIQUE", DIGITS), ("GPUDIRECT_CLIQUE", "٣"),
        ("STOP_TIMEOUT_SECONDS", DIGITS), ("STOP_TIMEOUT_SECONDS", "1" + "0" * 400),
        *[("STOP_TIMEOUT_SECONDS", text) for text in
          ("nan", "inf", "-inf", "1e400", "1_000", "٣", "1e1", "0x10", "1.2.3", ".", "86400.1")],
        ("DEVICE_FILEPATH_LIST", f"/dev/vfio/{DIGITS}"), ("DEVICE_FILEPATH_LIST", "/dev/vfio/²"),
        ("DEVICE_FILEPATH_LIST", "/dev/vfio/devices/vfio²"),
        ("DEVICE_FILEPATH_LIST", f"{DIGITS}:01:00.0"),
    ],
)  # fmt: skip
def test_numbers_that_are_none_here(name, text):
    told = problems(**{name: text})
    assert setting_of(told) == PREFIX + name
    assert "accepted: " in told
    assert len(told) < 700


def test_seconds_with_a_point():
    assert config(STOP_TIMEOUT_SECONDS="2.5").stop_timeout_seconds == 2.5
    assert config(STOP_TIMEOUT_SECONDS="86400").stop_timeout_seconds == 86400


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("0000:01:00.0", "0000:01:00.0"), ("01:00.0", "0000:01:00.0"), ("C1:1F.7", "0000:c1:1f.7"),
        ("10000:e1:00.0", "10000:e1:00.0"), ("10000:E1:00.0", "10000:e1:00.0"),
        ("0010000:e1:00.0", "10000:e1:00.0"), ("0:01:00.0", "0000:01:00.0"),
        ("ffffffff:01:00.0", "ffffffff:01:00.0"),
        ("01:00", None), ("1:00.0", None), ("0000:01:00", None), ("0000:01:00.00", None),
        (":01:00.0", None), ("0000.01.00.0", None), ("0000:01:0g.0", None), ("", None),
        ("123456789:01:00.0", None), ("0000:01:00:0", None), ("a:b:01:00.0", None),
    ],
)  # fmt: skip
def test_pci_addresses(text, address):
    assert pci_address(text) == address


def test_devices_of_long_domains_by_their_folder():
    (device,) = config(DEVICE_FILEPATH_LIST="/sys/bus/pci/devices/10000:e1:00.0").devices
    assert (device.form, device.value) == ("sysfs", "/sys/bus/pci/devices/10000:e1:00.0")


KUBERNETES = {
    "SERVICE_HOST": "10.0.0.1", "SERVICE_PORT": "80", "SERVICE_PORT_HTTP": "80",
    "PORT": "tcp://10.0.0.1:80", "PORT_80_TCP": "tcp://10.0.0.1:80", "PORT_80_TCP_PROTO": "tcp",
    "PORT_80_TCP_PORT": "80", "PORT_80_TCP_ADDR": "10.0.0.1", "PORT_53_UDP": "udp://10.0.0.1:53",
    "PORT_53_UDP_ADDR": "10.0.0.1", "PORT_9_SCTP_PROTO": "sctp",
}  # fmt: skip


@pytest.mark.parametrize("service", ["", "WEB_", "WEB_2_"])
def test_what_kubernetes_sets_for_a_service_of_our_name(service):
    found = config(**{service + name: value for name, value in KUBERNETES.items()})
    assert len(found.warnings) == 1
    assert "Kubernetes" in found.warnings[0]
    assert "10 more" in found.warnings[0]


@pytest.mark.parametrize("name", KUBERNETES)
def test_each_of_them_alone(name):
    assert "ignored" in config(**{name: KUBERNETES[name]}).warnings[0]


@pytest.mark.parametrize(
    "name", ["SERIAL_PORT", "PORT_X_TCP", "PORT_80_HTTP", "SERVICE", "SERVICE_NAME", "PORTS"]
)
def test_names_that_only_look_like_it_are_errors(name):
    assert f"{PREFIX}{name} is not a known setting" in problems(**{name: "1"})


def test_a_value_that_is_very_long_is_not_repeated():
    told = problems(CMDLINE="x" * 70000)
    assert len(told) < 400
    assert "70000" in told
    for setting in SETTINGS:
        if setting.name != "DEBUG":
            text = "\x00$" + "y" * 70000
            assert len(problems(**{setting.name: text})) < 2000, setting.name


def test_nothing_is_accepted_twice_and_sizes_are_as_given():
    assert problems(MEMORY_CONFIG="shared=on").count("accepted:") == 1
    told = problems(MEMORY_CONFIG="size=1M")
    assert "size=1M: from 4M to 8T" in told
    assert "1048576" not in told
    assert "page size 2M" in problems(MEMORY_CONFIG="size=5M,hugepages=on")
    assert "hugepage_size=3M is" in problems(MEMORY_CONFIG="size=9M,hugepages=on,hugepage_size=3M")


def test_a_bad_name_or_image_names_its_own_variable():
    for name, value in (("NAME", "../x"), ("SYSTEM_IMAGE_FILEPATH", '"/a')):
        with pytest.raises(ConfigError) as caught:
            identity({PREFIX + name: value})
        assert setting_of(str(caught.value)) == PREFIX + name


def test_paths_that_are_not_utf8_are_kept():
    found = Config.from_env({**environment(), PREFIX + "SYSTEM_IMAGE_FILEPATH": "/\udcff.img"})
    assert [image.path for image in found.system_images] == ["/\udcff.img"]
