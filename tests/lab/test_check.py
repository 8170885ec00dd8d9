"""`check` on a host with KVM, IOMMU and an NVMe: as root, and as a plain user, with its cures."""

from __future__ import annotations

import hashlib

from tests.lab.guests.packages import unpacked
from tests.lab.rig.devices import FIRST_BYTES

SCENARIO = "tests.lab.scenarios.check"


def test_without_settings(lab):
    lab.call(f"{SCENARIO}:without_settings")


def test_as_root(lab, job):
    lab.call(f"{SCENARIO}:as_root", **job)


def test_as_a_plain_user(lab, job, nvme):
    md5 = hashlib.md5(nvme.read_bytes()[:FIRST_BYTES]).hexdigest()
    lab.call(f"{SCENARIO}:as_a_plain_user", md5=md5, **job)


def test_a_udev_rule(lab):
    lab.call(f"{SCENARIO}:a_udev_rule_gives_groups", udev=str(unpacked("udev")))
