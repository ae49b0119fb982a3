package blockstore

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
	blocks "github.com/ipfs/go-block-format"

	"github.com/blockzero-net/bzd/content/blockstore/blockstoretest"
)

// BenchmarkLayout is what the choices of options.go and large.go rest on: 64 MiB of what a node stores, put in batches of
// 4 MiB and synced, read once, half of it deleted and the space reclaimed, by where values lie and how they are compressed.
//
//	go test -run '^$' -bench Layout -benchtime 3x ./content/blockstore
func BenchmarkLayout(b *testing.B) {
	const total = 64 << 20
	kinds := []struct {
		name  string
		size  int
		block func(n uint64, size int) blocks.Block
	}{
		{"leaves of 1 MiB", 1 << 20, blockstoretest.Block},
		{"sealed pieces of 256 KiB", 256 << 10, blockstoretest.Block},
		{"sealed pieces of 64 KiB", 64 << 10, blockstoretest.Block},
		{"text of 16 KiB", 16 << 10, prose},
	}
	layouts := []struct {
		name      string
		large     int
		threshold int64
		compress  options.CompressionType
	}{
		{"files from 256 KiB, log from 1 KiB", 256 << 10, 1 << 10, options.None},
		{"files from 64 KiB, log from 1 KiB", 64 << 10, 1 << 10, options.None},
		{"files from 16 KiB, log from 1 KiB", 16 << 10, 1 << 10, options.None},
		{"log from 1 KiB", MaxBlock + 1, 1 << 10, options.None},
		{"files from 64 KiB, all else in the tree", 64 << 10, 100 << 10, options.None},
		{"files from 64 KiB, all else in the tree, snappy", 64 << 10, 100 << 10, options.Snappy},
		{"files from 64 KiB, all else in the tree, zstd", 64 << 10, 100 << 10, options.ZSTD},
	}
	for _, k := range kinds {
		var all []blocks.Block
		for i := range uint64(total / k.size) {
			all = append(all, k.block(i, k.size))
		}
		for _, l := range layouts {
			b.Run(k.name+"/"+l.name, func(b *testing.B) {
				b.SetBytes(total)
				var disk, left uint64
				for range b.N {
					disk, left = layoutRound(b, all, k.size, Options{VerifyReads: true, FileSize: 64 << 20, large: l.large,
						tune: func(o badger.Options) badger.Options {
							o = o.WithValueThreshold(l.threshold).WithCompression(l.compress)
							if l.threshold > 1<<10 { // values in memtables: those hold a batch
								o = o.WithMemTableSize(8 << 20)
							}
							if l.compress != options.None {
								o = o.WithBlockCacheSize(8 << 20)
							}
							return o
						}})
				}
				b.ReportMetric(float64(disk)/total, "disk/byte")
				b.ReportMetric(float64(left)/(total/2), "disk/kept-byte")
			})
		}
	}
}

func layoutRound(b *testing.B, all []blocks.Block, size int, opts Options) (disk, left uint64) {
	check := func(err error) {
		b.Helper()
		if err != nil {
			b.Fatal(err)
		}
	}
	s, err := Open(b.TempDir(), opts)
	check(err)
	batch := max(1, 4<<20/size)
	for i := 0; i < len(all); i += batch {
		check(s.PutHashed(b.Context(), all[i:min(i+batch, len(all))]))
	}
	check(s.Sync())
	for _, x := range all {
		_, err := s.Get(b.Context(), x.Cid())
		check(err)
	}
	b.StopTimer()
	defer b.StartTimer()
	stat, err := s.Stat(b.Context())
	check(err)
	disk = stat.Disk
	for i := 0; i < len(all); i += 2 {
		check(s.DeleteBlock(b.Context(), all[i].Cid()))
	}
	_, err = s.GC(b.Context())
	check(err)
	stat, err = s.Stat(b.Context())
	check(err)
	left = stat.Disk
	check(s.Close())
	return disk, left
}

// prose is text that compresses as source code does.
func prose(n uint64, size int) blocks.Block {
	rng := rand.New(rand.NewPCG(n, 3))
	var t strings.Builder
	for t.Len() < size {
		fmt.Fprintf(&t, "\tif err := s.check%d(ctx, name); err != nil {\n\t\treturn fmt.Errorf(\"value %x: %%w\", err)\n\t}\n", rng.IntN(50), rng.IntN(1<<20))
	}
	return blockstoretest.Raw([]byte(t.String()[:size]))
}
