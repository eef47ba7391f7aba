# The demo, the selftests and the tool as static programs, and nothing else. See `make
# docker`.
ARG BASE=debian:trixie-slim

FROM $BASE AS build
RUN apt-get update && \
	DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
		ca-certificates clang gcc golang-go libbpf-dev libc6-dev libcap2-bin libelf-dev \
		linux-libc-dev make pkg-config zlib1g-dev && \
	rm -rf /var/lib/apt/lists/*
ARG GOPROXY
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY capture/go.mod capture/
COPY ship/go.mod ship/
COPY cmd/ringbuf/go.mod cmd/ringbuf/go.sum cmd/ringbuf/
RUN cd cmd/ringbuf && go mod download
COPY . .
RUN [ -e libbpf/src/libbpf.c ] || export LIBBPF_SRC=system; GOTOOLCHAIN=auto make static tool

# The capabilities are permitted but not effective (=p). With =ep a program could not
# start in a container that lacks one of them. With =p it starts, and says what it lacks.
# scripts/capabilities.c, which make static links in, makes them effective. CAP_SYS_ADMIN
# is for engines that do not know CAP_BPF, and for selftests that mount.
RUN install -d /image/bin && install -d -m 1777 /image/tmp && \
	cp -r output/static/. output/ringbuf /image/bin && \
	for program in /image/bin/execsnoop /image/bin/flightrecorder /image/bin/selftests/*; do \
		setcap cap_bpf,cap_perfmon,cap_sys_admin=p "$program" || exit; \
	done

FROM scratch
COPY --from=build /image /
ENV PATH=/bin
USER 65534:65534
CMD ["execsnoop", "-demo"]
