//go:build linux || darwin

package blockstore

import (
	"io/fs"
	"syscall"
)

// freeBytes is what an unprivileged process may still write to the disk of dir.
func freeBytes(dir string) (uint64, error) {
	var s syscall.Statfs_t
	if err := syscall.Statfs(dir, &s); err != nil {
		return 0, err
	}
	return uint64(s.Bavail) * uint64(s.Bsize), nil
}

// diskBytes is what a file takes of the disk: the files of small blocks are longer than what is in them.
func diskBytes(info fs.FileInfo) uint64 {
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		return uint64(s.Blocks) * 512
	}
	return uint64(info.Size())
}
