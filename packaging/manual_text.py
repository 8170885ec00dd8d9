"""What the man page says beside the tables of the command line and the settings."""

from __future__ import annotations

from vmm.command.usage import PROGRAM
from vmm.layout import PCI_SLOTS
from vmm.seed.nocloud import FILE_BYTES_MAX
from vmm.settings.config import CMDLINE_MAX, CPU_MAX, NAME_MAX, PREFIX
from vmm.settings.memory import HUGEPAGE_DEFAULT, MIB, NODE_MAX, PAGE, SIZE_MAX, SIZE_MIN

DESCRIPTION = (
    "Runs one virtual machine in one process, on the host's KVM: an unmodified Linux kernel, or a "
    "firmware and a whole disk, with raw disk images and devices of the host's (VFIO). All "
    "settings are environment variables. The guest's console is the terminal.",
)

# Key of MEMORY_CONFIG -> (its values, what it means).
MEMORY_KEYS = {
    "size": (
        f"{SIZE_MIN // MIB}M to {SIZE_MAX >> 40}T",
        "guest RAM in bytes, or with K, M, G or T; a multiple of the page size. Required when "
        "MEMORY_CONFIG is set",
    ),
    "shared": ("on|off", "memory that other processes can map; off: private. Default: off"),
    "hugepages": ("on|off", "RAM of huge pages that the host has set aside. Default: off"),
    "hugepage_size": (
        "bytes, or with K, M, G",
        f"with hugepages=on: a power of two. Default: {HUGEPAGE_DEFAULT // MIB}M",
    ),
    "prefault": ("on|off", "take all RAM from the host at the start. Default: off"),
    "mergeable": (
        "on|off", "let the host merge equal pages (KSM); with shared=off only. Default: off",
    ),
    "mlock": (
        "on|off",
        "keep RAM's pages in memory once they are there: what the guest knows comes to no swap "
        "device. RLIMIT_MEMLOCK must allow it. Default: off",
    ),
    "thp": ("on|off", "transparent huge pages, as the host allows them. Default: on"),
    "host_numa_node": (f"0 to {NODE_MAX}", "take RAM from this node of the host's only"),
}  # fmt: skip

SIGNALS = (
    ("SIGTERM, SIGINT", "Press the guest's power button, again every second until the guest is off "
     "or STOP_TIMEOUT_SECONDS have passed; then, or at a second signal later on, kill the guest."),
    ("SIGHUP", "Open log files and console files anew, after a rotation."),
    ("SIGWINCH", "Tell the guest the terminal's new size."),
    ("SIGKILL", "End at once, as a power failure does; locks are given back."),
)  # fmt: skip

FILES = (
    (f"$XDG_RUNTIME_DIR/{PROGRAM}/NAME/", "An instance: lock (whose owner runs it), control (the "
     "socket that stop, status and dump ask) and state.json (how it ended)."),
    (f"/run/{PROGRAM}/NAME/", "The same for root without XDG_RUNTIME_DIR."),
    (f"/run/vllmd/NAME/{PROGRAM}/NAME/", "The same for instances of the system's service."),
    ("/etc/vllmd/hypervisor-NAME.env", "Settings of the system's service, one NAME=VALUE a line."),
    ("~/.config/vllmd/hypervisor-NAME.env", "Settings of a user's service."),
    ("$CREDENTIALS_DIRECTORY/guest.*", "Credentials for the guest (systemd.exec(5)), which it "
     "finds in SMBIOS under the rest of their names."),
    ("/var/lib/vllmd/", "Kernels of the system's service; images in its folder NAME."),
    ("/var/log/vllmd/NAME/*.log", "Log files that logrotate takes care of."),
    ("/dev/kvm", "Must be readable and writable, as it is for the group kvm."),
    ("/dev/vfio/", "Devices that are passed through."),
)  # fmt: skip

_IMAGE = "https://cloud.debian.org/images/cloud/bookworm/latest/debian-12-genericcloud-amd64.raw"
EXAMPLES = (
    ("A kernel with a root file system, in the foreground:",
     f"""\
export {PREFIX}KERNEL_FILEPATH=/boot/vmlinuz-6.1.0-cloud-amd64
export {PREFIX}INITRAMFS_FILEPATH=/boot/initrd.img-6.1.0-cloud-amd64
export {PREFIX}SYSTEM_IMAGE_FILEPATH=/srv/vm/system.img
export {PREFIX}CONFIG_IMAGE_FILEPATH=/srv/vm/config.img
export {PREFIX}CMDLINE="console=hvc0 root=/dev/vda rw"
{PROGRAM} check && {PROGRAM} start"""),
    ("A whole disk that a firmware boots, set up by cloud-init:",
     f"""\
curl -o /srv/vm/disk.img {_IMAGE}
printf '#cloud-config\\nssh_authorized_keys: [%s]\\n' "$(cat ~/.ssh/id_ed25519.pub)" >user-data
printf 'instance-id: llama-1\\nlocal-hostname: llama\\n' >meta-data
{PROGRAM} seed user-data meta-data /srv/vm/seed.img
export {PREFIX}KERNEL_FILEPATH=/usr/share/cloudhv-efi-x86-64/CLOUDHV.fd
export {PREFIX}SYSTEM_IMAGE_FILEPATH=/srv/vm/disk.img
export {PREFIX}CONFIG_IMAGE_FILEPATH=/srv/vm/seed.img
export {PREFIX}SERIAL=tty {PREFIX}CONSOLE=null
{PROGRAM} start"""),
    ("An image in another format becomes a raw one:",
     "qemu-img convert -O raw disk.qcow2 disk.img"),
    ("Ask from another shell with the same environment, and shut down:",
     f"""\
{PROGRAM} status --json
{PROGRAM} stop"""),
    ("A running guest as an ELF core, for drgn, crash or gdb:",
     f"{PROGRAM} dump llama /var/tmp/llama.core"),
    ("As a service, with settings in /etc/vllmd/hypervisor-llama.env:",
     f"""\
systemctl enable --now {PROGRAM}@llama
{PROGRAM} status llama"""),
    ("A GPU goes to a guest, with all functions of its card:",
     f"""\
systemctl enable --now vllmd-bind@0000:01:00.0 vllmd-bind@0000:01:00.1
export {PREFIX}DEVICE_FILEPATH_LIST=0000:01:00.0,0000:01:00.1"""),
)  # fmt: skip

LIMITS = (
    f"Up to {CPU_MAX} virtual CPUs, as far as KVM allows; {SIZE_MIN // MIB} MiB to "
    f"{SIZE_MAX >> 40} TiB of RAM in pages of {PAGE} bytes or huge ones; {PCI_SLOTS} PCI slots for "
    "disks, console, random numbers and passed-through devices together; a kernel command line of "
    f"{CMDLINE_MAX} characters, as far as the kernel takes it; instance names of {NAME_MAX} "
    f"characters; files of {FILE_BYTES_MAX >> 20} MiB each in a seed.",
    "Left out: images in other formats than raw, snapshots, live migration, hot-plug, network "
    "cards other than passed-through ones, graphics.",
)

SEE_ALSO = "systemctl(1), journalctl(1), systemd.exec(5), logrotate(8), cloud-init(1), qemu-img(1)"
