"""The package encodings of the binary: UTF-8, ASCII and Latin-1, and no table of aliases."""

import codecs

_MODULES = {
    "utf_8": "utf_8", "utf8": "utf_8", "ascii": "ascii", "us_ascii": "ascii",
    "latin_1": "latin_1", "latin1": "latin_1", "iso_8859_1": "latin_1", "iso8859_1": "latin_1",
}  # fmt: skip


def normalize_encoding(encoding):
    """The name with underscores."""
    if isinstance(encoding, bytes):
        encoding = str(encoding, "ascii")
    return encoding.replace("-", "_").replace(" ", "_")


def search_function(encoding):
    """The codec of this name, or None."""
    module = _MODULES.get(normalize_encoding(encoding).lower())
    if module is None:
        return None
    return __import__("encodings." + module, fromlist=["x"]).getregentry()


codecs.register(search_function)
