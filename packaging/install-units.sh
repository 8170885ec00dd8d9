#!/usr/bin/env bash
# Installs the systemd units: install-units.sh DESTDIR PREFIX. A command without a path in Exec lines
# becomes PREFIX/bin's: systemd looks for it in a fixed list of folders only.
# packaging/systemd/user/* and files beside it are user units, system/* system units.
set -euo pipefail
destination=$1
prefix=$2
cd "$(dirname "$0")/systemd"

install_units() {
    local kind=$1 file
    shift
    for file in "$@"; do
        [[ -f $file ]] || continue
        mkdir -p "$destination$prefix/lib/systemd/$kind"
        sed -E "s#^(Exec[A-Za-z]+=[-@:+!]*)(/usr/bin/)?vllmd-hypervisor#\1$prefix/bin/vllmd-hypervisor#" \
            "$file" >"$destination$prefix/lib/systemd/$kind/$(basename "$file")"
        chmod 644 "$destination$prefix/lib/systemd/$kind/$(basename "$file")"
    done
}

shopt -s nullglob
install_units user user/* ./*.service ./*.slice
install_units system system/* ./*.slice
for file in ./*.sysusers; do
    install -D -m 644 "$file" "$destination$prefix/lib/sysusers.d/$(basename "$file" .sysusers).conf"
done
