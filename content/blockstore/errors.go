package blockstore

import (
	"errors"
	"fmt"
	"strings"
	"syscall"

	"github.com/ipfs/go-cid"
	format "github.com/ipfs/go-ipld-format"
)

var (
	// ErrBlock: the block must not be stored: its bytes are not what its CID says, its hash is not sha2-256, or it is
	// longer than [MaxBlock]. The fault of whoever made or sent it.
	ErrBlock = errors.New("blockstore: invalid block")
	// ErrDiskFull: the disk has no room for the block. Nothing was stored; what is there can still be read.
	ErrDiskFull = errors.New("blockstore: disk full")
	// ErrQuota: the block would exceed [Options].Quota, and nothing is left that may be given up for it. Nothing was stored.
	ErrQuota = errors.New("blockstore: quota exhausted")
	// ErrPin: the pin cannot be stored, or what is stored is none.
	ErrPin = errors.New("blockstore: invalid pin")
	// ErrNoPins: there is nothing to tell what is needed from what is not.
	ErrNoPins = errors.New("blockstore: no pins, so nothing is collected")
	// ErrLocked: another store has the directory open.
	ErrLocked = errors.New("blockstore: directory in use")
	// ErrCorrupt: the disk held other bytes than were stored, and the block was deleted. The error is a "not found" too,
	// because that is what the block is from now on.
	ErrCorrupt = errors.New("blockstore: block damaged on disk")
	// ErrClosed: the store was closed.
	ErrClosed = errors.New("blockstore: closed")
)

func notFound(c cid.Cid) error { return format.ErrNotFound{Cid: c} }

// explain turns what badger says into the errors above.
func explain(dir string, err error) error {
	switch {
	case err == nil:
		return nil
	case strings.Contains(err.Error(), "Cannot acquire directory lock"):
		return fmt.Errorf("%w: %s belongs to another running node; stop that one, or give this one a directory of its own",
			ErrLocked, dir)
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT),
		strings.Contains(err.Error(), syscall.ENOSPC.Error()), strings.Contains(err.Error(), syscall.EDQUOT.Error()):
		return fmt.Errorf("%w: %s: free some space, or move the directory to a larger disk: %w", ErrDiskFull, dir, err)
	}
	return fmt.Errorf("blockstore: %s: %w", dir, err)
}
