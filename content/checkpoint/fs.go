package checkpoint

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"runtime"
)

// fileSystem is what writing a checkpoint asks of the disk. Tests put faults in between.
type fileSystem interface {
	Lstat(name string) (fs.FileInfo, error)
	ReadDir(name string) ([]fs.DirEntry, error)
	// Open opens a file for reading.
	Open(name string) (io.ReadCloser, error)
	// MkdirTemp makes a new directory that others may read.
	MkdirTemp(parent, pattern string) (string, error)
	// Create makes a file that must not exist.
	Create(name string) (writeFile, error)
	// SyncDir makes the names in a directory durable.
	SyncDir(name string) error
	Rename(from, to string) error
	// Link gives a file a second name, which must not exist.
	Link(from, to string) error
	// Remove removes an empty directory.
	Remove(name string) error
	RemoveAll(name string) error
}

type writeFile interface {
	io.WriteCloser
	// Sync makes the file's bytes durable.
	Sync() error
}

// osFS is the disk.
type osFS struct{}

func (osFS) Lstat(name string) (fs.FileInfo, error)     { return os.Lstat(name) }
func (osFS) ReadDir(name string) ([]fs.DirEntry, error) { return os.ReadDir(name) }
func (osFS) Open(name string) (io.ReadCloser, error)    { return os.Open(name) }
func (osFS) Rename(from, to string) error               { return os.Rename(from, to) }
func (osFS) Link(from, to string) error                 { return os.Link(from, to) }
func (osFS) Remove(name string) error                   { return os.Remove(name) }
func (osFS) RemoveAll(name string) error                { return os.RemoveAll(name) }

func (osFS) MkdirTemp(parent, pattern string) (string, error) {
	name, err := os.MkdirTemp(parent, pattern)
	if err != nil {
		return "", err
	}
	if err := os.Chmod(name, 0o755); err != nil {
		return "", errors.Join(err, os.Remove(name))
	}
	return name, nil
}

func (osFS) Create(name string) (writeFile, error) {
	return os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
}

func (osFS) SyncDir(name string) error {
	if runtime.GOOS == "windows" {
		return nil // directories cannot be opened there; renames are journalled
	}
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
