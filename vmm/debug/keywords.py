"""Settings of a guest by keyword: the words of the variables, with the defaults of a script."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING

from vmm.errors import SETTING_PREFIX, ConfigError
from vmm.settings.config import Config, survey
from vmm.settings.parse import nearest

if TYPE_CHECKING:
    from collections.abc import Mapping

# By keyword: the variable behind it.
KEYWORDS = {
    "kernel": "KERNEL_FILEPATH",
    "system_image": "SYSTEM_IMAGE_FILEPATH",
    "config_image": "CONFIG_IMAGE_FILEPATH",
    "cpu_count": "CPU_COUNT",
    "memory": "MEMORY_CONFIG",
    "devices": "DEVICE_FILEPATH_LIST",
    "cmdline": "CMDLINE",
    "initramfs": "INITRAMFS_FILEPATH",
    "serial": "SERIAL",
    "console": "CONSOLE",
    "gpudirect_clique": "GPUDIRECT_CLIQUE",
}
DEFAULTS = {"cpu_count": 1, "memory": "256M"}
OPTIONAL = ("SYSTEM_IMAGE_FILEPATH", "CONFIG_IMAGE_FILEPATH")
LISTS = ("system_image", "config_image", "devices")
KEEP = "keep"
CONSOLES = ("serial", "console")


def config_of_keywords(values: Mapping[str, object]) -> tuple[Config, set[str]]:
    """Config and the consoles to keep; ConfigError has the words of the command."""
    unknown = [
        f"{name!r}{nearest(name, list(KEYWORDS))}" for name in values if name not in KEYWORDS
    ]
    if unknown:
        raise ConfigError([f"Guest() has no setting {word}" for word in unknown])
    chosen = {**DEFAULTS, **{name: value for name, value in values.items() if value is not None}}
    kept = {name for name in CONSOLES if chosen.get(name, KEEP) == KEEP}
    for name in kept:
        chosen[name] = "null"
    environment = {SETTING_PREFIX + KEYWORDS[n]: _text(n, value) for n, value in chosen.items()}
    return _config(environment), kept


def config_of_environment(environment: Mapping[str, str]) -> tuple[Config, set[str]]:
    """The same of the service's variables; a console that none of them names is kept."""
    ours = {name: text for name, text in environment.items() if name.startswith(SETTING_PREFIX)}
    kept = {name for name in CONSOLES if not ours.get(SETTING_PREFIX + KEYWORDS[name])}
    for name in kept:
        ours[SETTING_PREFIX + KEYWORDS[name]] = "null"
    return _config(ours), kept


def _config(environment: Mapping[str, str]) -> Config:
    values, told, problems = survey(environment, OPTIONAL)
    if problems:
        raise ConfigError([text for _, text in problems])
    for text in told:
        warnings.warn(text, UserWarning, stacklevel=5)
    return Config(warnings=tuple(told), **values)


def _text(name: str, value: object) -> str:
    if name == "memory" and (isinstance(value, int) or "=" not in str(value)):
        return f"size={value},shared=on"
    if name in LISTS and not isinstance(value, (str, bytes, os.PathLike)):
        return ",".join([_quoted(os.fspath(item)) for item in value])  # type: ignore[attr-defined]
    if isinstance(value, os.PathLike):
        path = os.fspath(value)
        return _quoted(path) if name in LISTS else path
    return str(value)


def _quoted(path: str) -> str:
    # A comma in a path is no separator; options behind it (serial=...) are given as text.
    return f'"{path}"' if "," in path and '"' not in path and "=" not in path else path
