# For scripts that use Debian packages that are not installed on this machine, of other
# releases or architectures. They source this file. apt checks the signatures. It uses
# lists, sources and a cache of its own, and leaves the machine's alone.

# debian_uri prints the URI from which this machine's apt gets Debian packages.
debian_uri() {
	[ -e "$keyring" ] || return 0
	apt-get indextargets 'Created-By: Packages' 'Origin: Debian' 'Label: Debian' \
		--format '$(REPO_URI)' 2>/dev/null | head -n 1
}

keyring=/usr/share/keyrings/debian-archive-keyring.gpg

# debian_lists DIR ARCH TYPE SUITE... downloads the package lists (of TYPE deb or deb-src)
# into DIR, an absolute path, for the functions below. Lists are kept for a day. It fails
# if there is no Debian archive.
debian_lists() {
	debian_dir=$1
	debian_arch=$2
	type=$3
	shift 3
	mkdir -p "$debian_dir/lists/partial" "$debian_dir/cache/archives/partial"
	[ -z "$(find "$debian_dir/updated" -mtime -1 2>/dev/null)" ] || return 0
	uri=$(debian_uri)
	if [ -z "$uri" ]; then
		echo "error: this system has no Debian archive" >&2
		return 1
	fi
	for suite; do
		echo "$type [signed-by=$keyring] $uri $suite main"
	done >"$debian_dir/sources.list"
	if debian_get update; then
		touch "$debian_dir/updated"
	else
		[ -e "$debian_dir/updated" ] && echo "going on with older lists of packages" >&2
	fi
}

# debian COMMAND... runs a command of apt.
debian() {
	command=$1
	shift
	"$command" -q -o "Dir::Etc::SourceList=$debian_dir/sources.list" -o Dir::Etc::SourceParts=/dev/null \
		-o "Dir::State::Lists=$debian_dir/lists" -o Dir::State::status=/dev/null \
		-o "Dir::Cache=$debian_dir/cache" -o "APT::Architecture=$debian_arch" \
		-o "APT::Architectures=$debian_arch" -o Acquire::Languages=none -o APT::Sandbox::User=root "$@"
}

# debian_get COMMAND... runs apt-get in DIR/cache, and prints its output if it fails.
debian_get() {
	(cd "$debian_dir/cache" && debian apt-get "$@") >"$debian_dir/log" 2>&1 || {
		cat "$debian_dir/log" >&2
		return 1
	}
}

# debian_unpack PACKAGE TO downloads a package and unpacks it.
debian_unpack() {
	debian_get download "$1" || return
	dpkg -x "$debian_dir/cache/$1"_*.deb "$2" || return
	rm -f "$debian_dir/cache/$1"_*.deb
}

# debian_source PACKAGE TO downloads a source package (NAME, or NAME=VERSION) and unpacks it.
debian_source() {
	rm -rf "$debian_dir/cache/${1%=*}"-*/ "$2"
	debian_get source "$1" && mv "$debian_dir/cache/${1%=*}"-*/ "$2"
}
