#!/bin/sh
# bzd bench content beside kubo, which is built once into out/ (its own module, bench/kubo: two or three minutes of processor
# time and 325 MB of module cache). Arguments go to bzd bench content, such as --size 4GiB --rounds 1.
set -eu
cd "$(dirname "$0")/../.."
make build out/ipfs
exec bin/bzd bench content --json --fill --kubo out/ipfs "$@"
