#!/bin/bash
# Compares the engine of two commits: BenchmarkDemoModel of both, in turn, in processor time without that of making the
# model. Prints the fastest run of each, and the median of the rounds' ratios with its ends.
#
#   bench/engine/turns.sh OLD [NEW [ROUNDS]]
set -euo pipefail
cd "$(dirname "$0")/../.."
old=$1 new=${2:-HEAD} rounds=${3:-9}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
for side in old new; do
	mkdir "$dir/$side"
	git archive "${!side}" | tar -x -C "$dir/$side"
	(cd "$dir/$side" && CGO_ENABLED=0 go test -c -o "$dir/$side.test" ./training/model)
done
TIMEFORMAT='%U %S'
spent() { # by a test binary, on so many batches
	{ time "$1" -test.run '^$' -test.cpu 1 -test.benchtime "$3x" -test.bench "DemoModel/avx512/$2/8x128" >"$dir/out"; } 2>&1
}
for round in $(seq "$rounds"); do
	for what in eval train-group; do
		for side in old new; do
			echo "$round $side $what $(spent "$dir/$side.test" $what 1) $(spent "$dir/$side.test" $what 61)"
		done
	done
done | awk '
	{ v = 60 * 8 * 128 / ($6 + $7 - $4 - $5); rate[$1, $2, $3] = v; rounds = $1; names[$3]; if (v > best[$2, $3]) best[$2, $3] = v }
	END {
		for (n in names) {
			for (r = 1; r <= rounds; r++) ratio[r] = rate[r, "new", n] / rate[r, "old", n]
			for (i = 1; i <= rounds; i++) for (j = i + 1; j <= rounds; j++) if (ratio[j] < ratio[i]) { t = ratio[i]; ratio[i] = ratio[j]; ratio[j] = t }
			printf "%s: %.0f tokens/s, %.0f before; median ratio %.2f (%.2f to %.2f)\n", n, best["new", n], best["old", n], ratio[int((rounds + 1) / 2)], ratio[1], ratio[rounds]
		}
	}' | sort
