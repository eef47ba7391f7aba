#!/bin/sh
# Usage: sysroot.sh ARCH DIR
#
# Unpacks into DIR what clang needs to build static programs with libelf and zlib for
# ARCH, an architecture as Debian names it: headers and libraries of Debian 12.
set -eu

arch=$1
dir=$2
packages='libc6-dev linux-libc-dev libgcc-12-dev libelf-dev zlib1g-dev'
. "$(dirname "$0")/debian.sh"

[ "$(cat "$dir/complete" 2>/dev/null)" = "$packages" ] && exit 0
rm -rf "$dir"
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
echo "downloading $packages for $arch" >&2
debian_lists "$dir/apt" "$arch" deb bookworm
for package in $packages; do
	debian_unpack "$package" "$dir"
done
rm -rf "$dir/apt"
echo "$packages" >"$dir/complete"
