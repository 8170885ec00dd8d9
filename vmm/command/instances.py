"""The verbs about instances that have been started: stop, status, list, dump, forget."""

from __future__ import annotations

from vmm.command.output import complain, print_json, say
from vmm.errors import UnknownInstanceError, UsageError
from vmm.light.printable import visible
from vmm.run.places import Places, name_meant

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmm.command.usage import Request
    from vmm.run.folder import Folder

SCHEMA_VERSION = 1


def run_on_instances(asked: Request, environment: Mapping[str, str]) -> int:
    """Do what was asked for; returns the exit code."""
    places = Places(environment)
    as_json = "--json" in asked.flags
    if asked.verb == "list":
        return show_list(places, as_json)
    if asked.verb == "forget" and "--all" in asked.flags:
        from vmm.command.status import forget_all

        if asked.name is not None:
            raise UsageError("forget takes a name or --all, not both")
        say(forget_all(places))
        return 0
    name = name_meant(environment, asked.name)
    try:
        folder = places.find(name)
    except UnknownInstanceError as error:
        if not as_json:
            raise
        print_json({"name": name, "state": "unknown", "error": str(error)})
        return error.exit_code
    try:
        return run_on(folder, asked)
    finally:
        folder.close()


def run_on(folder: Folder, asked: Request) -> int:
    """One of the verbs that are about one instance."""
    if asked.verb == "stop":
        from vmm.command.stop import stop

        code, text = stop(folder, "--now" in asked.flags)
        say(text)
        return code
    if asked.verb == "dump":
        from vmm.command.dump import dump

        dump(folder, asked.files[0], "--live" in asked.flags)
        return 0
    from vmm.command import status

    if asked.verb == "forget":
        say(status.forget(folder))
        return 0
    code, facts = status.status(folder)
    if "--json" in asked.flags:
        print_json(facts)
    else:
        from vmm.command.describe import describe

        say(describe(facts))
    return code


def show_list(places: Places, as_json: bool) -> int:
    """`list`: all instances; where this user may not look is told on stderr."""
    from vmm.command.status import rows, table

    found = rows(places)
    if as_json:
        print_json({"schema_version": SCHEMA_VERSION, "instances": found, "hidden": places.hidden})
        return 0
    say(table(found))
    for each in found:
        if each["error"]:
            complain([f"{visible(each['name'])}: {each['error']}"])
    for place in places.hidden:
        complain([f"no permission to look into {place} (root may)"])
    return 0
