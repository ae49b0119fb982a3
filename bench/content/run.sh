#!/bin/sh
# bzd bench content beside kubo, which is built once into out/ (its own module, bench/kubo: a few minutes and 1.5 GB of
# module cache). Arguments go to bzd bench content, such as --size 4GiB --rounds 1.
set -eu
cd "$(dirname "$0")/../.."
make build
[ -x out/ipfs ] || (cd bench/kubo && go build -trimpath -o ../../out/ipfs github.com/ipfs/kubo/cmd/ipfs)
exec bin/bzd bench content --json --kubo out/ipfs "$@"
