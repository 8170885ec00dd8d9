#!/usr/bin/env bash
# Installs what `make install` does, or removes it: install.sh install|uninstall DESTDIR PREFIX.
# Takes the executable and what manual.py writes from dist/. A command without a path in a unit's
# Exec lines becomes PREFIX/bin's: systemd looks for it in a fixed list of folders only.
set -euo pipefail
verb=$1
destination=$2
prefix=$3
cd "$(dirname "$0")/.."
name=vllmd-hypervisor

# put MODE SOURCE TARGET
put() {
    if [[ $verb == install ]]; then
        install -D -m "$1" "$2" "$destination$3"
    else
        rm -f "$destination$3"
    fi
}

# A file that its administrator may have changed stays then.
put_config() {
    if [[ $verb == uninstall && -e $destination$2 ]] && ! cmp -s "$1" "$destination$2"; then
        echo "kept, since it was changed: $destination$2"
    elif [[ $verb == install && -e $destination$2 ]]; then
        cmp -s "$1" "$destination$2" || echo "kept, since it was changed: $destination$2"
    else
        put 644 "$1" "$2"
    fi
}

put_unit() {
    put 644 "$1" "$2"
    [[ $verb == uninstall ]] || sed -i -E \
        -e "s#^(Exec[A-Za-z]+=[-@:+!]*)(/usr/bin/)?$name#\1$prefix/bin/$name#" \
        -e "s#\(($name env)#($prefix/bin/\1#" "$destination$2"
}

put 755 dist/$name "$prefix/bin/$name"
put 644 dist/$name.8 "$prefix/share/man/man8/$name.8"
put 644 dist/$name.bash "$prefix/share/bash-completion/completions/$name"
put 644 dist/$name.zsh "$prefix/share/zsh/${ZSH_FOLDER:-site-functions}/_$name"
put 644 dist/$name.fish "$prefix/share/fish/vendor_completions.d/$name.fish"
put_config packaging/logrotate/$name /etc/logrotate.d/$name
for file in LICENSE README.md CHANGELOG.md docs/*.md; do
    [[ ! -e $file ]] || put 644 "$file" "$prefix/share/doc/$name/${file#docs/}"
done
for file in packaging/systemd/system/*; do
    put_unit "$file" "$prefix/lib/systemd/system/$(basename "$file")"
done
for file in packaging/systemd/user/*; do
    put_unit "$file" "$prefix/lib/systemd/user/$(basename "$file")"
done
for kind in system user; do
    put 644 packaging/systemd/vllmd.slice "$prefix/lib/systemd/$kind/vllmd.slice"
done
put 644 packaging/systemd/vllmd.sysusers "$prefix/lib/sysusers.d/vllmd.conf"
if [[ $verb == uninstall ]]; then
    rmdir --ignore-fail-on-non-empty "$destination$prefix/share/doc/$name" 2>/dev/null || true
    echo "left: /etc/vllmd, /var/lib/vllmd and /var/log/vllmd, and the users vllmd and vllmd-NAME"
fi
