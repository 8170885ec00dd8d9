"""Configuration: the nine variables and our few more, in one place.

Config.from_env() is pure; read_environment() is the only reader of the process's environment.
"""

from __future__ import annotations

import os

from vmm.errors import SETTING_PREFIX, ConfigError
from vmm.light.printable import brief, quote
from vmm.light.record import Record
from vmm.settings.gdb import FORM as GDB_FORM
from vmm.settings.gdb import GdbAddress, parse_gdb
from vmm.settings.images import IMAGES_FORM, ImageSpec, parse_images
from vmm.settings.memory import FORM as MEMORY_FORM
from vmm.settings.memory import MemoryConfig, parse_memory
from vmm.settings.parse import (
    DEVICE_FORM,
    ENDPOINT_FORM,
    FALSE_WORDS,
    BadValue,
    DeviceSpec,
    Endpoint,
    check_path,
    nearest,
    parse_device,
    parse_each,
    parse_endpoint,
    parse_integer,
    parse_paths,
    parse_seconds,
    parse_switch,
    split_list,
)
from vmm.settings.traps import exported, service_variables, service_warning, unwrap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from vmm.settings.placement import Placement

PREFIX = SETTING_PREFIX
# The most that a kernel can be built for (CONFIG_KVM_MAX_NR_VCPUS).
CPU_MAX = 4096
CMDLINE_MAX = 0xFFFF
NAME_MAX = 64
NAME_CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-"
REQUIRED = "required"
PLACEMENT_FORM = (
    "cpus=2-5,8 (one for each vCPU), node=N or auto, exits=hlt+mwait+pause+cstate, realtime=on; "
    "comma separated"
)
CLIQUE_WORDS = ("auto", "off")
SECCOMP_WORDS = ("on", "log", "off")
# The capability has four bits for it.
CLIQUE_MAX = 15


class Setting(Record):
    """One variable: name without the prefix, field of Config, default text, form, meaning."""

    __slots__ = ("default", "field", "form", "meaning", "name", "parse")
    name: str
    field: str
    default: str
    form: str
    meaning: str
    parse: Callable[[str], Any]

    def __init__(
        self,
        name: str,
        field: str,
        default: str,
        form: str,
        meaning: str,
        parse: Callable[[str], Any],
    ) -> None:
        self._set(name=name, field=field, default=default, form=form, meaning=meaning, parse=parse)


def _parse_cmdline(text: str) -> str:
    if not all(" " <= char <= "~" or char == "\t" for char in text):
        raise BadValue("it may contain printable ASCII characters only")
    if len(text) > CMDLINE_MAX:
        raise BadValue(f"it has {len(text)} characters; at most {CMDLINE_MAX} fit")
    return text


def _parse_debug(text: str) -> bool:
    return text.strip().lower() not in FALSE_WORDS


def _parse_name(text: str) -> str:
    good = all(char in NAME_CHARACTERS for char in text) and text[0] not in ".-"
    if not good or len(text) > NAME_MAX:
        raise BadValue(
            f"{quote(text)} is not 1 to {NAME_MAX} letters, digits, '.', '_' or '-', starting with "
            "neither '.' nor '-'"
        )
    return text


def _parse_devices(text: str) -> tuple[DeviceSpec, ...]:
    return parse_each(split_list(text), parse_device)


def _parse_clique(text: str) -> str | int:
    word = text.strip().lower()
    return word if word in CLIQUE_WORDS else parse_integer(text, 0, CLIQUE_MAX)


def _parse_placement(text: str) -> Placement:
    # A module that few starts need.
    from vmm.settings.placement import parse_placement

    return parse_placement(text)


def _parse_seccomp(text: str) -> str:
    word = text.strip().lower()
    if word not in SECCOMP_WORDS:
        raise BadValue(f"{quote(text)} is neither on, log nor off")
    return word


def _parse_cpu_count(text: str) -> int:
    return parse_integer(text, 1, CPU_MAX)


SETTINGS = (
    Setting("KERNEL_FILEPATH", "kernel_path", REQUIRED, "a path",
            "bzImage, ELF kernel or firmware with a PVH entry", check_path),
    Setting("SYSTEM_IMAGE_FILEPATH", "system_images", REQUIRED, IMAGES_FORM,
            "raw disk images, read-write; the first is the primary", parse_images),
    Setting("CONFIG_IMAGE_FILEPATH", "config_images", REQUIRED, IMAGES_FORM,
            "raw disk images, read-only", parse_images),
    Setting("CPU_COUNT", "cpu_count", "4", f"1 to {CPU_MAX}, as far as KVM allows",
            "virtual CPUs", _parse_cpu_count),
    Setting("MEMORY_CONFIG", "memory", "size=16G,shared=on", MEMORY_FORM,
            "guest RAM", parse_memory),
    Setting("DEVICE_FILEPATH_LIST", "devices", "", f"{DEVICE_FORM}; comma separated",
            "PCI devices to pass through", _parse_devices),
    Setting("CMDLINE", "cmdline", "", "ASCII, as long as the kernel takes it: 2047 as a rule",
            "kernel command line, passed as it is", _parse_cmdline),
    Setting("LOG_FILEPATH", "log_destinations", "/dev/stdout",
            "paths, /dev/stdout, /dev/stderr, journald, syslog; comma separated",
            "where the log goes", parse_paths),
    Setting("DEBUG", "debug", "", "anything but off", "debug logging", _parse_debug),
    Setting("NAME", "name", "", f"1 to {NAME_MAX} letters, digits, '.', '_', '-'",
            "instance name; else made from the first system image", _parse_name),
    Setting("INITRAMFS_FILEPATH", "initramfs_path", "", "a path", "initial RAM file system",
            check_path),
    Setting("CONSOLE", "console", "tty", ENDPOINT_FORM, "the guest's hvc0", parse_endpoint),
    Setting("SERIAL", "serial", "null", ENDPOINT_FORM, "the guest's ttyS0", parse_endpoint),
    Setting("GPUDIRECT_CLIQUE", "gpudirect_clique", "auto", f"auto, off, or 0 to {CLIQUE_MAX}",
            "which NVIDIA GPUs are told that they reach each other's memory", _parse_clique),
    Setting("STOP_TIMEOUT_SECONDS", "stop_timeout_seconds", "25", "0 to 86400",
            "how long a guest may take to shut down before it is killed", parse_seconds),
    Setting("GDB", "gdb", "", GDB_FORM, "where gdb may attach to the guest; unset: nowhere",
            parse_gdb),
    Setting("CPU_PLACEMENT", "placement", "", PLACEMENT_FORM,
            "host processors of the vCPUs, NUMA node, what the guest does without KVM",
            _parse_placement),
    Setting("ATTACH", "attach", "off", "on or off",
            "whether vmm.attach() and `dump` may look at the running guest", parse_switch),
    Setting("SECCOMP", "seccomp", "on", "on, log or off",
            "what a system call does that its thread does not need: end the VM, be logged, nothing",
            _parse_seccomp),
)  # fmt: skip
# What a field is when its variable is neither set nor has a default.
UNSET: dict[str, Any] = {
    "devices": (),
    "cmdline": "",
    "debug": False,
    "gdb": None,
    "placement": None,
    "name": None,
    "initramfs_path": None,
}


class Config(Record):
    """Everything that was said, checked by form. Nothing in here has touched a file."""

    __slots__ = (
        "attach", "cmdline", "config_images", "console", "cpu_count", "debug", "devices", "gdb",
        "gpudirect_clique", "initramfs_path", "kernel_path", "log_destinations", "memory", "name",
        "placement", "seccomp", "serial", "stop_timeout_seconds", "system_images", "warnings",
    )  # fmt: skip
    kernel_path: str
    system_images: tuple[ImageSpec, ...]
    config_images: tuple[ImageSpec, ...]
    cpu_count: int
    memory: MemoryConfig
    devices: tuple[DeviceSpec, ...]
    cmdline: str
    log_destinations: tuple[str, ...]
    debug: bool
    gdb: GdbAddress | None
    attach: bool
    seccomp: str
    name: str | None
    initramfs_path: str | None
    console: Endpoint
    serial: Endpoint
    gpudirect_clique: str | int
    placement: Placement | None
    stop_timeout_seconds: float
    warnings: tuple[str, ...]

    def __init__(self, **values: Any) -> None:
        self._set(**values)

    @classmethod
    def from_env(cls, environment: Mapping[str, str]) -> Config:
        """Parse all variables; ConfigError lists every problem at once."""
        values, warnings, problems = survey(environment)
        if problems:
            raise ConfigError([text for _, text in problems])
        return cls(warnings=tuple(warnings), **values)


def survey(
    environment: Mapping[str, str], optional: Sequence[str] = ()
) -> tuple[dict[str, Any], list[str], list[tuple[str, str]]]:
    """(Config's fields as far as they are good, warnings, (variable, problem) of the others).

    Lists that ``optional`` names (without the prefix) may be missing, and are empty then.
    """
    warnings: list[str] = []
    problems = _unknown_names(environment, warnings)
    values: dict[str, Any] = {}
    for setting in SETTINGS:
        name = PREFIX + setting.name
        text = environment.get(name, "")
        if text:
            text = unwrap(name, text, warnings)
        if not text and setting.name in optional:
            values[setting.field] = ()
        elif not text and setting.default == REQUIRED:
            problems.append((name, f"{name} is not set: {setting.meaning} ({setting.form})"))
        elif not text and not setting.default:
            values[setting.field] = UNSET[setting.field]
        else:
            try:
                values[setting.field] = setting.parse(text or setting.default)
            except BadValue as error:
                told = f"{name}={brief(text)}: {error}; accepted: {setting.form}"
                problems.append((name, told + origin(environment, name)))
    return values, warnings, problems


def settings_in_use(environment: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """(variable, value, source) of every setting.

    A source is "environment", "default", "missing", or FILE:LINE.
    """
    rows = []
    for setting in SETTINGS:
        name = PREFIX + setting.name
        given = environment.get(name, "")
        if given:
            rows.append((name, given, origin(environment, name).strip(" ()") or "environment"))
        elif setting.default == REQUIRED:
            rows.append((name, "", "missing"))
        else:
            rows.append((name, setting.default, "default"))
    return rows


def identity(environment: Mapping[str, str]) -> tuple[str | None, str | None]:
    """(name, first system image) as far as they are set: what `stop` and `status` need."""
    name = unwrap(f"{PREFIX}NAME", environment.get(f"{PREFIX}NAME", ""), [])
    try:
        found = _parse_name(name) if name else None
    except BadValue as error:
        raise ConfigError([f"{PREFIX}NAME={brief(name)}: {error}"]) from None
    variable = f"{PREFIX}SYSTEM_IMAGE_FILEPATH"
    images = unwrap(variable, environment.get(variable, ""), [])
    try:
        return found, parse_images(images)[0].path if images else None
    except BadValue as error:
        raise ConfigError([f"{variable}={brief(images)}: {error}"]) from None


def _unknown_names(environment: Mapping[str, str], warnings: list[str]) -> list[tuple[str, str]]:
    known = [PREFIX + setting.name for setting in SETTINGS]
    unknown = [name for name in environment if name.startswith(PREFIX) and name not in known]
    ignored = service_variables(unknown)
    if ignored:
        warnings.append(service_warning(ignored))
    problems = [
        (name, exported(name))
        for name in environment
        if name.startswith("export ") and PREFIX in name
    ]
    for name in unknown:
        if name not in ignored:
            told = f"{brief(name)} is not a known setting{nearest(name, known)}"
            problems.append((name, told + origin(environment, name)))
    return problems


class FileEnvironment(dict[str, str]):
    """An environment some of whose variables come from files.

    ``origins`` has for each of these ``FILE:LINE``.
    """

    def __init__(self, values: Mapping[str, str], origins: Mapping[str, str]) -> None:
        super().__init__(values)
        self.origins = dict(origins)


def origin(environment: Mapping[str, str], name: str) -> str:
    """`` (FILE:LINE)`` of a variable that a file has set, else nothing."""
    if not isinstance(environment, FileEnvironment) or name not in environment.origins:
        return ""
    return f" ({environment.origins[name]})"


def read_environment() -> dict[str, str]:
    """A copy of the process's environment; nothing else in this project reads it."""
    return dict(os.environ)
