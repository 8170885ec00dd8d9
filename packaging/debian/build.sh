#!/usr/bin/env bash
# Builds the Debian package from dist/: build.sh [OUTPUT-FOLDER]. `make deb` makes what it needs.
# The same commit and tools give the same bytes. DEBFULLNAME and DEBEMAIL name the maintainer.
set -euo pipefail
cd "$(dirname "$0")/../.."
output=${1:-dist}
name=vllmd-hypervisor
here=packaging/debian
version=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' vmm/__init__.py)-1
maintainer="${DEBFULLNAME:-vllmd-hypervisor maintainers} <${DEBEMAIL:-noreply@example.org}>"
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || stat -c %Y vmm/__init__.py)}
export SOURCE_DATE_EPOCH

umask 022
mkdir -p build "$output"
root=$(mktemp -d build/deb.XXXXXX)
trap 'rm -rf "$root"' EXIT
chmod 755 "$root"
ZSH_FOLDER=vendor-completions packaging/install.sh install "$root" /usr

# Debian's own places and names for documents.
documents=$root/usr/share/doc/$name
rm "$documents/LICENSE"
install -m 644 $here/copyright "$documents/copyright"
mv "$documents/CHANGELOG.md" "$documents/changelog"
cat >"$documents/changelog.Debian" <<END
$name ($version) unstable; urgency=medium

  * Built from the source tree; see changelog.gz.

 -- $maintainer  $(date --utc --rfc-email --date="@$SOURCE_DATE_EPOCH")
END
gzip -9n "$documents/changelog" "$documents/changelog.Debian" "$root/usr/share/man/man8/$name.8"
install -D -m 644 $here/lintian-overrides "$root/usr/share/lintian/overrides/$name"
install -d -m 755 "$root/etc/vllmd"

mkdir "$root/DEBIAN"
for script in postinst prerm postrm; do
    install -m 755 "$here/$script" "$root/DEBIAN/$script"
done
echo /etc/logrotate.d/$name >"$root/DEBIAN/conffiles"
(cd "$root" && find usr -type f -print0 | sort -z | xargs -0 md5sum) >"$root/DEBIAN/md5sums"
size=$(du -k -s --apparent-size "$root" | cut -f1)
sed -e "s/@VERSION@/$version/" -e "s/@MAINTAINER@/$maintainer/" -e "s/@SIZE@/$size/" \
    $here/control >"$root/DEBIAN/control"
find "$root" -newermt "@$SOURCE_DATE_EPOCH" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
dpkg-deb --root-owner-group --build "$root" "$output/${name}_${version}_amd64.deb" >/dev/null
echo "$output/${name}_${version}_amd64.deb"
