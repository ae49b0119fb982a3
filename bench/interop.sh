#!/bin/sh
# Loads checkpoints in Hugging Face transformers and compares tokenizer, losses and greedy continuations with bzd's own: one
# that a rehearsal trained and exported, and one that a network of nodes agreed on, fetched over its IPFS gateway.
# Usage: interop.sh BZD VENV PYTHON
set -eu
bzd=$1 venv=$2 python=$3
here=$(dirname "$0")
if [ ! -x "$venv/bin/python" ]; then
	"$python" -m venv "$venv"
fi
if ! "$venv/bin/python" -c 'import torch, transformers' 2>/dev/null; then
	"$venv/bin/pip" install --quiet torch==2.9.1 transformers==4.57.3 numpy
fi
work=$(mktemp -d)
net=
clean() {
	if [ -n "$net" ]; then
		kill "$net" 2>/dev/null || true
		wait "$net" || true
	fi
	rm -rf "$work"
}
trap clean EXIT
trap 'exit 130' INT TERM

"$bzd" rehearse --cycles 1 --miners 1 --dir "$work/net" >/dev/null
"$bzd" checkpoint export "$work/net/cycle-0001" "$work/export"
"$venv/bin/python" "$here/interop.py" "$bzd" "$work/export"

"$bzd" devnet --cycles 1 --miners 3 --serve --json --dir "$work/devnet" >"$work/result.json" 2>"$work/log" &
net=$!
until grep -q 'serving at' "$work/log"; do
	if ! kill -0 "$net" 2>/dev/null; then
		cat "$work/log" >&2
		exit 1
	fi
	sleep 1
done
"$venv/bin/python" "$here/fetch.py" "$work/result.json" "$work/fetched"
"$venv/bin/python" "$here/interop.py" "$bzd" "$work/fetched"

kill "$net"
wait "$net" || true
net=

"$here/families.sh" "$bzd" "$venv" "$work/families"
