#!/bin/sh
# Installs what building and testing need: a C compiler, clang (for BPF),
# clang-format, pkg-config, and the headers of libelf and zlib. It does nothing,
# quickly, when everything is there.
set -eu

# What is still missing, as "thing=Debian package" words.
missing() {
	command -v cc >/dev/null || echo cc=gcc
	command -v clang >/dev/null || echo clang=clang
	command -v clang-format >/dev/null || echo clang-format=clang-format
	command -v pkg-config >/dev/null || echo pkg-config=pkg-config
	command -v cc >/dev/null || return 0
	for header in stdio.h=libc6-dev linux/types.h=linux-libc-dev libelf.h=libelf-dev zlib.h=zlib1g-dev; do
		echo "#include <${header%=*}>" | cc -E - >/dev/null 2>&1 || echo "$header"
	done
}

go_version=$(go env GOVERSION 2>/dev/null) || {
	echo "error: the go command is missing; Go 1.24 or newer is needed: https://go.dev/dl" >&2
	exit 1
}
case $go_version in
go1.[0-9] | go1.[0-9].* | go1.1[0-9] | go1.1[0-9].* | go1.2[0-3] | go1.2[0-3].*)
	echo "error: Go 1.24 or newer is needed, this is $go_version: https://go.dev/dl" >&2
	exit 1
	;;
esac

[ -n "$(missing)" ] || exit 0

if ! command -v apt-get >/dev/null; then
	echo "error: missing: $(missing | sed 's/=.*//' | paste -sd' ' -);" \
		"install a C compiler, clang, clang-format, pkg-config and the development files" \
		"of the C library, the kernel headers, libelf and zlib" >&2
	exit 1
fi

as_root=
if [ "$(id -u)" -ne 0 ]; then
	command -v sudo >/dev/null || {
		echo "error: missing packages: $(missing | sed 's/.*=//' | paste -sd' ' -);" \
			"install them as root: apt-get install $(missing | sed 's/.*=//' | paste -sd' ' -)" >&2
		exit 1
	}
	as_root=sudo
fi

# A missing compiler hides what else is missing, so all packages are named.
packages="gcc libc6-dev linux-libc-dev libelf-dev zlib1g-dev pkg-config clang clang-format"
echo "installing $packages" >&2
log=$(mktemp)
trap 'rm -f "$log"' EXIT
for step in update "install -y --no-install-recommends $packages"; do
	# $step is split into words on purpose.
	# shellcheck disable=SC2086
	$as_root env DEBIAN_FRONTEND=noninteractive apt-get $step >"$log" 2>&1 || {
		cat "$log" >&2
		echo "error: apt-get $step failed" >&2
		exit 1
	}
done
[ -z "$(missing)" ] || {
	echo "error: still missing after installing: $(missing | sed 's/=.*//' | paste -sd' ' -)" >&2
	exit 1
}
