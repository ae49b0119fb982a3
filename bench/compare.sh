#!/bin/sh
# bzd against PyTorch on the demo model's shape, batches of 8×128 tokens, one thread each, in turn. Prints tokens per
# CPU second of both and the ratio. Usage: compare.sh VENV (with torch and transformers; see `make interop`).
set -eu
cd "$(dirname "$0")/.."
venv=$1
for round in 1 2 3; do
	"$venv/bin/python" bench/torch_step.py 5 2>/dev/null
	go test -run '^$' -bench 'DemoModel/avx.*/(eval|train-group)/8x128' -benchtime 3s ./training/model | grep tokens/s |
		sed -E 's/BenchmarkDemoModel\/([a-z0-9]+)\/([a-z-]+)\/.* ([0-9]+) tokens\/s.*/bzd \1 \2 \3 tokens\/s/'
done | awk '
	{ print }
	/^torch/ { torch[$3] = (torch[$3] > $4 ? torch[$3] : $4) }
	/^bzd/ { k = $2 " " $3; bzd[k] = (bzd[k] > $4 ? bzd[k] : $4) }
	END { for (k in bzd) { split(k, p, " "); printf "best of 3: bzd %s %.0f, torch %.0f, ratio %.2f\n", k, bzd[k], torch[p[2]], bzd[k] / torch[p[2]] } }'
