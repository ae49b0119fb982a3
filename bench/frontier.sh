#!/bin/sh
# Size of deltas against what the network learns: rehearses the same cycles at every density and draws the frontier.
#   bench/frontier.sh [BZD [DIR]]
# CYCLES (50), DENSITIES (values of 4096; 0 is dense-bf16) and SEEDS choose what runs, some minutes each. A result that is in
# DIR already is not made again. Dense deltas have the learning rate that suits them better.
set -eu
bzd=${1:-bin/bzd} dir=${2:-out/frontier}
mkdir -p "$dir"
for seed in ${SEEDS:-1}; do
	for k in ${DENSITIES:-0 20 41 64}; do
		file=$dir/$k-$seed.json
		if [ ! -e "$file" ]; then
			"$bzd" rehearse --cycles "${CYCLES:-50}" --miners 1 --topk "$k" --seed "$seed" --json >"$file.new"
			mv "$file.new" "$file"
		fi
	done
done
"$bzd" bench frontier --cycles "${CYCLES:-50}" --plot bench/frontier.svg "$dir"/*.json
