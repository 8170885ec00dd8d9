#!/usr/bin/env bash
# Installs the Debian packages that a step needs: debian-packages.sh [build|binary|deb|demo|firmware|lab|test|full]...
# Prints what it installs; without root it prints the one command to run, and fails.
set -euo pipefail
build="gcc libc6-dev python3-dev python3-venv liburing-dev"
binary="libpython3.11-dev python3.11 valgrind"
deb="dpkg-dev lintian"
demo="busybox-static kmod e2fsprogs dosfstools mtools"
firmware="debootstrap fdisk"
lab="qemu-system-x86"
test="acpica-tools fio gdb strace procps lz4 zstd xz-utils make gcc-12 binutils libelf1"
test+=" systemd-sysv libpam-systemd dbus-user-session logrotate fish zsh nodejs"
full="chromium dmsetup"

wanted=$build
for group in "$@"; do
    case $group in
        build) ;;
        binary) wanted+=" $binary" ;;
        deb) wanted+=" $binary $deb" ;;
        demo) wanted+=" $demo" ;;
        firmware) wanted+=" $demo $firmware" ;;
        lab) wanted+=" $demo $lab" ;;
        test) wanted+=" $binary $deb $demo $firmware $lab $test" ;;
        full) wanted+=" $full" ;;
        *) echo "debian-packages.sh: unknown group $group (build, binary, deb, demo, firmware, lab, test, full)" >&2; exit 2 ;;
    esac
done

command -v dpkg-query >/dev/null || {
    echo "this is no Debian system; install the counterparts of: $wanted" >&2
    exit 1
}
missing=()
for package in $wanted; do
    state=$(dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null || true)
    [[ $state == ii* ]] || missing+=("$package")
done
[[ ${#missing[@]} -gt 0 ]] || exit 0
command="apt-get install --yes --no-install-recommends ${missing[*]}"
if [[ $(id -u) != 0 ]]; then
    echo "Debian packages are missing. As root, run: $command" >&2
    exit 1
fi
echo "installing Debian packages: ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get update --quiet --quiet || echo "apt-get update failed; trying with the lists that are here" >&2
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! $command -q >"$log" 2>&1; then
    cat "$log" >&2
    echo "installing failed; the command was: $command" >&2
    exit 1
fi
