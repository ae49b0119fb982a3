#!/bin/sh
# Compares every family of models with Hugging Face transformers 4 and 5: what each writes, in every layout, must give bzd
# the same token ids and logits. Then a network of nodes trains a tiny model of each of FAMILIES, if any, for two cycles,
# and both versions must load what is exported, with the logits of bzd. Usage: families.sh BZD VENV WORK
set -eu
bzd=$1 venv=$2 work=$3
here=$(dirname "$0")
five=$venv-transformers5
if ! "$five/bin/python" -c 'import torch, transformers' 2>/dev/null; then
	"$venv/bin/python" -m venv "$five"
	# torch is that of the other environment.
	"$venv/bin/python" -c 'import site; print(*site.getsitepackages(), sep="\n")' \
		>"$("$five/bin/python" -c 'import site; print(site.getsitepackages()[0])')/torch.pth"
	"$five/bin/pip" install --quiet transformers==5.0.0
fi
four=$venv
mkdir -p "$work/nets"
same() { # the models that transformers spoke of so far, compared with bzd
	(cd "$here/.." && BZD_INTEROP=$work "${GO:-go}" test -count=1 -run '^TestInterop$' -v ./node/local) >"$work/test.log" ||
		{ cat "$work/test.log" >&2; exit 1; }
	grep 'they differ by' "$work/test.log"
}

"$four/bin/python" "$here/families.py" make "$work"
"$five/bin/python" "$here/families.py" make "$work"
same

for family in ${FAMILIES:-}; do
	net=$work/nets/$family
	"$bzd" genesis import --dir "$net" --experts 1 "$work/models/$family-v5-fused"
	"$bzd" devnet --genesis "$net" --miners 3 --cycles 2 --headroom 20 --json --dir "$net-run" >"$net.json" 2>"$net.log" || { cat "$net.log" >&2; exit 1; }
	last=$("$four/bin/python" -c '
import json, sys
r = json.load(open(sys.argv[1]))
assert len(r["cycles"]) == 2 and all(c["certified"] and c["agreed"] for c in r["cycles"]), r
assert r["checkpoint"] != r["cycles"][0]["base"], "nothing was merged"
print(r["checkpoint"])' "$net.json")
	"$bzd" checkpoint export "$net-run/validator-1/checkpoints/$last" "$net-export"
	"$bzd" checkpoint export --fused "$net-run/validator-1/checkpoints/$last" "$net-fused"
	"$four/bin/python" "$here/families.py" expect "$net-export" "$work/$family-trained-4.json"
	"$five/bin/python" "$here/families.py" expect "$net-export" "$work/$family-trained-5.json"
	"$five/bin/python" "$here/families.py" expect "$net-fused" "$work/$family-trained-fused.json"
done
same
echo "transformers and bzd agree on every family"
