//go:build linux || darwin

package devnet

import (
	"runtime"
	"syscall"
	"time"
)

// Usage is the processor time that the process has taken, user and system, and the most memory it had, in bytes.
func Usage() (time.Duration, int64) {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		return 0, 0
	}
	peak := int64(r.Maxrss)
	if runtime.GOOS == "linux" {
		peak <<= 10 // KiB there, bytes elsewhere
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano()), peak
}
