#!/bin/sh
# Usage: libbpf.sh PREFIX [CFLAGS]
#
# Builds a static libbpf, and installs it below PREFIX with its headers and its copy of
# the kernel's uapi headers. CFLAGS are added to the compiler's flags. The source is the
# first of these:
#
#  1. $LIBBPF_SRC, if set: a checkout of github.com/libbpf/libbpf, of version 1.3 or newer,
#     or "system" for the static libbpf that pkg-config finds, which is copied;
#  2. the submodule libbpf/, which is checked out if necessary and possible;
#  3. Debian's source package.
#
# Nothing is built if source and flags are those of the last build.
set -eu

prefix=$1
cflags="-g -O2 -fPIC ${2:-}"
top=$(cd "$(dirname "$0")/.." && pwd)
debian=$top/output/libbpf-source # for all builds
minimum=1.3

die() {
	echo "error: libbpf: $*" >&2
	exit 1
}

# The source package of Debian 13 has libbpf 1.5.
source_package() {
	. "$top/scripts/debian.sh"
	apt=$prefix/apt
	command -v apt-get >/dev/null ||
		die "no source: check out the submodule (git submodule update --init)" \
			"or set LIBBPF_SRC to a checkout of libbpf >= $minimum"
	"$top/scripts/deps.sh" dpkg-source=dpkg-dev patch=patch xz=xz-utils
	rm -rf "$apt"
	mkdir -p "$top/output"
	debian_lists "$apt" "$(dpkg --print-architecture)" deb-src trixie &&
		debian_source libbpf "$debian" ||
		die "no source: the submodule cannot be checked out and Debian's source package cannot be had;" \
			"set LIBBPF_SRC to a checkout of libbpf >= $minimum"
	rm -rf "$apt"
}

# The distribution's libbpf goes with the distribution's kernel headers.
system_libbpf() {
	pkg-config --atleast-version=$minimum libbpf ||
		die "LIBBPF_SRC=system: pkg-config finds no libbpf >= $minimum (Debian 13 has 1.5 in libbpf-dev)"
	library=$(pkg-config --variable=libdir libbpf)/libbpf.a
	headers=$(pkg-config --variable=includedir libbpf)/bpf
	[ -e "$library" ] || die "LIBBPF_SRC=system: there is no $library"
	hash=$(sha256sum "$library" "$headers"/* | sha256sum)
	built && return
	clean
	mkdir -p "$prefix/include" "$prefix/lib"
	cp -r "$headers" "$prefix/include"
	cp "$library" "$prefix/lib"
	echo "$hash" >"$prefix/built"
}

built() {
	[ "$(cat "$prefix/built" 2>/dev/null)" = "$hash" ]
}

clean() {
	rm -rf "$prefix/built" "$prefix/obj" "$prefix/include" "$prefix/lib"
}

find_source() {
	if [ -n "${LIBBPF_SRC:-}" ]; then
		# LIBBPF_SRC may be the checkout or its src directory.
		for src in "$LIBBPF_SRC" "$LIBBPF_SRC/.."; do
			[ -e "$src/src/libbpf.c" ] && [ -d "$src/include/uapi" ] || continue
			version=$(sed -n 's/^#define LIBBPF_M[A-Z]*_VERSION //p' "$src/src/libbpf_version.h" |
				paste -sd. -)
			[ "$(printf '%s\n' "$version" $minimum | sort -V | head -n 1)" = $minimum ] ||
				die "LIBBPF_SRC=$LIBBPF_SRC is libbpf $version; $minimum or newer is needed"
			return
		done
		die "LIBBPF_SRC=$LIBBPF_SRC is no source of libbpf: it has no src/libbpf.c or no include/uapi"
	fi
	src=$top/libbpf
	[ -e "$src/src/libbpf.c" ] && return
	if [ ! -e "$debian/src/libbpf.c" ]; then
		echo "libbpf: checking out the submodule" >&2
		GIT_TERMINAL_PROMPT=0 git -C "$top" submodule --quiet update --init libbpf 2>"$prefix/log" && return
		echo "libbpf: that did not work ($(grep -m1 fatal "$prefix/log")); taking Debian's source package" >&2
		source_package
	fi
	src=$debian
}

mkdir -p "$prefix"
if [ "${LIBBPF_SRC:-}" = system ]; then
	system_libbpf
	exit 0
fi
find_source
src=$(cd "$src" && pwd)
hash=$(cd "$src" && { find src include -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum; echo "$cflags"; } |
	sha256sum)
built && exit 0

echo "libbpf: building $src" >&2
clean
mkdir "$prefix/obj" # up to 1.4, libbpf writes libbpf.pc there before it makes the directory
env -u MAKEFLAGS -u MFLAGS make -j"$(nproc)" -C "$src/src" BUILD_STATIC_ONLY=1 CFLAGS="$cflags" \
	OBJDIR="$prefix/obj" DESTDIR="$prefix" PREFIX= LIBDIR=/lib INCLUDEDIR=/include UAPIDIR=/include \
	install install_uapi_headers >"$prefix/log" 2>&1 || {
	cat "$prefix/log" >&2
	die "the build failed"
}
echo "$hash" >"$prefix/built"
