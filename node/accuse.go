package node

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/blockzero-net/bzd/internal/protocol"
)

// accuse keeps an equivocation proof, and the snapshot that it verifies against, as files that anybody can check with
// bzd verify proof.
func (n *Node) accuse(cycle uint64, s protocol.Snapshot, p protocol.EquivocationProof) {
	offence, err := p.Verify(s)
	if err != nil {
		n.trouble(cycle, fmt.Errorf("a proof that proves nothing: %w", err))
		return
	}
	if !n.accused(p) {
		return
	}
	dir := filepath.Join(n.cfg.Dir, "proofs")
	digest := p.Digest()
	file := filepath.Join(dir, fmt.Sprintf("%08d-%x.cbor", cycle, digest[:8]))
	err = os.MkdirAll(dir, 0o755)
	for path, r := range map[string]protocol.Record{file: p, filepath.Join(dir, SnapshotFile(cycle)): s} {
		if err == nil {
			err = writeOnce(path, r)
		}
	}
	if err == nil {
		err = n.putProof(n.running, p)
	}
	if err != nil {
		n.trouble(cycle, fmt.Errorf("keep a proof: %w", err))
		return
	}
	n.event(Event{Kind: Accused, Cycle: cycle, Miner: offence.Offender, Text: fmt.Sprintf("%s by %s: %s", offence.Kind, offence.Offender, file)})
}

// SnapshotFile is the name of the snapshot that proofs of a cycle verify against, in their directory.
func SnapshotFile(cycle uint64) string { return fmt.Sprintf("snapshot-%08d.cbor", cycle) }

// writeOnce writes a record to a file that does not exist yet.
func writeOnce(path string, r protocol.Record) error {
	raw, err := protocol.Encode(r)
	if err != nil {
		return err
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.WriteFile(path+".new", raw, 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
