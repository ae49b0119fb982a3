package blockstore

import (
	"errors"
	"fmt"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
)

// MaxBlock is the longest block that can be stored. Blocks of the protocol have at most 1 MiB; the rest is room for
// blocks that others chunked.
const MaxBlock = 2 << 20

// Options say how a store behaves. The zero value is usable; [DefaultOptions] is what a node should run with.
type Options struct {
	// SyncWrites makes every Put durable before it returns, in an order that leaves no key without its bytes even after
	// a power cut. Without it a crash of the process loses nothing and a power cut may lose the last blocks; call
	// [Store.Sync] before promising anybody to hold them.
	SyncWrites bool
	// VerifyReads hashes every block that is read, about 0.6 ms per MiB; one of 256 KiB or more only when the process reads
	// it first or its file has changed. Without it blocks are only protected by the CRC-32C beside them.
	VerifyReads bool
	// FileSize bounds one value log file, 4 MiB to 1 GiB; 0 means 256 MiB. Files are kept mapped and open, so small ones
	// cost descriptors; deleted blocks give their space back file by file, so large ones cost disk.
	FileSize int64
	// Reserve is the free space below which Put fails with [ErrDiskFull]; 0 means 64 MiB. Files are written through memory
	// maps, where a full disk would be a fault of the process rather than an error, so it must not come to that.
	Reserve uint64
	// Quota bounds the bytes of all blocks; 0 means that only the disk does. A put that would exceed it, or the reserve,
	// first makes room, where Links is set: blocks that no pin and no hold keeps go, then spare pins with what only they
	// keep, the oldest first. If that is not enough the put is refused with [ErrQuota] or [ErrDiskFull]. What other pins
	// and open holds keep is never given up.
	Quota uint64
	// Links tells what a block links to, for [Store.Collect].
	Links Links
	// large and tune are for BenchmarkLayout: from how many bytes on a block is a file, 0 means largeBlock, and what is
	// changed of badger's options.
	large int
	tune  func(badger.Options) badger.Options
	// Free tells how many bytes the disk of dir has left. nil asks the operating system.
	Free func(dir string) (uint64, error)
}

// DefaultOptions verifies reads and leaves flushing to [Store.Sync].
func DefaultOptions() Options { return Options{VerifyReads: true} }

// Validate reports every fault of the options.
func (o Options) Validate() error {
	var errs []error
	if o.FileSize != 0 && (o.FileSize < 4<<20 || o.FileSize > 1<<30) {
		errs = append(errs, fmt.Errorf("blockstore: FileSize %d, want 0 or 4 MiB to 1 GiB: a file holds the longest block, and badger maps no longer file", o.FileSize))
	}
	return errors.Join(errs...)
}

func (o Options) withDefaults() Options {
	if o.FileSize == 0 {
		o.FileSize = 256 << 20
	}
	if o.Reserve == 0 {
		o.Reserve = 64 << 20
	}
	if o.large == 0 {
		o.large = largeBlock
	}
	if o.Free == nil {
		o.Free = freeBytes
	}
	return o
}

// badger's options, for blocks below largeBlock. An entry of the tree is a 34-byte key and a pointer, so 1 MiB of memtable
// names about 8000 blocks; everything that holds more than keys is small or off. Values in the tree, compressed or not,
// halve the speed of text in 16 KiB pieces and take 16 MiB more memory (BenchmarkLayout).
func (o Options) badger(dir string) badger.Options {
	return badger.DefaultOptions(dir).
		WithLogger(nil).
		WithMetricsEnabled(false). // they are one registry per process
		WithSyncWrites(o.SyncWrites).
		WithDetectConflicts(false).    // content addressed: two writers of a key write the same
		WithCompression(options.None). // sealed bytes do not compress
		WithBlockCacheSize(0).         // needed for compression only
		WithIndexCacheSize(0).         // indices stay in memory: a few KiB
		WithMemTableSize(1 << 20).     // 1.3 MiB of heap each
		WithNumMemtables(2).           // waiting to be flushed, at most
		WithBaseTableSize(1 << 20).
		WithBaseLevelSize(4 << 20).
		WithNumLevelZeroTables(2).
		WithNumLevelZeroTablesStall(1 << 20). // tidy keeps them few; a write never waits
		WithNumCompactors(0).                 // two at least would wake up twenty times a second each, for nothing
		WithNumGoroutines(1).
		WithValueThreshold(1 << 10). // blocks go to the value log, small records stay with their keys
		WithValueLogFileSize(o.FileSize).
		WithValueLogMaxEntries(1_000_000).
		WithVerifyValueChecksum(true). // a torn entry is refused before its lengths are believed
		WithChecksumVerificationMode(options.OnTableRead)
}
