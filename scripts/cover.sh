#!/bin/sh
# Usage: cover.sh DIR MIN_GO MIN_C [flag of go test]...
#
# Runs the package's tests. Prints the Go and C code that they did not reach, and the
# coverage in percent. Fails if the coverage is less than MIN_GO or MIN_C. Writes pages
# with all of the code below DIR.
#
# clang's counters for C are mapped into a file while they count (%c), because a Go
# program ends without running the code that writes them at exit. A program may have child
# processes (%p).
set -eu

dir=$1
min_go=$2
min_c=$3
shift 3
top=$(cd "$(dirname "$0")/.." && pwd)
export CC=clang
export CGO_CFLAGS="$CGO_CFLAGS -g -fprofile-instr-generate -fcoverage-mapping -mllvm -runtime-counter-relocation"
export CGO_LDFLAGS="$CGO_LDFLAGS -fprofile-instr-generate"
export LLVM_PROFILE_FILE="$dir/c-%p.profraw%c"

rm -rf "$dir"
mkdir -p "$dir/go"
go test -count=1 -timeout 5m -cover -o "$dir/ringbuf.test" "$@" "$top" -test.gocoverdir="$dir/go"
go tool covdata textfmt -i="$dir/go" -o "$dir/go.out"
go tool cover -html="$dir/go.out" -o "$dir/go.html"
llvm-profdata merge -sparse "$dir"/*.profraw -o "$dir/c.profdata"

# clang's paths may be relative to the root directory.
cd /
llvm() {
	command=$1
	shift
	llvm-cov "$command" "$dir/ringbuf.test" -instr-profile="$dir/c.profdata" "$@"
}
sources=$(llvm report | awk '$1 ~ /(^|\/)ringbuf_cgo[a-z_]*\.c$/ { print $1 }')
# shellcheck disable=SC2086 # one argument for each file
llvm show -format=html $sources >"$dir/c.html"

echo
echo "Go that was not reached:"
sed '1d; s/:\([0-9]*\)\.[0-9]*,\([0-9]*\)\.[0-9]* [0-9]* / \1 \2 /' "$dir/go.out" | sort -k1,1 -k2,2n |
	awk -v top="$top" '
		# Blocks of a statement begin on its line.
		$4 == 0 {
			name = $1
			sub(/.*\//, "", name)
			if (name != open) {
				if (open) close(top "/" open)
				open = name
				n = 0
			}
			printf "\n%s:%d-%d\n", name, $2, $3
			for (; n < $3 && (getline text[n + 1] < (top "/" name)) > 0; n++);
			for (i = $2; i <= $3; i++) print text[i]
		}'

echo
echo "C that was not reached (^0: a part of the line):"
for source in $sources; do
	llvm show -show-line-counts -show-regions "$source" | awk -v name="${source##*/}" '
	# The previous line says why.
	function block() {
		if (!first) return
		printf "\n%s:%d-%d\n", name, first, last
		for (i = whole[first] ? first - 1 : first; i <= last; i++) print text[i] marks[i]
		first = 0
	}
	function missed() {
		if (!first) first = n
		last = n
	}
	/^ *[0-9]+\|/ {
		n = $1 + 0
		text[n] = $0
		sub(/^[^|]*\|[^|]*\|/, "", text[n])
		whole[n] = $0 ~ /^ *[0-9]+\| +0\|/
		if (first && last < n - 1) block()
		if (whole[n]) missed()
	}
	/\^0( |$)/ && !whole[n] {
		gsub(/\^[1-9][0-9.kMG]*/, "")
		marks[n] = "\n" substr($0, 16)
		missed()
	}
	END { block() }'
done

go=$(awk 'NR > 1 { all += $2; if ($3) reached += $2 } END { printf "%.1f", 100 * reached / all }' "$dir/go.out")
# shellcheck disable=SC2086
c=$(llvm report $sources | awk '$1 == "TOTAL" { printf "%.1f", 100 * ($8 - $9) / $8 }')
echo
echo "Go: $go % of statements were reached (at least $min_go)"
echo "C: $c % of lines of ringbuf_cgo*.c were reached (at least $min_c)"
echo "$go $min_go $c $min_c" | awk '{ exit $1 < $2 || $3 < $4 }' || {
	echo "error: the tests reach less of the code than they did" >&2
	exit 1
}
