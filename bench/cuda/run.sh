#!/bin/bash
# Checks and measures the CUDA backend on a machine with an NVIDIA card, against PyTorch there. It needs the driver and, for
# what PyTorch does, python3 with torch (2.9 or later) and transformers (5); no Go and no CUDA toolkit.
#
#   make cuda-carry                  where Go is: makes bin/cuda.tgz
#   bench/cuda/run.sh [SECTION...]   on the machine with the card, in the same tree with bin/cuda.tgz
#
# Sections, with about how long they take on a fast card; without any, all are run:
#   test       conformance of both modes, models trained on card and processor        2 min
#   driver     what the driver does when it is misused or fails                       1 min
#   gemm       bfloat16 products against cuBLAS                                       2 min
#   attention  against PyTorch's scaled_dot_product_attention                         1 min
#   attention_sm90  the same by wgmma, on compute capability 9.0                       1 min
#   membound   memory-bound kernels against a copy                                    1 min
#   exact      float32 kernels                                                        1 min
#   codec      the top-k code of deltas; the instructions that the emulator claims   1 min
#   bits       whole steps in exact mode, bit for bit as on the processor             1 min
#   step       the training step and the evaluation of OLMoE's shapes, 4 layers       1 min
#   torch      the same in PyTorch eager                                              2.5 min
#   memory     the same step in less memory: micro-batches, recomputation, streaming  2 min
#
# A section that fails does not stop the others; the exit code is 1 then. $OUT (out/bench-cuda) gets results.json, report.md
# and log.txt. Results of several runs are joined by bench/cuda/report.py DIR/results.json...
set -u
cd "$(dirname "$0")/../.."
OUT=${OUT:-out/bench-cuda}
PYTHON=${PYTHON:-python3}
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
raw=$(mktemp -d)
trap 'rm -rf "$raw"' EXIT
log=$OUT/log.txt
: >"$log"
sections=${*:-test driver gemm attention attention_sm90 membound exact codec bits step torch memory}
failed=()

say() { echo "$*" | tee -a "$log"; }

# part NAME SECONDS COMMAND... runs one command with a time limit and notes how it ended.
part() {
	local name=$1 limit=$2 start=$SECONDS code
	shift 2
	say "== $name: ${SHOW:-$*}"
	OUT=$raw timeout -k 5 "$limit" "$@" >"$raw/$name.log" 2>&1
	code=$?
	cat "$raw/$name.log" >>"$log"
	tail -n "${TAIL:-12}" "$raw/$name.log"
	say "== $name: exit code $code, $((SECONDS - start)) s"
	echo "$name $code $((SECONDS - start))" >>"$raw/parts.txt"
	[ $code -eq 0 ] || failed+=("$name")
	return $code
}

# bench NAME SECONDS FLAGS... keeps the JSON of bzd bench step.
bench() {
	local name=$1 limit=$2
	shift 2
	SHOW="bzd bench step $*" part "$name" "$limit" sh -c 'out=$1; shift; "$@" --json >"$out" && cat "$out"' sh "$raw/bzd-$name.json" "$bzd" bench step "$@"
}

# digest NAME prints what a run's digest was.
digest() { sed -n 's/.*"digest": "\(.*\)".*/\1/p' "$raw/bzd-$1.json" 2>/dev/null; }

set -o pipefail
if ! nvidia-smi --query-gpu=name,memory.total,memory.free,driver_version,compute_cap,clocks.sm --format=csv 2>&1 | tee "$raw/smi.txt" | tee -a "$log"; then
	say "run.sh: no NVIDIA driver answers: install it, or in a container run with --gpus all"
	exit 1
fi

bin=$raw/bin
mkdir -p "$bin"
if [ -f bin/cuda.tgz ]; then
	tar -C "$bin" -xzf bin/cuda.tgz
else
	for f in bzd-cuda cuda.test cuda-driver.test; do [ -f "bin/$f" ] && cp "bin/$f" "$bin/"; done
fi
bzd=$bin/bzd-cuda
if [ ! -x "$bzd" ]; then
	say "run.sh: no bin/cuda.tgz: make cuda-carry makes it, on a machine with Go"
	exit 1
fi
"$bzd" version 2>&1 | tee "$raw/version.txt" | tee -a "$log"

olmoe="--backend cuda --shape olmoe --layers 4 --batch 4 --seq 2048 --trained 8"
for s in $sections; do
	case $s in
	test) BZD_NEEDS_GPU=1 part test 400 "$bin/cuda.test" -test.run '^TestDevice' -test.v -test.timeout 390s ;;
	driver) BZD_CUDA_TEST=card part driver 120 sh -c 'cd training/cuda/driver && exec "$1" -test.v -test.timeout 110s' sh "$bin/cuda-driver.test" ;;
	gemm | attention | attention_sm90 | membound | exact | codec)
		if [ -f "bench/cuda/$s.py" ]; then
			part "$s" 240 "$PYTHON" "bench/cuda/$s.py"
		else
			say "== $s: there is no bench/cuda/$s.py"
			failed+=("$s")
		fi
		;;
	bits)
		i=0
		for shape in "--shape tiny --batch 3 --seq 40" "--shape tiny --batch 5 --seq 100 --micro 2 --recompute" \
			"--shape demo --batch 8 --seq 128" "--shape tiny --layers 3 --dim 40 --head-dim 10 --width 19 --experts 5 --vocab 41 --batch 3 --seq 16" \
			"--shape tiny --dim 256 --heads 4 --kv-heads 2 --head-dim 64 --experts 16 --topk 4 --width 192 --vocab 1000 --batch 2 --seq 200"; do
			i=$((i + 1))
			# shellcheck disable=SC2086
			TAIL=3 bench "bits$i-cuda" 60 --backend cuda --mode exact $shape --trained 2 --steps 4
			# shellcheck disable=SC2086
			TAIL=3 bench "bits$i-cpu" 60 --backend cpu $shape --trained 2 --steps 4
			here=$(digest "bits$i-cuda") there=$(digest "bits$i-cpu")
			if [ -z "$here" ] || [ -z "$there" ]; then
				say "bits $i: nothing to compare: $shape"
			elif [ "$here" = "$there" ]; then
				say "bits $i: card and processor agree: $shape"
			else
				say "bits $i: CARD AND PROCESSOR DIFFER: $shape"
				failed+=("bits$i-cuda")
			fi
		done
		;;
	step)
		# shellcheck disable=SC2086
		bench fast-train 150 $olmoe --mode fast --only train --steps 20 --warmup 3
		# shellcheck disable=SC2086
		bench fast-eval 150 $olmoe --mode fast --only eval --steps 20 --warmup 3
		# shellcheck disable=SC2086
		bench untried-train 150 $olmoe --mode fast --only train --steps 20 --warmup 3 --untried
		# shellcheck disable=SC2086
		bench untried-eval 150 $olmoe --mode fast --only eval --steps 20 --warmup 3 --untried
		# shellcheck disable=SC2086
		bench exact-step 150 $olmoe --mode exact --steps 4 --warmup 1
		;;
	torch) TAIL=20 part torch 170 "$PYTHON" bench/cuda/step.py --limit 150 --out "$raw" ;;
	memory)
		# shellcheck disable=SC2086
		for gib in 8 7 6.2; do
			bench "memory-${gib}gib" 100 $olmoe --mode fast --only train --steps 5 --warmup 2 --memory ${gib}GiB
		done
		# The whole of OLMoE-1B-7B in the memory of cards people have: 24 GB, and 8 GB with a smaller group.
		whole="--backend cuda --mode fast --shape olmoe --batch 4 --seq 2048 --only train --steps 3 --warmup 1"
		# shellcheck disable=SC2086
		bench memory-whole-22gib 200 $whole --trained 8 --memory 22GiB
		# shellcheck disable=SC2086
		bench memory-whole-7.5gib 200 $whole --trained 1 --memory 7.5GiB
		;;
	*)
		say "run.sh: no section $s; see the head of the script"
		failed+=("$s")
		;;
	esac
done

"$PYTHON" bench/cuda/report.py --collect "$raw" --failed "${failed[*]}" --out "$OUT/results.json" &&
	"$PYTHON" bench/cuda/report.py "$OUT/results.json" >"$OUT/report.md" && cat "$OUT/report.md"
if [ ${#failed[@]} -gt 0 ]; then
	say "FAILED: ${failed[*]}"
	exit 1
fi
say "everything that was asked for ran and passed"
