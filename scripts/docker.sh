#!/bin/sh
# Usage: docker.sh base | build [FLAG]... | save
#
# base makes the image localhost/ringbuf-base: Debian 13, from the archive that this
# machine uses. It is for machines that cannot reach a registry. build builds the image
# ringbuf with the engine's FLAGs, unpacks it into output/docker/image, and runs its
# selftests. Its base is $BASE or, if that is empty, localhost/ringbuf-base if it exists.
# save prints the image that was built, for docker load.
#
# The engine is docker, podman or buildah: the first that works. Root is needed, because
# the containers of a rootless engine cannot load BPF programs.
set -eu
cd "$(dirname "$0")/.."

die() {
	echo "error: $*" >&2
	exit 1
}

find_engine() {
	for engine in docker podman; do
		"$engine" info >/dev/null 2>&1 && return
	done
	scripts/deps.sh buildah=buildah
	engine=buildah
	export BUILDAH_ISOLATION="${BUILDAH_ISOLATION:-chroot}" # needs no runtime
	buildah info >/dev/null 2>&1 || export STORAGE_DRIVER=vfs
}

# The base gets the apt settings and certificates of this machine, for its mirrors. Do not
# publish it: the settings may contain passwords of proxies.
build_base() {
	. scripts/debian.sh
	certificates=/etc/ssl/certs/ca-certificates.crt
	scripts/deps.sh mmdebstrap=mmdebstrap
	uri=$(debian_uri)
	[ -n "$uri" ] || die "this system has no Debian archive"
	dir=$(mktemp -d)
	trap 'rm -rf "$dir"' EXIT
	apt-config dump Acquire >"$dir/apt.conf"
	mmdebstrap --quiet --variant=minbase --include=ca-certificates --keyring=$keyring \
		--aptopt="$dir/apt.conf" \
		--customize-hook="upload $certificates /usr/local/share/ca-certificates/host.crt" \
		--customize-hook='chroot "$1" update-ca-certificates >/dev/null 2>&1' \
		trixie "$dir/base.tar" "$uri"
	printf 'FROM scratch\nADD base.tar /\n' >"$dir/Dockerfile"
	"$engine" build -t localhost/ringbuf-base "$dir"
}

build() {
	if [ -z "${BASE:-}" ] && "$engine" inspect --type image localhost/ringbuf-base >/dev/null 2>&1; then
		BASE=localhost/ringbuf-base
	fi
	"$engine" build ${BASE:+--build-arg "BASE=$BASE"} \
		--build-arg "GOPROXY=$(go env GOPROXY 2>/dev/null)" "$@" -t ringbuf .
}

# Unpacks the image, with the capabilities of its files.
unpack() {
	rm -rf output/docker
	mkdir -p output/docker/image
	chmod 0700 output/docker # only for this user, because the programs have capabilities
	if [ "$engine" = buildah ]; then
		container=$(buildah from --pull-never ringbuf)
		cp -a "$(buildah mount "$container")"/* output/docker/image
	else
		container=$("$engine" create ringbuf)
		"$engine" export "$container" |
			tar -x --xattrs --xattrs-include=security.capability -C output/docker/image
	fi
	"$engine" rm "$container" >/dev/null
	# A user who ran this with sudo can remove the directories without it.
	find output/docker -type d -exec chown --reference=. {} +
}

save() {
	if [ "$engine" = buildah ]; then
		archive=$(mktemp -d)
		trap 'rm -rf "$archive"' EXIT
		buildah push --quiet ringbuf "docker-archive:$archive/image.tar:ringbuf:latest" >&2
		cat "$archive/image.tar"
	else
		"$engine" save ringbuf
	fi
}

check() {
	for program in bin/execsnoop bin/flightrecorder bin/selftest bin/selftests/*; do
		ldd "$program" 2>&1 | grep -q 'not a dynamic executable' || die "$program is not static"
		sha256sum "$program"
	done
	echo "as root:"
	bin/selftest
	echo "as the image's user, with CAP_BPF and CAP_PERFMON:"
	# Run in /mnt, because that user may not be allowed to enter this directory.
	# shellcheck disable=SC2016
	unshare --mount sh -c 'mount --bind "$1" /mnt && shift && exec "$@"' - "$PWD" \
		setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps=-all \
		--bounding-set=-all,+bpf,+perfmon /mnt/bin/selftest
	[ "$engine" != buildah ] || return 0 # it can only build
	echo "in a container:"
	"$engine" run --rm --privileged ringbuf selftest
}

find_engine
case ${1:-} in
base)
	build_base
	;;
build)
	shift
	build "$@"
	unpack
	cd output/docker/image
	check
	;;
save)
	save
	;;
*)
	die "usage: docker.sh base | build [FLAG]... | save"
	;;
esac
