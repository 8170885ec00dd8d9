"""Secrets for the guest, by systemd's credentials: never on a command line, never in a log.

Files whose names begin with "guest." in the folder that systemd gives a service (LoadCredential=,
SetCredentialEncrypted=) reach the guest under the rest of their names, as strings of SMBIOS that
its own systemd reads, and only its root may. Source: systemd.exec(5), "Credentials";
systemd's "System and Service Credentials", which names io.systemd.credential.binary.
"""

from __future__ import annotations

import os
import stat
from base64 import b64encode
from string import ascii_letters, digits

from vmm.errors import ConfigError
from vmm.layout import SMBIOS_TEXT_MAX

VARIABLE = "CREDENTIALS_DIRECTORY"
PREFIX = "guest."
# What systemd takes as well; an "=" would end the name too early.
NAME_LETTERS = frozenset(ascii_letters + digits + "._-")
FORM = "io.systemd.credential.binary:{}={}"


def credential_strings(folder: str) -> list[str]:
    """The guest's, in the order of their names. ConfigError tells what cannot be passed on."""
    try:
        names = sorted([name for name in os.listdir(folder) if name.startswith(PREFIX)])
        strings = [_string(folder, name) for name in names]
    except OSError as error:
        where = error.filename or folder
        raise ConfigError(
            [f"{VARIABLE}: cannot read {where}: {error.strerror} (systemd gives this folder to a "
             "service; unset the variable elsewhere)"]
        ) from error  # fmt: skip
    size = sum([len(text) + 1 for text in strings])
    if size > SMBIOS_TEXT_MAX:
        raise ConfigError(
            [f"{VARIABLE}: {len(strings)} credentials for the guest have {size} bytes in base64; "
             f"{SMBIOS_TEXT_MAX} fit (give large files by the config disk)"]
        )  # fmt: skip
    return strings


def _string(folder: str, name: str) -> str:
    path = os.path.join(folder, name)
    short = name[len(PREFIX) :]
    if not short or not NAME_LETTERS.issuperset(short):
        raise ConfigError(
            [f"{VARIABLE}: {name!r}: behind {PREFIX!r} comes the guest's name of the credential: "
             "ASCII letters, digits, '.', '-' and '_'"]
        )  # fmt: skip
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ConfigError([f"{VARIABLE}: {path} is not a regular file"])
        content = file.read(SMBIOS_TEXT_MAX + 1)
    return FORM.format(short, b64encode(content).decode("ascii"))
