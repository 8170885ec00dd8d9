"""The command vllmd-hypervisor-bench: run, report, compare, example."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from vmm.bench import compare, definitions, interrupt, output, results, running
from vmm.bench.template import TemplateError
from vmm.errors import ConfigError, VmmError

INTERRUPTED = 130
EPILOG = """\
exit codes: 0 measured (failed contenders are rows); 1 nothing could be measured, or `compare
--strict` found something worse; 2 a bad definitions file, result or command line; 38 the output
cannot be written; 130 interrupted, with what there was written
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; what goes wrong is told on stderr."""
    options = parser().parse_args(arguments)
    try:
        with interrupt.heard():
            return int(options.verb(options))
    except KeyboardInterrupt:
        return INTERRUPTED
    except TemplateError as error:
        print(f"vllmd-hypervisor-bench: {options.definitions}: {error}", file=sys.stderr)
        return ConfigError.exit_code
    except VmmError as error:
        print(f"vllmd-hypervisor-bench: {error}", file=sys.stderr)
        return error.exit_code


def parser() -> argparse.ArgumentParser:
    """Verbs and options."""
    whole = argparse.ArgumentParser(
        prog="vllmd-hypervisor-bench", epilog=EPILOG,
        description="Measures virtual machine monitors side by side, each by a command template.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    verbs = whole.add_subparsers(required=True, metavar="VERB")
    run = verbs.add_parser("run", help="measure what a definitions file says")
    run.add_argument("definitions", type=Path, help="TOML, or JSON where it is named .json")
    run.add_argument("--output", type=Path, default=Path("bench-results"), metavar="FOLDER")
    run.add_argument("--set", action="append", default=[], metavar="NAME=VALUE",
                     help="another value for one of the file's [variables]")  # fmt: skip
    run.add_argument("--only", action="append", default=[], metavar="NAME",
                     help="this measurement or contender; may be given several times")  # fmt: skip
    run.add_argument("--rounds", type=int, metavar="N", help="in place of the file's")
    run.add_argument("--dry-run", action="store_true", help="check the file, print the commands")
    _pictures(run)
    run.set_defaults(verb=run_verb)
    report = verbs.add_parser("report", help="Markdown, pictures and page of a result once more")
    report.add_argument("result", type=Path)
    report.add_argument("--output", type=Path, metavar="FOLDER", help="(the result's own)")
    _pictures(report)
    report.set_defaults(verb=report_verb)
    two = verbs.add_parser("compare", help="ratios of two results of one host")
    two.add_argument("old", type=Path)
    two.add_argument("new", type=Path)
    two.add_argument("--strict", action="store_true", help="exit code 1 where something is worse")
    two.set_defaults(verb=compare_verb)
    example = verbs.add_parser("example", help="print a definitions file to begin with")
    example.set_defaults(verb=example_verb)
    return whole


def _pictures(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--no-pictures", action="store_true", help="neither drawn nor in the page")


def run_verb(options: argparse.Namespace) -> int:
    """Measure; the result is written whatever happens once measuring has begun."""
    found = definitions.read(options.definitions, variables(options.set))
    found = running.narrowed(found, options.only, options.rounds)
    if options.dry_run:
        print(running.commands(found))
        return 0
    folder = output.folder(options.output)
    document = running.run(found, tell)
    path = output.write_all(document, folder, not options.no_pictures, tell)
    tell(f"{path}; beside it the tables (.md) and one page with all (.html)")
    if not document["complete"]:
        return INTERRUPTED
    return 0 if running.anything(document) else 1


def variables(given: Sequence[str]) -> dict[str, str]:
    """Of --set; ConfigError for what is no NAME=VALUE."""
    for item in given:
        if "=" not in item:
            raise ConfigError([f"--set {item}: write --set NAME=VALUE"])
    return dict(item.split("=", 1) for item in given)


def report_verb(options: argparse.Namespace) -> int:
    """Write the files again, from the single values."""
    document = results.load(options.result)
    folder = output.folder(options.output or options.result.parent)
    stem = options.result.stem
    output.write_reports(document, folder, stem, not options.no_pictures, tell)
    tell(f"{folder / stem}.md, {folder / stem}.html")
    return 0


def compare_verb(options: argparse.Namespace) -> int:
    """Print what changed."""
    old, new = results.load(options.old), results.load(options.new)
    print(compare.report(old, new))
    worse = [one for one in compare.changes(old, new) if one.differs and not one.better]
    return 1 if options.strict and worse else 0


def example_verb(options: argparse.Namespace) -> int:
    """Print a definitions file."""
    print((Path(__file__).with_name("example.toml")).read_text(), end="")
    return 0


def tell(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)
