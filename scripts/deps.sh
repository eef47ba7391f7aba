#!/bin/sh
# Usage: deps.sh [command=package | header.h=package]...
#
# Installs the Debian packages of the given commands, and of the given headers for the
# compiler $CC, if they are missing. Without arguments, it installs what building with cgo
# and libbpf needs: a C compiler, pkg-config, and the headers of libelf and zlib. It does
# not install Go, but checks for it. If everything is there, the script does nothing,
# quickly.
set -eu

die() {
	echo "error: $*" >&2
	exit 1
}

commands=
headers=
compiler=cc
if [ $# -gt 0 ]; then
	compiler=${CC:-cc}
	for wanted; do
		case $wanted in
		*.h=*) headers="$headers $wanted" ;;
		*) commands="$commands $wanted" ;;
		esac
	done
else
	commands='cc=gcc pkg-config=pkg-config'
	headers='stdio.h=libc6-dev linux/types.h=linux-libc-dev libelf.h=libelf-dev zlib.h=zlib1g-dev'
	go_version=$(go env GOVERSION 2>/dev/null) ||
		die "the go command is missing; Go 1.24 or newer is needed: https://go.dev/dl"
	case $go_version in
	go1.[0-9] | go1.[0-9][!0-9]* | go1.1[0-9]* | go1.2[0-3]*)
		die "Go 1.24 or newer is needed, this is $go_version: https://go.dev/dl"
		;;
	esac
fi

missing() {
	for command in $commands; do
		command -v "${command%=*}" >/dev/null || echo "$command"
	done
	for header in $headers; do
		echo "#include <${header%=*}>" | $compiler -E - >/dev/null 2>&1 || echo "$header"
	done
}

names() {
	missing | sed 's/=.*//' | paste -sd' ' -
}

[ -n "$(missing)" ] || exit 0
packages=$(missing | sed 's/.*=//' | paste -sd' ' -)

command -v apt-get >/dev/null ||
	die "missing: $(names); install what has them (Debian names them $packages)"
sudo=
if [ "$(id -u)" -ne 0 ]; then
	command -v sudo >/dev/null || die "missing: $(names); install as root: apt-get install $packages"
	sudo=sudo
fi

echo "installing $packages" >&2
log=$(mktemp)
trap 'rm -f "$log"' EXIT
for step in update "install -y --no-install-recommends $packages"; do
	# $step is split into words on purpose.
	# shellcheck disable=SC2086
	$sudo env DEBIAN_FRONTEND=noninteractive apt-get $step >"$log" 2>&1 || {
		cat "$log" >&2
		die "apt-get $step failed"
	}
done
[ -z "$(missing)" ] || die "still missing after installing $packages: $(names)"
