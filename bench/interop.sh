#!/bin/sh
# Loads checkpoints in Hugging Face transformers and compares tokenizer, losses and greedy continuations with bzd's own: one
# that a rehearsal trained and exported, and one that a network of nodes agreed on, fetched over its IPFS gateway. Kubo
# fetches the latter over bitswap and gives it to others.
# Usage: interop.sh BZD VENV PYTHON IPFS
set -eu
bzd=$1 venv=$2 python=$3 ipfs=$4
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

peer=$(sed -n 's/.*bootstrap node at \[\([^] ]*\).*/\1/p' "$work/log")
checkpoint=$(sed -n 's/^  "checkpoint": "\(.*\)",*$/\1/p' "$work/result.json")
BZD_KUBO=$(realpath "$ipfs") BZD_KUBO_PEER=$peer BZD_KUBO_CHECKPOINT=$checkpoint "${GO:-go}" test -count=1 -run 'TestKubo$' -v ./cmd/bzd

kill "$net"
wait "$net" || true
net=

"$here/families.sh" "$bzd" "$venv" "$work/families"
