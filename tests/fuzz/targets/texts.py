"""What people and programs write: settings, their files, images' heads, JSON, gdb's packets."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tests.fuzz.target import Dice, MemoryFile, PythonTarget
from vmm.debug.gdb import packets
from vmm.errors import ConfigError
from vmm.host import image_format
from vmm.light import jsontext
from vmm.settings import config, envfile
from vmm.settings.config import PREFIX, SETTINGS, Config

if TYPE_CHECKING:
    from pathlib import Path

GOOD = {
    "KERNEL_FILEPATH": ("/boot/vmlinuz", "'/a b'", "kernel"),
    "SYSTEM_IMAGE_FILEPATH": ("/a.img", "/a,path=/b,serial=x", "/a,iops=100/5s,direct=on", "a\\,b"),
    "CONFIG_IMAGE_FILEPATH": ("/c.img", "/c,format=raw", "/c,bandwidth=10M"),
    "CPU_COUNT": ("1", "64", " 2 ", "0x2"),
    "MEMORY_CONFIG": ("size=16M", "size=4G,shared=on,hugepages=on,hugepage_size=2M", "16G"),
    "DEVICE_FILEPATH_LIST": ("0000:65:00.0", "/sys/bus/pci/devices/0000:65:00.0", "/dev/vfio/1"),
    "CMDLINE": ("console=hvc0 root=/dev/vda1", '"a b" c'),
    "LOG_FILEPATH": ("/dev/stdout", "/var/log/x,journald", "syslog"),
    "DEBUG": ("1", "off", "no"),
    "NAME": ("one", "a.b-c_d"),
    "INITRAMFS_FILEPATH": ("/boot/initrd",),
    "CONSOLE": ("tty", "null", "file:/x,max=10M,keep=3", "socket:/x", "pty"),
    "SERIAL": ("null", "file=/x", "tty"),
    "GPUDIRECT_CLIQUE": ("auto", "off", "3"),
    "STOP_TIMEOUT_SECONDS": ("25", "0", "1.5"),
    "GDB": ("1234", "localhost:1234", "unix:/x"),
}
WORDS = (
    ",", "=", ":", "'", '"', "\\", " ", "\n", "\t", "0", "9" * 30, "-1", "1e999", "off", "on",
    "size=", "K", "M", "T", "..", "/", "\0", "é", "\udcff", "\u202e", "[", "]", "${X}", "%",
)  # fmt: skip


def odd_text(dice: Dice, base: str) -> str:
    """``base`` with pieces put in, taken out and doubled."""
    text = base
    for _ in range(dice.randrange(5)):
        at = dice.randrange(len(text) + 1)
        kind = dice.randrange(4)
        if kind == 0:
            text = text[:at] + text[at + dice.randrange(1, 5) :]
        elif kind == 1:
            text = text[:at] + text[at : at + 8] * 2 + text[at + 8 :]
        elif kind == 2:
            text = text[:at] + chr(dice.choice((0, 9, 27, 32, 127, 0x85, 0x2028))) + text[at:]
        else:
            text = text[:at] + dice.choice(WORDS) + text[at:]
    dice.input = text
    return text


class Settings(PythonTarget):
    """Values of any text: a Config, or a ConfigError that names each variable with its problem."""

    name = "settings"
    plants = ("unchecked",)
    quick = 500

    def plant(self, fault: str) -> None:
        """A number's digits are not looked at."""
        config.parse_integer.__globals__["is_decimal"] = lambda text, most=0: True

    def one(self, dice: Dice) -> None:
        """As PythonTarget."""
        environment = {}
        for setting in SETTINGS:
            if dice.chance(3) or setting.default == config.REQUIRED:
                base = dice.choice(GOOD.get(setting.name, ("1",)))
                text = odd_text(dice, base) if dice.chance(3) else base
                environment[PREFIX + setting.name] = text
        if dice.chance(8):
            environment[PREFIX + odd_text(dice, "CPU_COUNT")] = "1"
        dice.input = environment
        try:
            made = Config.from_env(environment)
        except ConfigError as error:
            told = str(error)
            assert PREFIX in told
            assert all(char.isprintable() or char == "\n" for char in told), repr(told)
            return
        assert 1 <= made.cpu_count <= config.CPU_MAX
        assert made.memory.size > 0
        assert all("\0" not in each.path for each in (*made.system_images, *made.config_images))
        assert "\0" not in made.kernel_path


class EnvFile(PythonTarget):
    """Files with settings: assignments, or a ConfigError."""

    name = "env-file"
    refusals = (ConfigError,)
    plants = ("unchecked",)
    quick = 500
    base = (
        '# settings\nA=1\nB="two \\"words\\" \\\n more"\nC=\'x\' "y"z\n; end\n'
        "export D=1\n  E = 5\nF=a\\ b\n"
    )

    def begin(self, folder: Path) -> None:
        """As PythonTarget."""
        self._file = MemoryFile()

    def end(self) -> None:
        """As PythonTarget."""
        self._file.close()

    def plant(self, fault: str) -> None:
        """Names are not looked at."""
        envfile._Reader._good = lambda *rest: True

    def one(self, dice: Dice) -> None:
        """As PythonTarget."""
        text = odd_text(dice, self.base)
        self._file.put(text.encode(errors="surrogatepass"))
        found = envfile.with_files({"KEPT": "1"}, [self._file.path])
        assert found["KEPT"] == "1"
        for name, value in found.items():
            assert name
            assert set(name) <= set(envfile.NAME_CHARACTERS), name
            assert "\0" not in value


class ImageHeads(PythonTarget):
    """The first and last bytes of images: a format by its magic, or raw."""

    name = "image-format"
    plants = ("unchecked",)
    quick = 500

    def begin(self, folder: Path) -> None:
        """As PythonTarget."""
        self._file = MemoryFile()

    def end(self) -> None:
        """As PythonTarget."""
        self._file.close()

    def plant(self, fault: str) -> None:
        """Magics at the end are not known."""
        image_format.FOOTER_MAGICS = ()

    def one(self, dice: Dice) -> None:
        """As PythonTarget."""
        data = bytearray(dice.choice((0, 1, 511, 512, 513, 1024, 2000)))
        wanted = None
        if dice.chance(2) and len(data) > 512:
            magic, wanted = dice.choice(((b"conectix", "vpc"), (b"koly", "dmg")))
            data[len(data) - 512 : len(data) - 512 + len(magic)] = magic
        elif dice.chance(2) and len(data) > 100:
            offset, magic, wanted = dice.choice(image_format.MAGICS)
            data[offset : offset + len(magic)] = magic
        dice.input = bytes(data)
        self._file.put(bytes(data))
        assert image_format.foreign_format(self._file.path) == wanted
        self._file.put(dice.mutated(bytes(data)))
        image_format.foreign_format(self._file.path)


class Json(PythonTarget):
    """Our reader and writer of JSON against Python's own."""

    name = "json"
    plants = ("unchecked",)
    quick = 500
    bases = (b'{"command": "status", "a": [1, -2, 1.5e3, null, true, "x\\u00e9\\n"]}', b'{"a":{}}')

    def plant(self, fault: str) -> None:
        """Numbers that are none are taken."""
        jsontext._finite = float

    def one(self, dice: Dice) -> None:
        """As PythonTarget."""
        data = dice.choice(self.bases)
        if dice.chance(4):
            data = data.replace(b"1.5e3", dice.choice((b"1e999", b"NaN", b"Infinity", b"-1e999")))
        data = dice.mutated(data, dice.choice((0, 2, 8)))
        try:
            found = jsontext.loads(data)
        except ValueError:
            return
        theirs = json.loads(data, parse_constant=_none)
        assert found == theirs
        assert json.loads(jsontext.dumps(found)) == found
        assert all(number - number == 0 for number in _numbers(found))


def _none(text: str) -> Any:
    raise AssertionError(f"{text} was taken")


def _numbers(value: Any) -> list[float]:
    if isinstance(value, (int, float)):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [number for each in inner for number in _numbers(each)]


class GdbPackets(PythonTarget):
    """A debugger's bytes in pieces of any size: the same packets as in one piece."""

    name = "gdb-packets"
    refusals = (packets.ProtocolError,)
    plants = ("unchecked",)
    quick = 1000

    def plant(self, fault: str) -> None:
        """What is escaped stays so."""
        packets.unescape = lambda raw: raw

    def one(self, dice: Dice) -> None:
        """As PythonTarget."""
        sent = [dice.randbytes(dice.randrange(20)) for _ in range(dice.randrange(1, 4))]
        good = b"".join(packets.encode(each) for each in sent)
        whole = packets.Decoder().feed(good)
        assert [each.data for each in whole if isinstance(each, packets.Packet)] == sent
        assert all(each.good for each in whole if isinstance(each, packets.Packet))
        data, decoder, found = dice.mutated(good), packets.Decoder(), 0
        while data:
            size = dice.randrange(1, 30)
            found += len(decoder.feed(data[:size]))
            data = data[size:]
        assert found <= len(dice.input)


TARGETS = (Settings(), EnvFile(), ImageHeads(), Json(), GdbPackets())
