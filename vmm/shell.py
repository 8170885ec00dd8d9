"""`python -m vmm.shell`: a prompt with a guest in it.

IPython where it is installed, else Python's own prompt with completion. Names in it: guest, vmm,
np (numpy, where it is installed). The end of input closes the guest.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import vmm
from vmm.debug.guest import Guest
from vmm.debug.keywords import KEYWORDS
from vmm.errors import UsageError, VmmError
from vmm.settings.parse import nearest

if TYPE_CHECKING:
    from collections.abc import Sequence

HELP = f"""\
usage: python -m vmm.shell [KERNEL] [--SETTING VALUE ...] [-c CODE]

A prompt with a guest in it, standing still: guest, vmm and np (numpy, if installed)
are there.

  --SETTING VALUE   as in vmm.Guest(), with - or _: {", ".join(KEYWORDS)}
  -c CODE           run this code and leave; its last line is shown when it is an expression
  -h, --help        this

example: python -m vmm.shell vmlinuz --initramfs initrd --memory 512M --cmdline console=ttyS0
Without any setting the guest is that of the service's variables (VLLMD_HYPERVISOR_...).
"""
BANNER = """\
{guest!r}
guest.run(seconds=10), guest.serial.text, guest.cpus[0].regs, guest.breakpoint(...); help(vmm.Guest)
"""


def parse(arguments: Sequence[str]) -> tuple[dict[str, str], str | None]:
    """(settings by keyword, code of -c); UsageError for what is no setting."""
    settings: dict[str, str] = {}
    code: str | None = None
    words = list(arguments)
    while words:
        word = words.pop(0)
        if word == "-c":
            code = _value(word, words)
        elif word.startswith("-"):
            name, equals, value = word.partition("=")
            keyword = name.lstrip("-").replace("-", "_")
            if not name.startswith("--") or keyword not in KEYWORDS:
                hint = nearest(keyword, list(KEYWORDS))
                raise UsageError(f"no option {name}{hint}", "--help lists the options")
            _set(settings, keyword, value if equals else _value(word, words))
        else:
            _set(settings, "kernel", word)
    return settings, code


def _set(settings: dict[str, str], keyword: str, value: str) -> None:
    if keyword in settings:
        raise UsageError(f"{keyword} is given twice: {settings[keyword]!r} and {value!r}")
    settings[keyword] = value


def _value(option: str, words: list[str]) -> str:
    if not words:
        raise UsageError(f"{option} needs a value", "--help lists the options")
    return words.pop(0)


def run_code(code: str, names: dict[str, Any]) -> None:
    """Run it; what its last line is worth is shown, as a prompt does."""
    import ast

    tree = ast.parse(code, "<-c>")
    last: Any = None
    if tree.body and isinstance(tree.body[-1], ast.Expr):
        last = ast.Expression(tree.body.pop().value)  # type: ignore[attr-defined]
    exec(compile(tree, "<-c>", "exec"), names)
    if last is not None:
        sys.displayhook(eval(compile(last, "<-c>", "eval"), names))


def prompt(names: dict[str, Any]) -> None:
    """Let a person type until the end of input."""
    banner = BANNER.format(guest=names["guest"])
    try:
        from IPython import start_ipython
        from traitlets.config import Config
    except ImportError:
        start_ipython = None
    # Not in the handler: each error that is typed would be shown as one during the import's.
    if start_ipython is None:
        _plain_prompt(names, banner)
        return
    config = Config()
    config.TerminalInteractiveShell.banner2 = banner
    config.TerminalInteractiveShell.confirm_exit = False
    start_ipython(argv=[], user_ns=names, config=config)


def _plain_prompt(names: dict[str, Any], banner: str) -> None:
    import code

    try:
        import readline
        import rlcompleter
    except ImportError:
        pass
    else:
        readline.set_completer(rlcompleter.Completer(names).complete)
        readline.parse_and_bind("tab: complete")
    code.interact(banner, local=names, exitmsg="")


def _numpy() -> dict[str, Any]:
    try:
        import numpy
    except (ImportError, RuntimeError):
        # Not there, or built for more than this processor has: all else works without.
        return {}
    return {"np": numpy}


def main(arguments: Sequence[str]) -> int:
    """The exit code: 0, or that of the error."""
    if any(word in ("-h", "--help") for word in arguments):
        print(HELP, end="")
        return 0
    try:
        settings, code = parse(arguments)
        with Guest(**settings) if settings else Guest.from_env() as guest:
            names = {"guest": guest, "vmm": vmm, "__name__": "__main__", **_numpy()}
            if code is not None:
                run_code(code, names)
            else:
                prompt(names)
    except VmmError as error:
        print(f"vmm.shell: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
