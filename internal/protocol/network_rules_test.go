package protocol

import (
	"bytes"
	"errors"
	"math"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// changed returns a record with one thing changed.
func changed[T any](v T, f func(*T)) T {
	f(&v)
	return v
}

// TestNetworkRules breaks one rule of one record at a time.
func TestNetworkRules(t *testing.T) {
	dagPB, raw, cbor := LinkTo(DagPB, nil), LinkTo(Raw, nil), LinkTo(DagCBOR, nil)
	long := strings.Repeat("a", 33)
	schedule := func(f func(*Schedule)) Record { return changed(ProductionParams().Schedule, f) }
	snapshot := func(f func(*Snapshot)) Record { return changed(sampleSnapshot(), f) }
	binding := func(f func(*Binding)) Record { return changed(sampleBinding(), f) }
	head := func(f func(*Head)) Record { return changed(sampleHead(), f) }
	commitment := func(f func(*Commitment)) Record { return changed(sampleCommitment(), f) }
	manifest := func(f func(*Manifest)) Record { return changed(sampleManifest(), f) }
	attestation := func(f func(*Attestation)) Record { return changed(sampleAttestation(), f) }
	list := func(f func(*List)) Record { return changed(sampleList(), f) }
	scores := func(f func(*ScoreVector)) Record { return changed(sampleScores(), f) }
	merge := func(f func(*MergeVector)) Record { return changed(sampleMergeVector(), f) }
	proposal := func(f func(*Proposal)) Record { return changed(sampleProposal(), f) }
	weights := func(f func(*WeightsValue)) Record {
		return changed(sampleProposal(), func(p *Proposal) { p.Lock = nil; f(p.Value.Weights) })
	}
	mergeValue := func(f func(*MergeValue)) Record {
		return changed(sampleMergeProposal(), func(p *Proposal) { f(p.Value.Merge) })
	}
	lockOf := func(f func(*Lock)) Record { return changed(sampleProposal(), func(p *Proposal) { f(p.Lock) }) }
	vote := func(f func(*Vote)) Record { return changed(sampleVote(), f) }
	null := func(f func(*StatusVote)) Record { return changed(nullOf(InstanceW, "cat"), f) }
	status := func(f func(*StatusVote)) Record { return changed(sampleStatusLock(), f) }
	certificate := func(f func(*Certificate)) Record { return changed(certify(sampleProposal(), "cat", "dan"), f) }
	submission := func(f func(*Submission)) Record { return changed(sampleSubmission(), f) }
	// In order of ids the first miner of the sample that is paid.
	paid := slices.IndexFunc(sampleProposal().Value.Weights.Weights, func(w MinerWeight) bool { return w.Status == StatusOK })
	unpaid := slices.IndexFunc(sampleProposal().Value.Weights.Weights, func(w MinerWeight) bool { return w.Status != StatusOK })

	for _, c := range []struct {
		field string
		v     Record
	}{
		{"schedule.commit", schedule(func(s *Schedule) { s.Commit = 0 })},
		{"schedule.custody", schedule(func(s *Schedule) { s.Custody = s.Commit })},
		{"schedule.open", schedule(func(s *Schedule) { s.Open = s.Custody })},
		{"schedule.evaluate", schedule(func(s *Schedule) { s.Evaluate = s.Open })},
		{"schedule.evaluate", schedule(func(s *Schedule) { s.Evaluate = maxSchedule + 1 })},
		{"schedule.search", schedule(func(s *Schedule) { s.Search = 0 })},
		{"schedule.search", schedule(func(s *Schedule) { s.Search = math.MaxUint32 })},
		{"schedule.end", schedule(func(s *Schedule) { s.End = s.Evaluate + s.Search })},
		{"schedule.end", schedule(func(s *Schedule) { s.End = maxSchedule + 1 })},
		{"schedule.delta", schedule(func(s *Schedule) { s.DeltaMillis = 0 })},
		{"schedule.delta", schedule(func(s *Schedule) { s.DeltaMillis = 60_001 })},
		{"schedule.rounds", schedule(func(s *Schedule) { s.Rounds = maxScheduled + 1 })},
		{"schedule.blocks", schedule(func(s *Schedule) { s.CycleBlocks = 0 })},
		{"schedule.blocks", schedule(func(s *Schedule) { s.CycleBlocks = maxSchedule + 1 })},

		{"snapshot.version", snapshot(func(s *Snapshot) { s.Version = 0 })},
		{"snapshot.participants[1].id", snapshot(func(s *Snapshot) { s.Participants[1].ID = s.Participants[0].ID })},
		{"snapshot.participants[1].id", snapshot(func(s *Snapshot) { slices.Reverse(s.Participants) })},
		{"snapshot.participants[0].roles", snapshot(func(s *Snapshot) { s.Participants[0].Roles, s.Participants[0].Group = 0, "" })},
		{"snapshot.participants[0].roles", snapshot(func(s *Snapshot) { s.Participants[0].Roles |= 16 })},
		{"snapshot.participants[2].group", snapshot(func(s *Snapshot) { s.Participants[2].Roles, s.Participants[2].Group = RoleMiner, "" })},
		{"snapshot.participants[2].group", snapshot(func(s *Snapshot) { s.Participants[2].Roles, s.Participants[2].Group = RoleMiner, long })},
		{"snapshot.participants[2].group", snapshot(func(s *Snapshot) { s.Participants[2].Roles, s.Participants[2].Group = RoleGateway, "go" })},
		{"snapshot.participants[0].stake", snapshot(func(s *Snapshot) {
			s.Participants[0] = Participant{ID: s.Participants[0].ID, Roles: RoleValidator, Stake: math.MaxInt64 + 1}
		})},
		{"snapshot.participants[1].stake", snapshot(func(s *Snapshot) {
			for i := range 2 { // the sum wraps to zero
				s.Participants[i] = Participant{ID: s.Participants[i].ID, Roles: RoleValidator, Stake: math.MaxInt64 - uint64(i) + 1}
			}
			s.Participants[0].Stake = math.MaxInt64
		})},
		{"snapshot.participants", snapshot(func(s *Snapshot) { s.Participants = registry(maxParticipants+1, 0) })},
		{"snapshot.participants", snapshot(func(s *Snapshot) { s.Participants = registry(maxValidators+1, maxValidators+1) })},

		{"binding.network", binding(func(b *Binding) { b.Network = dagPB })},
		{"binding.peer", binding(func(b *Binding) { b.PeerID = nil })},
		{"binding.peer", binding(func(b *Binding) { b.PeerID = make([]byte, 65) })},
		{"head.network", head(func(h *Head) { h.Network = Link{} })},
		{"head.checkpoint", head(func(h *Head) { h.Checkpoint = cbor })},
		{"head.certificate", head(func(h *Head) { h.Certificate = &dagPB })},
		{"head.certificate", head(func(h *Head) { h.Certificate = &Link{} })},

		{"commitment.network", commitment(func(c *Commitment) { c.Network = raw })},
		{"commitment.group", commitment(func(c *Commitment) { c.Group = "" })},
		{"commitment.manifest", commitment(func(c *Commitment) { c.Manifest = raw })},
		{"commitment.size", commitment(func(c *Commitment) { c.Size = SegmentOverhead })},
		{"commitment.size", commitment(func(c *Commitment) { c.Size = maxSealed + 1 })},

		{"manifest.version", manifest(func(m *Manifest) { m.Version = 2 })},
		{"manifest.base", manifest(func(m *Manifest) { m.Base = cbor })},
		{"manifest.group", manifest(func(m *Manifest) { m.Group = long })},
		{"manifest.codec", manifest(func(m *Manifest) { m.Codec = "" })},
		{"manifest.tensors", manifest(func(m *Manifest) { m.Tensors = nil })},
		{"manifest.size", manifest(func(m *Manifest) { m.Size++ })},
		{"manifest.network", manifest(func(m *Manifest) { m.Network = raw })},
		{"manifest.segments", manifest(func(m *Manifest) { m.Segments = nil })},
		{"manifest.segments", manifest(func(m *Manifest) { m.Segments = make([]Segment, maxSegments+1) })},
		{"manifest.segments", manifest(func(m *Manifest) { m.Segments[0].Size++ })},
		{"manifest.segments[0].block", manifest(func(m *Manifest) { m.Segments[0].Block = cbor })},
		{"manifest.segments[0].size", manifest(func(m *Manifest) { m.Segments[0].Size = SegmentOverhead })},
		{"manifest.segments[1].size", manifest(func(m *Manifest) { m.Segments[1].Size = MaxSegment + 1 })},
		{"manifest.seed", manifest(func(m *Manifest) { m.LockedSeed = m.LockedSeed[1:] })},
		{"manifest.attestation", manifest(func(m *Manifest) { m.Attestation = &raw })},

		{"attestation.datasets", attestation(func(a *Attestation) { a.Datasets = nil })},
		{"attestation.datasets", attestation(func(a *Attestation) { a.Datasets = make([]Link, maxDatasets+1) })},
		{"attestation.datasets[0]", attestation(func(a *Attestation) { a.Datasets = []Link{raw} })},
		{"attestation.datasets[1]", attestation(func(a *Attestation) { a.Datasets[1] = a.Datasets[0] })},
		{"attestation.samples", attestation(func(a *Attestation) { a.Samples = 0 })},
		{"attestation.samples", attestation(func(a *Attestation) { a.Tokens = a.Samples - 1 })},

		{"list.network", list(func(l *List) { l.Network = Link{} })},
		{"list.entries", list(func(l *List) { l.Entries = make([]ListEntry, maxListEntries+1) })},
		{"list.entries[1]", list(func(l *List) { l.Entries[1] = l.Entries[0] })},
		{"list.entries[1]", list(func(l *List) { slices.Reverse(l.Entries) })},
		{"list.entries[0].group", list(func(l *List) { l.Entries[0].Group = "A" })},
		{"list.entries[0].manifest", list(func(l *List) { l.Entries[0].Manifest = raw })},
		{"list.entries[0].state", list(func(l *List) { l.Entries[0].State = 0 })},
		{"list.entries[1].state", list(func(l *List) { l.Entries[1].State = 4 })},
		{"list.sig", list(func(l *List) { l.Sig = Sig{} })},

		{"scorecommit.network", changed(sampleScoreCommit(), func(c *ScoreCommit) { c.Network = raw })},
		{"scores.network", scores(func(v *ScoreVector) { v.Network = raw })},
		{"scores.groups", scores(func(v *ScoreVector) { v.Groups = make([]GroupRows, maxGroups+1) })},
		{"scores.groups[0].group", scores(func(v *ScoreVector) { v.Groups[0].Group = "" })},
		{"scores.groups[0].rows", scores(func(v *ScoreVector) { v.Groups[0].Rows = nil })},
		{"scores.groups[0].rows[1]", scores(func(v *ScoreVector) { v.Groups[0].Rows[1] = v.Groups[0].Rows[0] })},
		{"scores.groups[0].rows[0].status", scores(func(v *ScoreVector) { v.Groups[0].Rows[0].Status = 0 })},
		{"scores.groups[1].group", scores(func(v *ScoreVector) { v.Groups = append(v.Groups, v.Groups[0]) })},
		{"merge.network", merge(func(v *MergeVector) { v.Network = raw })},
		{"merge.measure.version", merge(func(v *MergeVector) { v.Measure.Version = 0 })},
		{"merge.alpha", merge(func(v *MergeVector) { v.Alpha = maxAlphas })},

		{"proposal.network", proposal(func(p *Proposal) { p.Network = raw; p.Lock = nil })},
		{"proposal.instance", proposal(func(p *Proposal) { p.Instance = 0; p.Lock, p.Value = nil, Value{} })},
		{"proposal.instance", proposal(func(p *Proposal) { p.Instance = 3; p.Lock, p.Value = nil, Value{} })},
		{"proposal.round", proposal(func(p *Proposal) { p.Round = maxRounds })},
		{"proposal.vectors", proposal(func(p *Proposal) { p.Vectors, p.Lock = nil, nil })},
		{"proposal.vectors", proposal(func(p *Proposal) { p.Vectors, p.Lock = make([]Hash, maxValidators+1), nil })},
		{"proposal.vectors[1]", proposal(func(p *Proposal) { p.Vectors[1], p.Lock = p.Vectors[0], nil })},
		{"proposal.lists", proposal(func(p *Proposal) { p.Lists, p.Lock = make([]Hash, maxValidators+1), nil })},
		{"proposal.lists[1]", proposal(func(p *Proposal) { slices.Reverse(p.Lists); p.Lock = nil })},
		{"proposal.proofs", proposal(func(p *Proposal) { p.Proofs, p.Lock = make([]Hash, maxProofs+1), nil })},
		{"proposal.proofs[1]", proposal(func(p *Proposal) { p.Proofs, p.Lock = make([]Hash, 2), nil })},
		{"proposal.value.weights", proposal(func(p *Proposal) { p.Value, p.Lock = Value{}, nil })},
		{"proposal.value.merge", proposal(func(p *Proposal) { p.Value.Merge, p.Lock = sampleMergeProposal().Value.Merge, nil })},
		{"proposal.value.weights", proposal(func(p *Proposal) { p.Instance, p.Lock = InstanceM, nil })},
		{"proposal.lock", proposal(func(p *Proposal) { p.Cycle++ })},
		{"proposal.lock", proposal(func(p *Proposal) { p.Parent = Hash{} })},
		{"proposal.lock.round", proposal(func(p *Proposal) { p.Round = 0 })},
		{"proposal.lock.digest", proposal(func(p *Proposal) { p.Proofs = nil })},
		{"proposal.lock.digest", lockOf(func(l *Lock) { l.Digest = Hash{} })},
		{"proposal.lock.version", lockOf(func(l *Lock) { l.Version = 0 })},
		{"proposal.lock.signatures", lockOf(func(l *Lock) { l.Signatures = nil })},
		{"proposal.lock.signatures[0].sig", lockOf(func(l *Lock) { l.Signatures[0].Sig = Sig{} })},
		{"proposal.lock.signatures[1].validator", lockOf(func(l *Lock) { slices.Reverse(l.Signatures) })},
		{"proposal.lock.round", lockOf(func(l *Lock) { l.Round = maxRounds })},
		{"proposal.lock.instance", lockOf(func(l *Lock) { l.Instance = 0 })},
		{"proposal.lock.network", lockOf(func(l *Lock) { l.Network = raw })},

		{"proposal.value.weights.weights", weights(func(v *WeightsValue) { v.Weights = make([]MinerWeight, maxParticipants+1) })},
		{"proposal.value.weights.weights", weights(func(v *WeightsValue) { v.Weights[paid].Weight++ })},
		{"proposal.value.weights.weights", weights(func(v *WeightsValue) { v.Weights[paid].Part++ })},
		{"proposal.value.weights.weights[1]", weights(func(v *WeightsValue) { slices.Reverse(v.Weights) })},
		{"proposal.value.weights.weights[3].miner", weights(func(v *WeightsValue) {
			v.Weights = append(v.Weights, MinerWeight{Miner: v.Weights[0].Miner, Group: "web", Status: StatusLate})
		})},
		{indexed("proposal.value.weights.weights", unpaid, "weight"), weights(func(v *WeightsValue) { v.Weights[unpaid].Weight = 1 })},
		{indexed("proposal.value.weights.weights", unpaid, "weight"), weights(func(v *WeightsValue) { v.Weights[unpaid].Part = 1 })},
		{indexed("proposal.value.weights.weights", paid, "weight"), weights(func(v *WeightsValue) { v.Weights[paid].Weight = WeightTotal + 1 })},
		{indexed("proposal.value.weights.weights", paid, "weight"), weights(func(v *WeightsValue) { v.Weights[paid].Part = math.MaxUint64 })},
		{"proposal.value.weights.weights[0].group", weights(func(v *WeightsValue) { v.Weights[0].Group = long })},
		{indexed("proposal.value.weights.weights", unpaid, "status"), weights(func(v *WeightsValue) { v.Weights[unpaid].Status = 0 })},
		{"proposal.value.merge.alpha", mergeValue(func(v *MergeValue) { v.Alpha = maxAlphas })},
		{"proposal.value.merge.excluded", mergeValue(func(v *MergeValue) { v.Excluded = slices.Repeat([]string{"a"}, maxGroups+1) })},
		{"proposal.value.merge.excluded[0]", mergeValue(func(v *MergeValue) { v.Excluded[0] = "" })},
		{"proposal.value.merge.excluded[1]", mergeValue(func(v *MergeValue) { v.Excluded = []string{"go", "go"} })},
		{"proposal.value.merge.next", mergeValue(func(v *MergeValue) { v.Next = raw })},

		{"vote.network", vote(func(v *Vote) { v.Network = raw })},
		{"vote.instance", vote(func(v *Vote) { v.Instance = 3 })},
		{"vote.round", vote(func(v *Vote) { v.Round = maxRounds })},
		{"vote.type", vote(func(v *Vote) { v.Type = 0 })},
		{"vote.type", vote(func(v *Vote) { v.Type = 3 })},
		{"vote.digest", vote(func(v *Vote) { v.Digest = Hash{} })},
		{"status.network", null(func(v *StatusVote) { v.Network = raw })},
		{"status.instance", null(func(v *StatusVote) { v.Instance = 0 })},
		{"status.type", null(func(v *StatusVote) { v.Type = 3 })},
		{"status.lockdigest", null(func(v *StatusVote) { v.LockRound = 1 })},
		{"status.lockdigest", null(func(v *StatusVote) { v.LockDigest = hashFor("x") })},
		{"status.lockdigest", status(func(v *StatusVote) { v.LockDigest = Hash{} })},
		{"status.lockround", status(func(v *StatusVote) { v.LockRound = maxRounds })},
		{"status.lockround", status(func(v *StatusVote) { v.LockRound = v.Round })},
		{"status.round", status(func(v *StatusVote) { v.Round = maxRounds })},

		{"certificate.network", certificate(func(c *Certificate) { c.Network = raw })},
		{"certificate.instance", certificate(func(c *Certificate) { c.Instance = 0 })},
		{"certificate.round", certificate(func(c *Certificate) { c.Round = maxRounds })},
		{"certificate.parent", certificate(func(c *Certificate) { c.Parent = Hash{} })},
		{"certificate.proposal", certificate(func(c *Certificate) { c.Cycle++ })},
		{"certificate.proposal.sig", certificate(func(c *Certificate) { c.Proposal.Sig = Sig{} })},
		{"certificate.signatures", certificate(func(c *Certificate) { c.Signatures = make([]VoteSig, maxValidators+1) })},

		{"equivocation", EquivocationProof{Version: Version}},
		{"submission.network", submission(func(s *Submission) { s.Network = raw })},
		{"submission.weights", submission(func(s *Submission) { s.Weights = make([]MinerWeight16, maxParticipants+1) })},
		{"submission.weights[1].miner", submission(func(s *Submission) { slices.Reverse(s.Weights) })},
		{"submission.weights[0].weight", submission(func(s *Submission) { s.Weights = []MinerWeight16{{}} })},
		{"submission.weights", submission(func(s *Submission) { s.Weights = []MinerWeight16{{Weight: 65534}} })},
	} {
		wantFault(t, c.field, c.v)
	}
}

func indexed(list string, i int, field string) string { return index(list, i) + "." + field }

// registry is n participants of which the first are validators, in order.
func registry(n, validators int) []Participant {
	list := make([]Participant, n)
	for i := range list {
		list[i] = Participant{ID: ID{byte(i >> 8), byte(i)}, Key: Key{1}, Stake: math.MaxUint64, Roles: RoleMiner | RoleBootstrap | RoleGateway, Group: strings.Repeat("g", maxName)}
		if i < validators {
			list[i].Roles, list[i].Stake = list[i].Roles|RoleValidator, math.MaxInt64/uint64(validators)
		}
	}
	return list
}

// TestLimits: the longest record that the rules allow is not refused for its length.
func TestLimits(t *testing.T) {
	name, id := strings.Repeat("g", maxName), func(i int) ID { return ID{byte(i >> 8), byte(i), 31: 0xff} }
	hashes := make([]Hash, maxValidators)
	sigs := make([]VoteSig, maxValidators)
	for i := range hashes {
		hashes[i], sigs[i] = Hash(id(i)), VoteSig{id(i), Sig{1}}
	}
	snapshot := Snapshot{Version: Version, Height: math.MaxUint64, Participants: registry(maxParticipants, maxValidators)}
	list := List{Version: Version, Network: sampleNetwork, Cycle: math.MaxUint64, Sig: Sig{1}}
	submission := Submission{Version: Version, Network: sampleNetwork, Cycle: math.MaxUint64, Sig: Sig{1}}
	value := WeightsValue{MergeSet: hashes[1]}
	for i := range maxParticipants {
		list.Entries = append(list.Entries, ListEntry{Miner: id(i), Group: name, Manifest: sampleNetwork, Bucket: math.MaxUint32, State: ListIncomplete})
		submission.Weights = append(submission.Weights, MinerWeight16{id(i), math.MaxUint16})
		value.Weights = append(value.Weights, MinerWeight{Miner: id(i), Group: name, Status: StatusOK, Weight: WeightTotal / maxParticipants, Part: WeightTotal / maxParticipants})
	}
	proposal := func(v Value, i Instance) Proposal {
		p := Proposal{Version: Version, Network: sampleNetwork, Cycle: math.MaxUint64, Instance: i, Round: maxRounds - 1, Parent: hashes[1], Proposer: id(1),
			Vectors: hashes, Lists: hashes, Proofs: hashes[:maxProofs], Value: v, Sig: Sig{1}}
		p.Lock = &Lock{Version: Version, Network: sampleNetwork, Cycle: p.Cycle, Instance: i, Round: p.Round - 1, Parent: p.Parent, Digest: p.Decision(), Snapshot: hashes[1], Signatures: sigs}
		return p
	}
	weights := proposal(Value{Weights: &value}, InstanceW)
	merge := MergeValue{Alpha: maxAlphas - 1, Next: LinkTo(DagPB, nil)}
	for i := range maxGroups {
		merge.Excluded = append(merge.Excluded, name[:maxName-3]+string([]byte{'a' + byte(i>>8), 'a' + byte(i>>4&15), 'a' + byte(i&15)}))
	}
	certificate := Certificate{Version: Version, Network: sampleNetwork, Cycle: weights.Cycle, Instance: InstanceW, Round: weights.Round, Parent: weights.Parent,
		Proposal: &weights, Snapshot: hashes[1], Signatures: sigs}
	another := weights
	another.Proofs, another.Lock = hashes[1:maxProofs], nil
	datasets := make([]Link, maxDatasets)
	for i := range datasets {
		datasets[i] = hashes[i].Link()
	}
	for _, c := range []struct {
		v      Record
		limit  int
		decode func([]byte) (Record, error)
	}{
		{snapshot, maxDocument, erase(DecodeSnapshot)},
		{list, maxList, erase(DecodeList)},
		{submission, maxSubmission, erase(DecodeSubmission)},
		{*weights.Lock, maxLock, erase(DecodeLock)},
		{weights, maxProposal, erase(DecodeProposal)},
		{proposal(Value{Merge: &merge}, InstanceM), maxProposal, erase(DecodeProposal)},
		{certificate, maxDocument, erase(DecodeCertificate)},
		{proofOf(weights, another), maxEquivocation, erase(DecodeEquivocationProof)},
		{Attestation{Version: Version, Datasets: datasets, Samples: math.MaxUint64, Tokens: math.MaxUint64}, maxAttestation, erase(DecodeAttestation)},
		{changed(sampleBinding(), func(b *Binding) { b.PeerID = make([]byte, maxPeerID) }), maxSmall, erase(DecodeBinding)},
		{changed(sampleStatusLock(), func(v *StatusVote) { v.Cycle = math.MaxUint64 }), maxSmall, erase(DecodeStatusVote)},
		{changed(sampleCommitment(), func(c *Commitment) { c.Cycle, c.Group, c.Size = math.MaxUint64, name, maxSealed }), maxSmall, erase(DecodeCommitment)},
	} {
		b, err := Encode(c.v)
		if err != nil {
			t.Errorf("%T: %v", c.v, err)
			continue
		}
		t.Logf("%T: at most %d of %d bytes", c.v, len(b), c.limit)
		if _, err := c.decode(b); err != nil {
			t.Errorf("%T: %v", c.v, err)
		}
		if _, err := c.decode(append(b, make([]byte, c.limit+1-len(b))...)); !errors.Is(err, ErrTooLarge) {
			t.Errorf("%T of %d bytes: %v", c.v, c.limit+1, err)
		}
	}
}

// TestHostileSizes: bytes that promise more than they hold cost no more memory than a small multiple of themselves.
func TestHostileSizes(t *testing.T) {
	good, err := Encode(sampleScores())
	if err != nil {
		t.Fatal(err)
	}
	before, _, ok1 := bytes.Cut(good, []byte("\x66groups"))
	_, after, ok2 := bytes.Cut(good, []byte("\x66parent"))
	if !ok1 || !ok2 {
		t.Fatal("the test no longer finds the groups")
	}
	// vector is the sample with as many groups as fit, each with these bytes in the place of its rows.
	vector := func(most int, rows ...[]byte) []byte {
		group := slices.Concat([]byte("\xa2\x64rows"), slices.Concat(rows...), []byte("\x65group\x61g"))
		n := min(most, (maxDocument-len(good))/len(group))
		return slices.Concat(before, []byte("\x66groups"), []byte{0x98, byte(n)}, bytes.Repeat(group, n), []byte("\x66parent"), after)
	}
	cases := make(map[string][]byte)
	for name, element := range map[string]byte{"empty maps": 0xa0, "zeros": 0, "nulls": 0xf6, "empty lists": 0x80} {
		cases[name] = vector(255, []byte{0x99, 0xff, 0xff}, bytes.Repeat([]byte{element}, 0xffff))
		if name == "empty maps" && decMode.Wellformed(cases[name]) != nil {
			t.Fatal("the test no longer makes CBOR")
		}
	}
	for _, head := range []string{"\x9b\xff\xff\xff\xff\xff\xff\xff\xff", "\x9a\x7f\xff\xff\xff", "\x99\xff\xff", "\x9f", "\x9c"} {
		cases["a list head "+head] = vector(1, []byte(head))
		cases["a bytes head "+head] = vector(1, []byte{head[0] - 0x40}, []byte(head[1:]))
	}
	cases["nested lists"] = bytes.Repeat([]byte{0x81}, maxDocument)
	cases["nested maps"] = bytes.Repeat([]byte{0xa1, 0x60}, maxDocument/2)
	cases["nested tags"] = bytes.Repeat([]byte{0xd8, 42}, maxDocument/2)
	for name, b := range cases {
		var start, end runtime.MemStats
		runtime.ReadMemStats(&start)
		_, err := DecodeScoreVector(b)
		runtime.ReadMemStats(&end)
		if !errors.Is(err, ErrNotCanonical) {
			t.Errorf("%q: %v", name, err)
		}
		if cost := end.TotalAlloc - start.TotalAlloc; cost > 1<<16 {
			t.Errorf("%q: %d bytes allocated for %d", name, cost, len(b))
		}
	}
}

// TestForms: no prefix of a record and none of its heads made longer has the form of it.
func TestForms(t *testing.T) {
	for _, b := range [][]byte{nil, {0xf6}, {0x18}, {0x1b, 1, 2, 3}, {0xa1}, {0xff}, {0x1f}, {0x5f}, {0x9f}, {0xbf}, {0xfb, 0, 0, 0, 0, 0, 0, 0, 0}} {
		for _, r := range records {
			if _, err := r.decode(b); !errors.Is(err, ErrNotCanonical) {
				t.Errorf("%x as a %s: %v", b, r.name, err)
			}
		}
	}
	// A pointer is null or there; undefined and an empty map are neither.
	b, err := Encode(certifyNull(InstanceW, "cat"))
	if err != nil {
		t.Fatal(err)
	}
	for _, other := range []string{"\xf7", "\xf5", "\xa0", "\x00", "\x80", "\x40"} {
		bad := bytes.Replace(b, []byte("\x68proposal\xf6"), []byte("\x68proposal"+other), 1)
		if bytes.Equal(bad, b) {
			t.Fatal("the test no longer finds the null")
		}
		if _, err := DecodeCertificate(bad); !errors.Is(err, ErrNotCanonical) {
			t.Errorf("%x as no proposal: %v", other, err)
		}
	}
}
