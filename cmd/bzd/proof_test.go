package main

import (
	"bytes"
	"crypto/ed25519"
	"os"
	"path/filepath"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/blockzero-net/bzd/internal/protocol"
)

// equivocate DIR writes the proof of two votes of cycle 7, its snapshot, one without the offender, and a proof that somebody
// else signed.
func equivocate(ts *testscript.TestScript, _ bool, args []string) {
	dir := ts.MkAbs(args[0])
	ts.Check(os.MkdirAll(dir, 0o755))
	write := func(name string, r protocol.Record) {
		raw, err := protocol.Encode(r)
		ts.Check(err)
		ts.Check(os.WriteFile(filepath.Join(dir, name), raw, 0o644))
	}
	key := func(b byte) ed25519.PrivateKey {
		return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{b}, ed25519.SeedSize))
	}
	s := protocol.Snapshot{Version: protocol.Version, Height: 9, Hash: protocol.Hash{1}, Participants: []protocol.Participant{
		{ID: protocol.ID{1}, Key: protocol.KeyOf(key(1)), Stake: 1, Roles: protocol.RoleValidator},
	}}
	write("snapshot-00000007.cbor", s)
	proof := func(key ed25519.PrivateKey) protocol.EquivocationProof {
		var votes [2]protocol.Vote
		for i := range votes {
			votes[i] = protocol.Vote{Version: protocol.Version, Network: protocol.LinkTo(protocol.DagCBOR, nil), Cycle: 7, Instance: protocol.InstanceW,
				Type: protocol.VoteCommit, Digest: protocol.Hash{byte(1 + i)}, Validator: protocol.ID{1}}
			ts.Check(votes[i].Sign(key))
		}
		p, err := protocol.NewEquivocationProof(votes[0], votes[1])
		ts.Check(err)
		return p
	}
	write("proof.cbor", proof(key(1)))
	write("forged.cbor", proof(key(2)))
	s.Participants[0].ID = protocol.ID{2}
	write("other.cbor", s)
}
