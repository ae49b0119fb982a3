package blockstore

import (
	"os"

	"golang.org/x/sys/unix"
)

// startFlush lets the disk begin with what was written to a file, so that less is left to wait for when it must be durable.
// It promises nothing, so that nothing is wrong where a file system cannot.
func startFlush(f *os.File) {
	raw, err := f.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) { _ = unix.SyncFileRange(int(fd), 0, 0, unix.SYNC_FILE_RANGE_WRITE) })
}
