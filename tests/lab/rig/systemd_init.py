"""The lab's PID 1 as this machine's systemd, which runs the agent as a service."""

from __future__ import annotations

# Goes on where the lab's root is mounted at /new, and /new/run/start starts the agent.
SYSTEMD = """
# None of what this machine happens to have switched on, and nothing of a first boot.
rm -rf /new/etc/systemd/system/*.wants
# By these systemd would take the lab for a container.
rm -f /new/.dockerenv /new/run/.containerenv
: >/new/etc/fstab
echo 6c6162206f6620766c6c6d642d687970 >/new/etc/machine-id
# Debian empties /tmp at boot, where the project may be.
ln -sf /dev/null /new/etc/tmpfiles.d/tmp.conf
# Nor what nobody needs here: each costs seconds in an emulated processor.
mkdir -p /new/run/systemd/system /new/var/log/journal
for unit in modprobe@.service systemd-modules-load.service systemd-update-utmp.service \\
    systemd-random-seed.service systemd-remount-fs.service systemd-tmpfiles-setup-dev.service \\
    systemd-tmpfiles-clean.timer systemd-pcrphase-sysinit.service systemd-pcrphase.service \\
    dev-hugepages.mount dev-mqueue.mount sys-kernel-debug.mount sys-kernel-tracing.mount \\
    sys-kernel-config.mount sys-fs-fuse-connections.mount systemd-sysusers.service \\
    systemd-networkd.service systemd-resolved.service; do
  ln -s /dev/null /new/run/systemd/system/$unit
done
# Journals of users are readable by them only where they are kept.
cat >/new/run/systemd/system/lab.service <<'UNIT'
[Unit]
Description=Takes the jobs of tests
Requires=dbus.socket systemd-logind.service
After=basic.target dbus.socket systemd-logind.service systemd-user-sessions.service
[Service]
ExecStart=/bin/sh -c '. /run/start; echo o >/proc/sysrq-trigger'
StandardOutput=tty
Slice=system.slice
Delegate=yes
UNIT
cat >/new/run/systemd/system/lab.target <<'UNIT'
[Unit]
Requires=basic.target
Wants=lab.service systemd-user-sessions.service
After=basic.target
AllowIsolate=yes
UNIT
exec switch_root /new /lib/systemd/systemd
"""
SYSTEMD_OPTIONS = (
    "systemd.unit=lab.target systemd.show_status=1 systemd.journald.forward_to_console=1 "
    "systemd.journald.max_level_console=info"
)
