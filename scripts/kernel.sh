#!/bin/sh
# Usage: kernel.sh ARCH DIR VERSION...
#
# Prints the paths of Linux kernels of Debian's: for each version (such as 5.10 or 7;
# "newest" means any) the newest that some suite of Debian has for cloud machines of
# the architecture, as Debian names it. A VERSION with a slash is a path itself. The
# kernels and apt's lists are kept below DIR, the lists for a day.
set -eu

arch=$1
dir=$2
shift 2
suites='bullseye bookworm bookworm-backports trixie trixie-backports'

die() {
	echo "error: kernel $version: $*" >&2
	exit 1
}

# apt checks signatures, with sources, lists and a cache of its own so that the
# machine's are left alone.
apt() {
	command=$1
	shift
	"$command" -q -o "Dir::Etc::SourceList=$apt/sources.list" -o Dir::Etc::SourceParts=/dev/null \
		-o "Dir::State::Lists=$apt/lists" -o Dir::State::status=/dev/null -o "Dir::Cache=$apt/cache" \
		-o "APT::Architecture=$arch" -o "APT::Architectures=$arch" -o Acquire::Languages=none \
		-o APT::Sandbox::User=root "$@"
}

update_lists() {
	[ -z "$(find "$apt/updated" -mtime -1 2>/dev/null)" ] || return 0
	keyring=/usr/share/keyrings/debian-archive-keyring.gpg
	uri=$(apt-get indextargets 'Created-By: Packages' 'Origin: Debian' 'Label: Debian' \
		--format '$(REPO_URI)' | head -n 1)
	[ -n "$uri" ] && [ -e $keyring ] || die "this system has no Debian archive; name a file instead"
	mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial"
	for suite in $suites; do
		echo "deb [signed-by=$keyring] $uri $suite main"
	done >"$apt/sources.list"
	apt apt-get update >"$apt/log" 2>&1 || {
		cat "$apt/log" >&2
		die "apt-get update failed"
	}
	touch "$apt/updated"
}

# Prints where the kernel lies in the unpacked packages: newer ones have it in
# linux-binary-*, and elsewhere.
unpack() {
	rm -rf "$apt/unpacked"
	for package in "linux-image-$release" "linux-binary-$release"; do
		(cd "$apt/cache" && apt apt-get download "$package") >"$apt/log" 2>&1 || continue
		dpkg -x "$apt/cache/${package}_"*.deb "$apt/unpacked"
		rm -f "$apt/cache/${package}_"*.deb
	done
	find "$apt/unpacked" -type f -name 'vmlinuz*' | head -n 1
}

find_kernel() {
	case $version in
	newest) pattern='[0-9]' ;;
	*) pattern=$(echo "$version" | sed 's/\./\\./g')'[.+-]' ;;
	esac
	release=$(apt apt-cache pkgnames linux-image- |
		sed -n "s/^linux-image-\($pattern.*-cloud-$arch\)\$/\1/p" | sort -V | tail -n 1)
	[ -n "$release" ] || die "Debian has none for $arch in $(echo "$suites" | tr ' ' ,)"
	kernel=$dir/vmlinuz-$release
	[ ! -e "$kernel" ] || return 0
	echo "downloading Linux $release" >&2
	file=$(unpack)
	[ -n "$file" ] || die "no kernel in Debian's package linux-image-$release: $(cat "$apt/log")"
	mv "$file" "$kernel"
	rm -rf "$apt/unpacked"
}

mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
apt=$dir/apt-$arch
mkdir -p "$apt"
for version; do
	case $version in
	*/*)
		[ -r "$version" ] || die "no such file"
		kernel=$version
		;;
	*)
		command -v apt-get >/dev/null || die "there is no apt-get to get it with; name a file instead"
		update_lists
		find_kernel
		;;
	esac
	echo "$kernel"
done
