#!/bin/sh
# Usage: pictures.sh BIN DIR
#
# Draws DIR/top.svg: the screen of the tool BIN/ringbuf in the terminal tmux, while the
# examples BIN/execsnoop and BIN/sharded run. Needs root.
set -eu

bin=$1
dir=$2
work=$(mktemp -d)
export TMUX_TMPDIR="$work"
children=
finish() {
	for child in $children; do
		kill "$child" 2>/dev/null || true
	done
	tmux kill-server 2>/dev/null || true
	rm -rf "$work"
}
trap finish EXIT
trap 'exit 1' INT TERM

# terminal COMMAND... runs a command in a new terminal.
terminal() {
	tmux -f /dev/null new-session -d -x 110 -y 14 "$* 2>$work/errors; sleep 60"
	tmux set -g status off
}

# await PATTERN waits until the terminal shows a line that matches PATTERN.
await() {
	for _ in $(seq 300); do
		tmux capture-pane -p | grep -qE "$1" && return
		sleep 0.1
	done
	echo "error: the terminal does not show $1:" >&2
	tmux capture-pane -p >&2
	cat "$work/errors" >&2
	exit 1
}

# picture NAME TITLE draws the content of the terminal.
picture() {
	tmux capture-pane -ep >"$work/screen"
	tmux kill-server
	"$bin/picture" -title "$2" <"$work/screen" >"$dir/$1.svg"
}

mkdir -p "$dir"
"$bin/execsnoop" -demo >/dev/null &
children="$children $!"
"$bin/sharded" >/dev/null &
children="$children $!"

terminal "$bin/ringbuf top"
await 'execsnoop \('
await 'sharded \('
picture top 'ringbuf top'
