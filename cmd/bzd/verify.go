package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/blockzero-net/bzd/internal/protocol"
	"github.com/blockzero-net/bzd/node"
)

const verifyHelp = `Usage: bzd verify proof [flags] FILE

  proof FILE    check an equivocation proof: two statements that nobody honest signs both`

func verifyProof(_ context.Context, env environment, args []string) error {
	c := newFlags(env, "verify proof", `Usage: bzd verify proof [flags] FILE

Checks an equivocation proof against the snapshot of its cycle, which says whose the keys are, and names the offender.
Validators keep both in their directory, under proofs.`)
	snapshot := c.set.String("snapshot", "", "the snapshot's `FILE`; empty means the one that lies beside the proof")
	if err := c.dirs(args, "FILE"); err != nil {
		return err
	}
	raw, err := readSmall(c.set.Arg(0))
	if err != nil {
		return err
	}
	p, err := protocol.DecodeEquivocationProof(raw)
	if err != nil {
		return fmt.Errorf("%s is no proof: %w", c.set.Arg(0), err)
	}
	if *snapshot == "" {
		cycle, err := p.Cycle()
		if err != nil {
			return err
		}
		*snapshot = filepath.Join(filepath.Dir(c.set.Arg(0)), node.SnapshotFile(cycle))
	}
	if raw, err = readSmall(*snapshot); err != nil {
		return fmt.Errorf("%w; give the snapshot of its cycle with --snapshot", err)
	}
	s, err := protocol.DecodeSnapshot(raw)
	if err != nil {
		return fmt.Errorf("%s is no snapshot: %w", *snapshot, err)
	}
	offence, err := p.Verify(s)
	if err != nil {
		return fmt.Errorf("%s proves nothing: %w", c.set.Arg(0), err)
	}
	_, err = fmt.Fprintf(env.out, "%s by %s in cycle %d of %s\nproof     %s\nsnapshot  %s, block %d\n",
		offence.Kind, offence.Offender, offence.Cycle+1, offence.Network, p.Digest(), s.Digest(), s.Height)
	return err
}

// maxRecordFile is above the longest record.
const maxRecordFile = 4 << 20

// readSmall reads a file that holds one record.
func readSmall(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size() > maxRecordFile {
		return nil, fmt.Errorf("%s is too large for a record: %d bytes", path, info.Size())
	}
	return os.ReadFile(path)
}
