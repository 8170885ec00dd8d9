"""The verbs about instances that have been started: stop, status, list, forget."""

from __future__ import annotations

from vmm.command.output import complain, print_json, say
from vmm.errors import UnknownInstanceError, UsageError
from vmm.light.printable import visible
from vmm.run.places import Places

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


def name_meant(environment: Mapping[str, str], name: str | None) -> str | None:
    """The name given, or that of the environment; None where it has none."""
    from vmm.settings.config import PREFIX, identity

    if name:
        # Refuses what cannot be a name, and takes off what a setting is freed of, too.
        name = identity({f"{PREFIX}NAME": name})[0] or name
    elif name is None:
        from vmm.run.instance import name_from_image

        name, image = identity(environment)
        if name is None and image is not None:
            name = name_from_image(image)
    return name


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
