#!/bin/sh
# Usage: kernel.sh ARCH DIR VERSION...
#
# Prints the paths of Debian's Linux kernels. For each VERSION (such as 5.10 or 7;
# "newest" means any) it chooses the newest kernel for cloud machines that a suite of
# Debian has for ARCH, an architecture as Debian names it. A VERSION with a slash is
# itself a path. Kernels and apt's lists are kept below DIR.
set -eu

arch=$1
dir=$2
shift 2
suites='bullseye bookworm bookworm-backports trixie trixie-backports'
. "$(dirname "$0")/debian.sh"

die() {
	echo "error: kernel $version: $*" >&2
	exit 1
}

find_kernel() {
	case $version in
	newest) pattern='[0-9]' ;;
	*) pattern=$(echo "$version" | sed 's/\./\\./g')'[.+-]' ;;
	esac
	release=$(debian apt-cache pkgnames linux-image- |
		sed -n "s/^linux-image-\($pattern.*-cloud-$arch\)\$/\1/p" | sort -V | tail -n 1)
	[ -n "$release" ] || die "Debian has none for $arch in $suites (a file needs a slash: ./$version)"
	kernel=$dir/vmlinuz-$release
	[ -e "$kernel" ] || download
}

# In newer packages the kernel is in linux-binary-*, and not in /boot.
download() {
	echo "downloading Linux $release" >&2
	rm -rf "$dir/unpacked"
	debian_unpack "linux-image-$release" "$dir/unpacked" || die "not downloaded"
	file=$(find "$dir/unpacked" -type f -name 'vmlinuz*')
	if [ -z "$file" ]; then
		debian_unpack "linux-binary-$release" "$dir/unpacked" || die "not downloaded"
		file=$(find "$dir/unpacked" -type f -name 'vmlinuz*')
	fi
	[ -e "$file" ] || die "linux-image-$release and linux-binary-$release have not one vmlinuz: $file"
	mv "$file" "$kernel"
	rm -rf "$dir/unpacked"
}

for version; do
	case $version in
	*/*) [ -f "$version" ] || die "there is no such file" ;;
	esac
done
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
for version; do
	case $version in
	*/*)
		kernel=$version
		;;
	*)
		# shellcheck disable=SC2086
		debian_lists "$dir/apt-$arch" "$arch" deb $suites || die "name a file instead: KERNEL=/path/to/bzImage"
		find_kernel
		;;
	esac
	echo "$kernel"
done
