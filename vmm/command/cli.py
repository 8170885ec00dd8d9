"""The command line: start, check, env, seed, and the verbs about instances."""

from __future__ import annotations

import errno
import gc
import os
import sys
import time

from vmm import PROGRAM
from vmm.command.output import complain, drop_output, print_json, say, write_out
from vmm.errors import HOST_LACKS, ConfigError, HostError, VmmError, setting_of
from vmm.log.hub import get_logger, hub
from vmm.settings.config import Config, read_environment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from vmm.run.notify import Notifier

log = get_logger(__name__)

EXIT_INTERRUPTED = 130
# What the dynamic loader says where there is no memory for a library.
UNMAPPED = "failed to map segment"


def main() -> int:
    """Run the command line; returns the exit code."""
    keep_standard_streams()
    argv = sys.argv[1:]
    try:
        code = start() if argv == ["start"] else run_verb(argv)  # the first has nothing to parse
        write_out()
        return code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has seen enough.
        drop_output()
        return VmmError.exit_code
    except VmmError as error:
        report(error)
        return error.exit_code
    except (OSError, MemoryError, ImportError) as error:
        failure = refused(error)
        report(failure)
        return failure.exit_code
    finally:
        # Files and journald get what they have not taken yet.
        hub.configure([], debug=False)


class Phases:
    """When the phases of a start ended, in ms since the process began to run."""

    def __init__(self) -> None:
        # What this thread has used by now: a start does nothing but compute, so that is its age.
        self._began = time.monotonic() - time.clock_gettime(time.CLOCK_THREAD_CPUTIME_ID)
        self.ended: list[tuple[str, float]] = []
        self.mark("interpreter")

    def mark(self, name: str) -> None:
        """A phase has ended."""
        self.ended.append((name, (time.monotonic() - self._began) * 1000))


def print_timing(phases: Phases, machine_phases: Mapping[str, float]) -> None:
    """`start --timing`: a line on stderr for each phase, in ms; the guest runs already."""
    end = 0.0
    lines: list[str] = []
    phases.mark("running")
    last = phases.ended.pop()
    built = last[1] - machine_phases["running"]
    rows = [*phases.ended, ("files and consoles", built)]
    rows += [(f"machine: {name}", built + at) for name, at in machine_phases.items()]
    for name, at in rows:
        lines.append(f"{name:20} {at - end:8.3f} ms, {at:8.3f} ms in all")
        end = at
    complain(lines)


def keep_standard_streams() -> None:
    """Put /dev/null where stdin, stdout or stderr is closed.

    Else a disk image opened later could become descriptor 1, and take what is printed.
    """
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free descriptor: this one


def stay_in_background() -> None:
    """A job that uses its terminal from the background is not stopped for it.

    What it reads is an error then, which the console knows, and what it writes is shown.
    """
    import _signal

    if os.isatty(0) or os.isatty(1) or os.isatty(2):
        _signal.signal(_signal.SIGTTIN, _signal.SIG_IGN)
        _signal.signal(_signal.SIGTTOU, _signal.SIG_IGN)


def report(error: VmmError) -> None:
    """Tell what failed: in the log, and on stderr unless the log goes there."""
    from vmm.log.sinks import FdSink, FileSink, JournalSink, open_sink, stream_is_journal

    journal_stream = read_environment().get("JOURNAL_STREAM", "")
    to_journal = stream_is_journal(2, journal_stream)
    if to_journal and not any(isinstance(sink, JournalSink) for sink in hub.sinks):
        hub.sinks.append(open_sink("/dev/stderr", journal_stream))
    problems = list(error.problems) if isinstance(error, ConfigError) else [str(error)]
    for problem in problems:
        variable = setting_of(problem)
        log.error(problem, [("VLLMD_VARIABLE", variable)] if variable else ())
    if to_journal or any(
        isinstance(sink, FdSink) and not isinstance(sink, FileSink) for sink in hub.sinks
    ):
        return
    complain([f"error: {line}" for problem in problems for line in problem.split("\n")])


def start(timing: bool = False, environment: dict[str, str] | None = None) -> int:
    """Run an instance in the foreground until its guest ends.

    ``environment`` None: the process's own.
    """
    # Collections would walk everything that the imports make, again and again, for a twelfth of
    # the time until the guest runs. Lifecycle switches them on once it does.
    gc.disable()
    phases = Phases()
    from vmm._native.host.posix import set_process_name

    set_process_name(PROGRAM.encode(), [PROGRAM.encode(), b"start"])
    stay_in_background()
    if environment is None:
        environment = read_environment()
    from vmm.run.notify import Notifier

    notifier = Notifier.from_env(environment)
    try:
        return run_instance(environment, notifier, phases, timing)
    except BrokenPipeError:
        raise  # nobody reads what is printed, which main() knows
    except (OSError, MemoryError, ImportError) as error:
        failure = refused(error)
        notifier.status(f"failed: {failure}")
        raise failure from error
    except VmmError as error:
        notifier.status(f"failed: {error}")
        raise


def refused(error: OSError | MemoryError | ImportError) -> HostError:
    """What can be explained better has been; left are limits of descriptors, threads, memory.

    A shared library that finds no memory is an ImportError; any other is a bug, and goes on.
    """
    if isinstance(error, ImportError) and UNMAPPED not in str(error):
        raise error
    if log.debugging:
        import traceback

        log.debug("".join(traceback.format_exception(error)))
    return HostError(f"the host refuses: {str(error) or 'no memory is left'}", _remedy(error))


def _remedy(error: OSError | MemoryError | ImportError) -> str:
    if not isinstance(error, OSError) or error.errno in HOST_LACKS:
        return "raise the limit that is named (ulimit -a; Limit*= in a unit), or free memory"
    if error.errno in (errno.ENOSPC, errno.EDQUOT) and not hasattr(error, "ioctl"):
        return "free space on the file system of the runtime folder, the log or the console's file"
    return "see the kernel's log"


def run_instance(
    environment: dict[str, str], notifier: Notifier, phases: Phases, timing: bool
) -> int:
    """Everything from the settings to the exit code."""
    config = Config.from_env(environment)
    phases.mark("settings")
    from vmm.confine.lockdown import Lockdown
    from vmm.host.descriptors import make_room
    from vmm.host.preflight import check_host, check_roles
    from vmm.log.sinks import open_sinks
    from vmm.run.instance import Instance, name_of
    from vmm.run.lifecycle import Lifecycle

    phases.mark("imports")
    lockdown = Lockdown(config, notifier.abstract)
    lockdown.arm()
    make_room(config.cpu_count, [*config.system_images, *config.config_images])
    check_roles(config)
    journal_stream = environment.get("JOURNAL_STREAM", "")
    hub.configure(open_sinks(config.log_destinations, journal_stream), config.debug)
    name = name_of(config)
    hub.context = [("VLLMD_INSTANCE", name)]
    for warning in config.warnings:
        log.warning(warning)
    if log.debugging:
        from vmm.run import debugtrail

        debugtrail.tell_settings(environment)
        debugtrail.tell_host()
    check_host(config)
    strings = guest_strings(environment)
    phases.mark("host checked")
    instance = Instance(name, environment)
    instance.acquire()
    phases.mark("instance")
    ran = False
    try:
        life = Lifecycle(config, instance, notifier, cache_directory(environment))
        life.lockdown = lockdown
        life.oem_strings = strings
        if timing:
            life.on_running = lambda machine: print_timing(phases, machine.phases)
        if config.gdb is not None:
            from vmm.debug.gdb.service import ServiceGdb

            life.runner = ServiceGdb(config.gdb)
        try:
            return life.run()
        finally:
            ran = life.ran
            life.close()
    finally:
        if not ran:
            instance.discard()
        instance.release()


def guest_strings(environment: dict[str, str]) -> list[str]:
    """The service's credentials for its guest; ConfigError."""
    folder = environment.get("CREDENTIALS_DIRECTORY")
    if not folder:
        return []
    from vmm.host.credentials import credential_strings

    return credential_strings(folder)


def cache_directory(environment: dict[str, str]) -> str | None:
    """Where load plans are kept (XDG base directories; systemd.exec(5) under a unit)."""
    if environment.get("CACHE_DIRECTORY"):
        return environment["CACHE_DIRECTORY"]
    base = environment.get("XDG_CACHE_HOME") or os.path.join(environment.get("HOME", ""), ".cache")
    return os.path.join(base, PROGRAM) if os.path.isabs(base) else None


def run_verb(argv: list[str]) -> int:
    """Everything but a plain start."""
    from vmm.command import usage

    asked = usage.parse(argv)
    if asked.verb == "--help":
        say(usage.help_text(asked.name))
        return 0
    if asked.verb == "--version":
        from vmm.command.about import describe, describe_parts

        say(f"{PROGRAM} {describe()}")
        if asked.flags:
            say(describe_parts())
        return 0
    if asked.verb == "seed":
        return seed(asked.files)
    environment = read_environment()
    if asked.env_files:
        from vmm.settings.envfile import with_files

        environment = with_files(environment, asked.env_files)
    as_json = "--json" in asked.flags
    if asked.verb == "start":
        if "--dry-run" in asked.flags:
            return dry_run(environment, as_json)
        return start("--timing" in asked.flags, environment)
    if asked.verb == "env":
        if "--unit" in asked.flags:
            from vmm.command.unit import unit_properties

            say("\n".join(unit_properties(environment)))
            return 0
        return show_settings(environment, as_json)
    if asked.verb == "check":
        return check(environment, as_json)
    from vmm.command.instances import run_on_instances

    return run_on_instances(asked, environment)


def gather_settings(environment: dict[str, str]) -> tuple[dict[str, Any], list[str]]:
    """(settings with sources, problems), for people and for JSON."""
    from vmm.run.instance import name_of
    from vmm.settings.config import settings_in_use

    rows = [
        {"variable": variable, "value": value, "source": source}
        for variable, value, source in settings_in_use(environment)
    ]
    try:
        config = Config.from_env(environment)
    except ConfigError as error:
        return {"name": None, "settings": rows, "warnings": []}, list(error.problems)
    return {"name": name_of(config), "settings": rows, "warnings": list(config.warnings)}, []


def print_settings(facts: dict[str, Any], as_json: bool) -> None:
    """The table of settings on stdout."""
    if as_json:
        print_json(facts)
        return
    width = max([len(row["variable"]) for row in facts["settings"]])
    for row in facts["settings"]:
        say(f"{row['variable']:{width}}  {row['source']:11}  {row['value']}")
    for warning in facts["warnings"]:
        say(f"warning: {warning}")


def show_settings(environment: dict[str, str], as_json: bool) -> int:
    """`env`: all settings; problems go to stderr and make the exit code 2."""
    facts, problems = gather_settings(environment)
    print_settings({**facts, "problems": problems} if as_json else facts, as_json)
    if problems:
        raise ConfigError(problems)
    return 0


def dry_run(environment: dict[str, str], as_json: bool) -> int:
    """`start --dry-run`: the settings, then what the host says to them, as `check` finds it."""
    from vmm.check.report import examine

    facts, _ = gather_settings(environment)
    failure: VmmError | None = None
    try:
        examine(environment).refuse()
    except VmmError as error:
        failure = error
    told = str(failure).split("\n") if failure else []
    print_settings({**facts, "problems": told} if as_json else facts, as_json)
    if failure is not None:
        raise failure
    return 0


def check(environment: dict[str, str], as_json: bool) -> int:
    """`check`: what this host and these settings lack, and what cures it."""
    from vmm.check.report import examine

    report = examine(environment)
    if as_json:
        print_json(report.facts())
    else:
        say(report.text())
    return report.exit_code


def seed(files: tuple[str, ...]) -> int:
    """`seed`: the last of the files is made of the others."""
    from vmm.seed.nocloud import write_seed

    complain([f"warning: {warning}" for warning in write_seed(list(files[:-1]), files[-1])])
    return 0
