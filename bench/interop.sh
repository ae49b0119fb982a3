#!/bin/sh
# Loads a trained checkpoint in Hugging Face transformers and compares tokenizer, losses and greedy continuations with
# bzd's own. Usage: interop.sh BZD VENV PYTHON
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
trap 'rm -rf "$work"' EXIT
"$bzd" rehearse --cycles 1 --miners 1 --dir "$work/net" >/dev/null
"$bzd" checkpoint export "$work/net/cycle-0001" "$work/export"
"$venv/bin/python" "$here/interop.py" "$bzd" "$work/export"
