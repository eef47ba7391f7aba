#!/bin/sh
# Usage: compat.sh DIR [flag of go test]...
#
# Runs the package's tests with releases of libbpf from 1.3 on, and prints a table. Each
# release is tested with the libbpfgo of go.mod, which is the lowest, and with the
# libbpfgo of bench, which is the newest. All files are built below DIR. $LIBBPF chooses
# the releases:
#
#  all         each release whose source is available (the default)
#  ends        the oldest with the lowest libbpfgo, and the newest with the newest
#  1.3.0 1.4   these; for 1.4, the newest 1.4.x
#
# The script fails if a test fails, or if no test could run.
#
# The sources are tags of $LIBBPF_GIT, which git can clone (by default the submodule's
# URL), and Debian's source packages, from suites that this machine's archive has.
set -eu

dir=$1
shift
top=$(cd "$(dirname "$0")/.." && pwd)
suites='bookworm-backports trixie trixie-backports forky sid' # bookworm has 1.1
cd "$top"
. scripts/debian.sh
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)

die() {
	echo "error: compat: $*" >&2
	exit 1
}

say() { echo "compat: $*" >&2; }

# libbpfgo FILE prints the version of libbpfgo that a go.mod requires.
libbpfgo() { sed -n 's/^.*aquasecurity\/libbpfgo \(v[^ ]*\).*/\1/p' "$1"; }

# at_least VERSION MINIMUM succeeds if VERSION is MINIMUM or newer.
at_least() { [ "$(printf '%s\n' "$1" "$2" | sort -V | head -n 1)" = "$2" ]; }

# releases prints "VERSION git" or "VERSION SUITE PACKAGE_VERSION" for each available
# release.
releases() {
	GIT_TERMINAL_PROMPT=0 git ls-remote --tags --refs "$git" 'v1.*' 2>"$dir/log" |
		sed -n 's/.*refs\/tags\/v\([0-9.]*\)$/\1 git/p'
	[ ! -s "$dir/log" ] || say "no tags of $git: $(head -n 1 "$dir/log")"
	command -v apt-get >/dev/null || return 0
	for suite in $suites; do
		debian_lists "$dir/apt-$suite" "$(dpkg --print-architecture)" deb-src "$suite" 2>"$dir/log" ||
			{ say "no sources of Debian's $suite: $(grep -m 1 -E '^(E:|error)' "$dir/log")"; continue; }
		debian apt-cache showsrc libbpf 2>/dev/null | sed -n "s/^Version: \(\([^-]*\)-.*\)/\2 $suite \1/p"
	done
}

# get_source VERSION unpacks the source into DIR/src-VERSION. It can fail, for example if
# a package is in Debian's list but not in the archive.
get_source() {
	[ -e "$dir/src-$1/src/libbpf.c" ] && return
	unpack "$1" "$dir/src-$1" 2>"$dir/log-source" ||
		{ say "libbpf $1: no source: $(grep -m 1 -E '^(E:|fatal|error)' "$dir/log-source")"; return 1; }
}

unpack() {
	src=$2
	rm -rf "$src"
	# If git and Debian, or several suites, have a release, the first one is used.
	line=$(grep -m 1 "^$1 " "$dir/releases")
	suite=${line#* }
	if [ "$suite" = git ]; then
		GIT_TERMINAL_PROMPT=0 git clone --quiet --depth 1 --branch "v$1" "$git" "$src" || return
	else
		scripts/deps.sh dpkg-source=dpkg-dev patch=patch xz=xz-utils
		debian_lists "$dir/apt-${suite% *}" "$(dpkg --print-architecture)" deb-src "${suite% *}" &&
			debian_source "libbpf=${suite#* }" "$src"
	fi
}

# run_tests LIBBPF LIBBPFGO FLAG... runs the tests, and prints the result.
run_tests() {
	log=$dir/log-$1-$2
	say "libbpf $1, libbpfgo $2: running tests"
	modfile=$dir/$2.mod
	sed "s/\(aquasecurity\/libbpfgo \)v.*/\1$2/" go.mod >"$modfile"
	cat go.sum bench/go.sum >"$dir/$2.sum"
	export GOFLAGS="$goflags -modfile=$modfile"
	export CGO_CFLAGS="-I$dir/$1/include" CGO_LDFLAGS="-L$dir/$1/lib -lbpf -lelf -lz"
	shift 2
	if go test -count=1 -timeout 10m -v "$@" . >"$log" 2>&1; then
		echo "passed $(grep -c '^--- PASS' "$log"), skipped $(grep -c '^--- SKIP' "$log" || :)"
	else
		echo FAILED
		say "see $log:"
		tail -n 50 "$log" >&2
	fi
}

# cell prints one field of the table.
cell() {
	needed=$(echo "${2#*-libbpf-}" | cut -d. -f1,2)
	if ! at_least "$1" "$needed"; then
		echo "needs libbpf $needed"
	elif [ "${LIBBPF:-}" = ends ] && [ "$1 $2" != "$first $lowest" ] &&
		[ "$1 $2" != "$last $newest" ]; then
		echo -
	else
		run_tests "$@"
	fi
}

git=${LIBBPF_GIT:-$(git config -f .gitmodules submodule.libbpf.url)}
goflags=$(go env GOFLAGS)
lowest=$(libbpfgo go.mod)
newest=$(libbpfgo bench/go.mod)
releases | while read -r version rest; do
	! at_least "$version" 1.3 || echo "$version $rest"
done | sort -V -s -k1,1 >"$dir/releases"
[ -s "$dir/releases" ] ||
	die "no source of libbpf 1.3 or newer can be had; set LIBBPF_GIT to a clone of it"
versions=$(cut -d' ' -f1 "$dir/releases" | uniq)
last=$(echo "$versions" | tail -n 1)
case ${LIBBPF:-all} in
all) chosen=$versions ;;
ends)
	for first in $versions none; do
		[ "$first" = none ] || ! get_source "$first" || break
	done
	for last in $(echo "$versions" | sort -rV); do
		! get_source "$last" || break
	done
	[ "$first" != none ] || die "no source of libbpf can be had; set LIBBPF_GIT to a clone of it"
	chosen=$(printf '%s\n' "$first" "$last" | uniq)
	;;
*)
	chosen=
	for wanted in $LIBBPF; do
		version=$(echo "$versions" | grep -E "^$(echo "$wanted" | sed 's/\./\\./g')(\.|\$)" | tail -n 1)
		[ -n "$version" ] || die "libbpf $wanted cannot be had; there are" $versions
		chosen="$chosen $version"
	done
	;;
esac

format='%-8s %-20s %-24s %s\n'
table=$dir/table
# shellcheck disable=SC2059 # it is a format
printf "$format" libbpf from "libbpfgo $lowest" "libbpfgo $newest" >"$table"
for version in $chosen; do
	from=$(sed -n "s/^$version //p" "$dir/releases" | head -n 1)
	if ! get_source "$version"; then
		printf "$format" "$version" "${from% *}" 'not to be had' '' >>"$table"
		continue
	fi
	LIBBPF_SRC=$dir/src-$version scripts/libbpf.sh "$dir/$version"
	low=$(cell "$version" "$lowest" "$@")
	new=$(cell "$version" "$newest" "$@")
	printf "$format" "$version" "${from% *}" "$low" "$new" >>"$table"
done
# Minor versions without an available release.
minor=3
while [ "$minor" -lt "$(echo "$last" | cut -d. -f2)" ]; do
	echo "$versions" | grep -q "^1\.$minor\." ||
		printf "$format" "1.$minor" - 'not to be had' '' >>"$table"
	minor=$((minor + 1))
done
{ head -n 1 "$table"; tail -n +2 "$table" | sort -V; }
grep -q "passed [1-9]" "$table" && ! grep -q FAILED "$table"
