//go:build unix

package cpu

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// drop takes the whole pages of raw, which is mapped from a file and never written, out of this process.
func drop(raw []byte) {
	page := uintptr(os.Getpagesize())
	at := uintptr(unsafe.Pointer(&raw[0]))
	lo, hi := (at+page-1)&^(page-1), (at+uintptr(len(raw)))&^(page-1)
	if lo < hi {
		_ = unix.Madvise(raw[lo-at:hi-at], unix.MADV_DONTNEED) // if it fails they stay, which is slower for others
	}
}
