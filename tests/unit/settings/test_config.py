"""Settings: defaults, every form of each value, every refusal, all problems at once."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.errors import ConfigError
from vmm.settings.config import PREFIX, SETTINGS, Config, identity, settings_in_use
from vmm.settings.parse import BadValue, parse_size, split_list

GIB = 1 << 30
REQUIRED = {
    "KERNEL_FILEPATH": "/boot/vmlinuz",
    "SYSTEM_IMAGE_FILEPATH": "/vm/system.img",
    "CONFIG_IMAGE_FILEPATH": "/vm/config.img",
}


def environment(**settings: str) -> dict[str, str]:
    return {PREFIX + name: value for name, value in {**REQUIRED, **settings}.items()}


def config(**settings: str) -> Config:
    return Config.from_env(environment(**settings))


def problems(**settings: str) -> str:
    with pytest.raises(ConfigError) as caught:
        config(**settings)
    return "\n".join(caught.value.problems)


def test_defaults():
    found = config()
    assert found.cpu_count == 4
    assert (found.memory.size, found.memory.shared, found.memory.hugepages) == (
        16 * GIB,
        True,
        False,
    )
    assert found.devices == ()
    assert found.cmdline == ""
    assert found.log_destinations == ("/dev/stdout",)
    assert not found.debug
    assert found.name is None
    assert (found.console.kind, found.serial.kind) == ("tty", "null")
    assert found.stop_timeout_seconds == 25
    assert found.warnings == ()


def test_the_nine_variables_and_ours():
    assert [setting.name for setting in SETTINGS][:9] == [
        "KERNEL_FILEPATH", "SYSTEM_IMAGE_FILEPATH", "CONFIG_IMAGE_FILEPATH", "CPU_COUNT",
        "MEMORY_CONFIG", "DEVICE_FILEPATH_LIST", "CMDLINE", "LOG_FILEPATH", "DEBUG",
    ]  # fmt: skip


def test_lists_and_quotes():
    found = config(SYSTEM_IMAGE_FILEPATH='/a.img,"/b,c.img"', LOG_FILEPATH="/var/log/x,journald")
    assert [image.path for image in found.system_images] == ["/a.img", "/b,c.img"]
    assert found.log_destinations == ("/var/log/x", "journald")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4194304", 4 << 20),
        ("512M", 512 << 20),
        ("512m", 512 << 20),
        ("8g", 8 * GIB),
        ("1T", 1 << 40),
    ],
)
def test_memory_sizes(text, size):
    assert config(MEMORY_CONFIG=f"size={text}").memory.size == size


def test_memory_keys():
    memory = config(
        MEMORY_CONFIG="size=8G,shared=no,hugepages=1,hugepage_size=1G,prefault=TRUE,thp=off,"
        "host_numa_node=1"
    ).memory
    assert not memory.shared
    assert memory.hugepages
    assert memory.hugepage_size == GIB
    assert memory.prefault
    assert not memory.thp
    assert memory.host_numa_node == 1


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("512M", "unknown key '512M'"),
        ("shared=on", "size is missing"),
        ("size=", "size is missing"),
        ("size=12Q", "'12Q' is not a size"),
        ("size=-1G", "is not a size"),
        ("size=1.5G", "is not a size"),
        ("size=1M", "from 4M"),
        ("size=4097K", "no multiple of the page size"),
        ("size=1G,sharde=on", "did you mean shared?"),
        ("size=1G,shared=maybe", "neither on nor off"),
        ("size=1G,hugepage_size=2M", "without hugepages=on"),
        ("size=1G,hugepages=on,hugepage_size=3M", "power of two"),
        ("size=1536M,hugepages=on,hugepage_size=1G", "no multiple of the page size"),
        ("size=1G,shared=on,mergeable=on", "private memory only"),
        ("size=1G,host_numa_node=x", "whole number"),
        ("size=1G,,shared=on", "an item of the list is empty"),
    ],
)
def test_memory_refusals(text, told):
    assert told in problems(MEMORY_CONFIG=text)


@pytest.mark.parametrize("text", ["0", "-1", "four", "4.0", "99999", "4 cpus", "0x4", "٤"])
def test_bad_cpu_counts(text):
    found = problems(CPU_COUNT=text)
    assert f"{PREFIX}CPU_COUNT={text}" in found
    assert "accepted" in found


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("KERNEL_FILEPATH", "$HOME/vmlinuz", "not expanded"),
        ("KERNEL_FILEPATH", "~/vmlinuz", "not expanded"),
        ("KERNEL_FILEPATH", "%h/vmlinuz", "systemd expands"),
        ("SYSTEM_IMAGE_FILEPATH", "/a,,/b", "empty"),
        ("SYSTEM_IMAGE_FILEPATH", '/a,"/b', "not closed"),
        ("CMDLINE", "console=ttyS0 näh", "ASCII"),
        ("CMDLINE", "x" * 65536, "at most 65535"),
        ("CONSOLE", "vga", "is not tty"),
        ("CONSOLE", "file=", "is not tty"),
        ("CONSOLE", "file=/a,b", "quote a path's comma"),
        ("CONSOLE", "file=/a,max=1K", "at least 64K"),
        ("CONSOLE", "file=/a,max=1M,max=2M", "twice"),
        ("CONSOLE", "file=/a,keep=100", "from 0 to 99"),
        ("SERIAL", "socket=/a,max=1M", "a socket takes no options"),
        ("SERIAL", "tty=/dev/tty1", "is not tty"),
        ("STOP_TIMEOUT_SECONDS", "soon", "number of seconds"),
        ("STOP_TIMEOUT_SECONDS", "-1", "number of seconds"),
        ("STOP_TIMEOUT_SECONDS", "nan", "number of seconds"),
        ("NAME", "../x", "letters"),
        ("NAME", "a/b", "letters"),
        ("NAME", "x" * 65, "letters"),
        ("DEVICE_FILEPATH_LIST", "/dev/vfio/noiommu-0", "without an IOMMU"),
        ("DEVICE_FILEPATH_LIST", "0000:01:00", "is not /dev/vfio"),
    ],
)
def test_refusals_name_variable_and_value(name, text, told):
    found = problems(**{name: text})
    assert PREFIX + name in found
    assert told in found


def test_every_problem_at_once():
    with pytest.raises(ConfigError) as caught:
        Config.from_env(
            {PREFIX + "CPU_COUNT": "0", PREFIX + "MEMORY_CONFIG": "x", PREFIX + "CPUS": "1"}
        )
    told = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 6
    for name in (*REQUIRED, "CPU_COUNT", "MEMORY_CONFIG", "CPUS"):
        assert PREFIX + name in told


def test_unknown_name_with_the_nearest():
    assert f"did you mean {PREFIX}CPU_COUNT?" in problems(CPU_COUNTS="2")


def test_export_in_an_environment_file():
    with pytest.raises(ConfigError, match="takes no 'export'"):
        Config.from_env({**environment(), f"export {PREFIX}DEBUG": "1"})


def test_other_variables_are_none_of_our_business():
    Config.from_env({**environment(), "VLLMD_OTHER": "x", "PATH": "/bin"})


def test_devices_by_form():
    found = config(
        DEVICE_FILEPATH_LIST="/dev/vfio/10,/sys/bus/pci/devices/0000:01:00.0,0000:02:00.1,"
        "/dev/vfio/devices/vfio3"
    )
    assert [device.form for device in found.devices] == ["group", "sysfs", "bdf", "cdev"]


def test_traps_of_environment_files():
    found = config(KERNEL_FILEPATH='"/boot/vmlinuz"', LOG_FILEPATH="/var/log/vm # here")
    assert found.kernel_path == "/boot/vmlinuz"
    assert len(found.warnings) == 2
    quoted = config(CMDLINE='"console=hvc0"')
    assert quoted.cmdline == '"console=hvc0"'
    assert "passed on" in quoted.warnings[0]


@pytest.mark.parametrize(
    ("text", "debug"), [("1", True), ("yes", True), ("0", False), ("off", False)]
)
def test_debug(text, debug):
    assert config(DEBUG=text).debug is debug


@pytest.mark.parametrize(
    ("text", "attach"), [("on", True), ("Yes", True), ("1", True), ("off", False), ("0", False)]
)
def test_attach(text, attach):
    assert config(ATTACH=text).attach is attach


def test_identity_needs_no_more_than_a_name_or_an_image():
    assert identity({PREFIX + "NAME": "vm"}) == ("vm", None)
    assert identity({PREFIX + "SYSTEM_IMAGE_FILEPATH": '"/a.img"'}) == (None, "/a.img")
    image = {PREFIX + "SYSTEM_IMAGE_FILEPATH": "/a.img,format=raw,serial=x,/b.img"}
    assert identity(image) == (None, "/a.img")
    assert identity({}) == (None, None)
    with pytest.raises(ConfigError):
        identity({PREFIX + "NAME": "../x"})


def test_sources_of_settings():
    rows = {
        name: (value, source) for name, value, source in settings_in_use(environment(CPU_COUNT="2"))
    }
    assert rows[PREFIX + "CPU_COUNT"] == ("2", "environment")
    assert rows[PREFIX + "MEMORY_CONFIG"] == ("size=16G,shared=on", "default")
    assert settings_in_use({})[0] == (PREFIX + "KERNEL_FILEPATH", "", "missing")


@given(st.dictionaries(st.sampled_from([s.name for s in SETTINGS]), st.text(max_size=40)))
def test_any_text_gives_a_config_or_a_config_error(settings):
    try:
        found = Config.from_env({PREFIX + name: value for name, value in settings.items()})
    except ConfigError as error:
        assert error.problems
    else:
        assert found.cpu_count >= 1


@given(
    st.lists(
        st.text(st.characters(blacklist_characters='"\0'), min_size=1).filter(str.strip), min_size=1
    )
)
def test_quoted_lists_come_back(items):
    assert split_list(",".join(f'"{item}"' for item in items)) == tuple(items)


@given(st.text())
def test_sizes_never_crash(text):
    with contextlib.suppress(BadValue):
        assert parse_size(text) >= 0


@pytest.mark.parametrize(
    ("text", "path", "max_bytes", "keep"),
    [
        ("file=/a", "/a", 64 << 20, 1),
        ("file=/a,max=1M", "/a", 1 << 20, 1),
        ('file="/a,b.log", keep=3, max=0', "/a,b.log", 0, 3),
    ],
)
def test_the_limits_of_a_console_s_file(text, path, max_bytes, keep):
    end = config(SERIAL=text).serial
    assert (end.path, end.max_bytes, end.keep) == (path, max_bytes, keep)
