#!/bin/sh
# bzd bench content beside kubo, which is built once into out/ (its own module, bench/kubo: two or three minutes of processor
# time and 325 MB of module cache). Arguments go to bzd bench content, such as --size 4GiB --rounds 1. With FILL=DIR, a place
# for a file that takes no space on the disk, free memory is first made the cache of that file: a virtual machine pays for
# memory when it uses it first, and again when its host has taken it back, several times what a transfer costs otherwise,
# but not for memory that its cache gives up.
set -eu
cd "$(dirname "$0")/../.."
make build out/ipfs
if [ -n "${FILL:-}" ]; then
	file=$(mktemp -p "$FILL" bzd-fill-XXXXXX)
	trap 'rm -f "$file"' EXIT
	trap 'exit 130' INT TERM
	truncate -s "$(awk '/MemFree/ { print $2 }' /proc/meminfo)K" "$file"
	cat "$file" >/dev/null
fi
bin/bzd bench content --json --kubo out/ipfs "$@"
