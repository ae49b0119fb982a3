package wire

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/bits"
	"slices"

	"github.com/blockzero-net/bzd/consensus"
	"github.com/blockzero-net/bzd/internal/protocol"
)

// form writes or reads the packed form of one record. Each method below says what the form of its type is, once for
// both ways: writing, it appends what its argument holds; reading, it sets its argument. After an error nothing counts.
//
// Every form can be read in one way only, and what is read writes the same again.
type form struct {
	codec   *Codec
	reading bool
	b       []byte // what was written, or is still to be read
	last    int    // the place of the last id
	names   []string
	left    int // bytes of encoding that what is read may still have
	err     error

	whole    bool          // refer to no manifest
	referred bool          // to a manifest
	unknown  bool          // one that is not known
	digest   protocol.Hash // of a list that refers to manifests
}

func (f *form) fail(format string, args ...any) {
	if f.err == nil {
		f.err = fmt.Errorf(format, args...)
	}
}

// raw is so many bytes as they are.
func (f *form) raw(b []byte) {
	switch {
	case f.err != nil:
	case !f.reading:
		f.b = append(f.b, b...)
	case len(f.b) < len(b):
		f.fail("it ends in the middle")
	default:
		copy(b, f.b)
		f.b = f.b[len(b):]
	}
}

func (f *form) octet(v *byte) {
	b := [1]byte{*v}
	f.raw(b[:])
	*v = b[0]
}

func (f *form) hash(h *protocol.Hash) { f.raw(h[:]) }
func (f *form) sig(s *protocol.Sig)   { f.raw(s[:]) }

// uint is an unsigned LEB128 of the fewest bytes, at most limit.
func (f *form) uint(v *uint64, limit uint64) {
	if f.err != nil {
		return
	}
	if !f.reading {
		f.b = binary.AppendUvarint(f.b, *v)
	} else {
		got, n := binary.Uvarint(f.b)
		if n <= 0 || n > 1 && f.b[n-1] == 0 {
			f.fail("not a number")
			return
		}
		*v, f.b = got, f.b[n:]
	}
	if *v > limit {
		f.fail("%d, at most %d", *v, limit)
	}
}

func (f *form) uint32(v *uint32) {
	wide := uint64(*v)
	f.uint(&wide, 1<<32-1)
	*v = uint32(wide)
}

func (f *form) uint64(v *uint64) { f.uint(v, 1<<64-1) }

// int is zigzag: 0, −1, 1, −2 … are 0, 1, 2, 3 …
func (f *form) int(v *int64) {
	zigzag := uint64(*v)<<1 ^ uint64(*v>>63)
	f.uint64(&zigzag)
	*v = int64(zigzag>>1) ^ -int64(zigzag&1)
}

// count is the length of a list, of which an element takes at least so many bytes here and in the record's encoding.
func (f *form) count(n int, packed, encoded int) int {
	wide := uint64(n)
	if f.reading {
		f.uint(&wide, uint64(min(len(f.b)/packed, f.left/encoded)))
	} else {
		f.uint64(&wide)
	}
	if f.err != nil {
		return 0
	}
	f.left -= int(wide) * encoded
	return int(wide)
}

// id is how many places it is after the last id in the snapshot, around its end; 0 and the id itself for one that is
// not there.
func (f *form) id(id *protocol.ID) {
	all := len(f.codec.ids)
	var step uint64
	place, known := f.codec.places[*id]
	if !f.reading && known {
		step = uint64((place-f.last-1+all)%all) + 1
	}
	f.uint(&step, uint64(all))
	if step == 0 {
		f.raw(id[:])
		if _, known := f.codec.places[*id]; f.reading && known {
			f.fail("a participant is named in full")
		}
		return
	}
	if f.err == nil {
		f.last = (f.last + int(step)) % all
		*id = f.codec.ids[f.last]
	}
}

// Bounds of the names of groups and domains: the longest, in bytes, and how many a message has, for each is compared with
// all before it. A record has fewer.
const (
	maxName  = 32
	maxNames = 4096
)

// name is its number among the names of this record as they come first, from 1; 0, its length and its bytes for a new
// one.
func (f *form) name(s *string) {
	var place uint64
	for i, known := range f.names {
		if known == *s && !f.reading {
			place = uint64(i + 1)
		}
	}
	f.uint(&place, uint64(len(f.names)))
	if f.err != nil {
		return
	}
	if place > 0 {
		*s = f.names[place-1]
		return
	}
	length := uint64(len(*s))
	f.uint(&length, maxName)
	if len(f.names) >= maxNames {
		f.fail("more than %d names", maxNames)
	}
	if f.err != nil {
		return
	}
	b := make([]byte, length)
	copy(b, *s)
	f.raw(b)
	*s = string(b)
	for _, known := range f.names {
		if known == *s {
			f.fail("a name comes twice")
		}
	}
	f.names = append(f.names, *s)
}

// referenceBytes of a manifest's hash tell those of one miner apart that are known.
const referenceBytes = 4

// cidBytes are those of the CID of a link; the last 32 of them are the hash.
const cidBytes = 36

// link is the bytes of its CID.
func (f *form) link(l *protocol.Link) {
	b := []byte(l.Cid().KeyString())
	if f.reading {
		b = make([]byte, cidBytes)
	}
	f.raw(b)
	if f.reading && f.err == nil {
		if err := l.UnmarshalCBOR(append([]byte{0xd8, 0x2a, 0x58, 1 + cidBytes, 0}, b...)); err != nil {
			f.fail("a link: %w", err)
		}
	}
}

// head is what every record begins with, of which nothing is sent.
func (f *form) head(version *uint32, network *protocol.Link, cycle *uint64) {
	if f.reading {
		*version, *network, *cycle = protocol.Version, f.codec.network, f.codec.cycle
	} else if *network != f.codec.network || *cycle != f.codec.cycle {
		f.fail("of cycle %d of %s", *cycle, *network)
	}
}

// turn is one byte: the instance − 1, then what a vote's type is above the first, then the round.
func (f *form) turn(i *protocol.Instance, kind *uint8, round *uint32) {
	b := byte(*i-1) | (*kind-1)<<1 | byte(*round)<<2
	f.octet(&b)
	*i, *kind, *round = protocol.Instance(b&1)+1, b>>1&1+1, uint32(b>>2)
}

func (f *form) scoreCommit(c *protocol.ScoreCommit) {
	f.head(&c.Version, &c.Network, &c.Cycle)
	f.id(&c.Validator)
	f.hash(&c.Digest)
	f.sig(&c.Sig)
}

// What an element of a list takes at least in the canonical encoding, and here.
const (
	encodedHash   = 34
	encodedRow    = 76
	packedRow     = 1
	encodedGroup  = 14
	packedGroup   = 2
	encodedEntry  = 112
	packedEntry   = 2 + referenceBytes
	encodedWeight = 71
	packedWeight  = 5
	encodedSig    = 115
	packedSig     = 65
	encodedMerge  = 33
	packedMerge   = 5
)

func (f *form) scoreVector(v *protocol.ScoreVector) {
	f.head(&v.Version, &v.Network, &v.Cycle)
	f.id(&v.Validator)
	f.hash(&v.Parent)
	f.hash(&v.List)
	f.hash(&v.Salt)
	each(f, &v.Groups, packedGroup, encodedGroup, func(g *protocol.GroupRows) {
		f.name(&g.Group)
		f.rows(&g.Rows)
	})
	f.sig(&v.Sig)
}

// rows are a table by columns.
func (f *form) rows(all *[]protocol.Row) {
	n := f.count(len(*all), packedRow, encodedRow)
	if f.reading {
		*all = make([]protocol.Row, n)
	}
	rows := (*all)[:n]
	for i := range rows {
		f.id(&rows[i].Miner)
	}
	column(f, rows, func(r *protocol.Row) *protocol.Status { return &r.Status })
	column(f, rows, func(r *protocol.Row) *uint32 { return &r.Shard })
	column(f, rows, func(r *protocol.Row) *uint32 { return &r.N })
	column(f, rows, func(r *protocol.Row) *int64 { return &r.Gain })
	column(f, rows, func(r *protocol.Row) *uint64 { return &r.StdErr })
	column(f, rows, func(r *protocol.Row) *int64 { return &r.Screen })
}

// column is one field of the rows of a table, nothing if there are none: the least value, how many bits the largest
// differs from it by, and the difference of each row in so many bits, from the lowest up.
func column[T any, N ~uint8 | ~uint32 | ~uint64 | ~int64](f *form, rows []T, field func(*T) *N) {
	if len(rows) == 0 || f.err != nil {
		return
	}
	low, high := *field(&rows[0]), *field(&rows[0])
	for i := range rows {
		low, high = min(low, *field(&rows[i])), max(high, *field(&rows[i]))
	}
	least := int64(low)
	if signed := N(0)-1 < 0; signed {
		f.int(&least)
	} else {
		wide := uint64(low)
		f.uint64(&wide)
		least = int64(wide)
	}
	width := byte(bits.Len64(uint64(high) - uint64(low)))
	f.octet(&width)
	size := (len(rows)*int(width) + 7) / 8
	if f.err != nil || width > 64 || f.reading && size > len(f.b) {
		f.fail("a column of %d bits", width)
		return
	}
	packed := make([]byte, size)
	if !f.reading {
		for i := range rows {
			put(packed, i*int(width), int(width), uint64(*field(&rows[i]))-uint64(low))
		}
	}
	f.raw(packed)
	if !f.reading {
		return
	}
	low = N(least)
	var most uint64
	every := ^uint64(0) // the least difference is 0
	for i := range rows {
		d := get(packed, i*int(width), int(width))
		v := N(uint64(least) + d)
		if uint64(v)-uint64(low) != d || v < low {
			f.fail("a number beyond its type")
			return
		}
		*field(&rows[i]) = v
		most, every = max(most, d), min(every, d)
	}
	rest := 8*size - len(rows)*int(width) // bits of the last byte
	if int64(low) != least || every != 0 || bits.Len64(most) != int(width) || rest > 0 && packed[size-1]>>(8-rest) != 0 {
		f.fail("a column that takes more than it needs")
	}
}

// put writes the width lowest bits of v at a bit of b, get reads them.
func put(b []byte, at, width int, v uint64) {
	for k := 0; k < width; k++ {
		b[(at+k)/8] |= byte(v>>k&1) << ((at + k) % 8)
	}
}

func get(b []byte, at, width int) (v uint64) {
	for k := 0; k < width; k++ {
		v |= uint64(b[(at+k)/8]>>((at+k)%8)&1) << k
	}
	return v
}

// each is the length of a list, then its elements.
func each[T any](f *form, all *[]T, packed, encoded int, element func(*T)) {
	n := f.count(len(*all), packed, encoded)
	if f.reading {
		*all = make([]T, n)
	}
	for i := 0; i < n && f.err == nil; i++ {
		element(&(*all)[i])
	}
}

func (f *form) mergeVector(v *protocol.MergeVector) {
	f.head(&v.Version, &v.Network, &v.Cycle)
	f.id(&v.Validator)
	f.hash(&v.Parent)
	f.uint32(&v.Alpha)
	v.Measure.Version = protocol.Version
	each(f, &v.Measure.Groups, 1, 2, func(g *string) { f.name(g) })
	each(f, &v.Measure.Rows, packedMerge, encodedMerge, func(r *protocol.MergeRow) {
		f.uint32(&r.Alpha)
		f.name(&r.Domain)
		f.int(&r.Change)
		f.uint64(&r.StdErr)
		f.uint32(&r.N)
	})
	f.sig(&v.Sig)
}

// reference, in an entry's state, says that of the manifest's hash the first bytes follow.
const reference = 0x10

func (f *form) list(l *protocol.List) {
	f.head(&l.Version, &l.Network, &l.Cycle)
	f.id(&l.Validator)
	f.entries(&l.Entries)
	f.sig(&l.Sig)
	if f.referred && f.err == nil {
		if !f.reading {
			f.digest = l.Digest()
		}
		f.hash(&f.digest)
	}
}

// entries are a table by columns, and the manifests.
func (f *form) entries(all *[]protocol.ListEntry) {
	n := f.count(len(*all), packedEntry, encodedEntry)
	if f.reading {
		*all = make([]protocol.ListEntry, n)
	}
	entries := slices.Clone((*all)[:n])
	for i := range entries {
		f.id(&entries[i].Miner)
		f.name(&entries[i].Group)
		if known := f.codec.known(entries[i].Miner); !f.reading && !f.whole && slices.Contains(known, entries[i].Manifest) {
			entries[i].State |= reference
		}
	}
	column(f, entries, func(e *protocol.ListEntry) *protocol.ListState { return &e.State })
	column(f, entries, func(e *protocol.ListEntry) *uint32 { return &e.Bucket })
	for i := range entries {
		f.manifest(&entries[i])
		entries[i].State &^= reference
	}
	*all = entries
}

// manifest is that of an entry: its hash, or the beginning of one that is known.
func (f *form) manifest(e *protocol.ListEntry) {
	h := hashOf(e.Manifest)
	if e.State&reference == 0 {
		f.hash(&h)
		e.Manifest = h.Link()
		return
	}
	f.referred = true
	f.raw(h[:referenceBytes])
	if !f.reading || f.err != nil {
		return
	}
	known := f.codec.known(e.Miner)
	i := slices.IndexFunc(known, func(l protocol.Link) bool {
		full := hashOf(l)
		return bytes.Equal(full[:referenceBytes], h[:referenceBytes])
	})
	if i < 0 {
		f.unknown = true
		return
	}
	e.Manifest = known[i]
}

// hashOf is the hash in a link, zero if there is none.
func hashOf(l protocol.Link) (h protocol.Hash) {
	if s := l.Cid().KeyString(); len(s) == cidBytes {
		copy(h[:], s[cidBytes-len(h):])
	}
	return h
}

func (f *form) vote(v *protocol.Vote) {
	f.head(&v.Version, &v.Network, &v.Cycle)
	f.turn(&v.Instance, (*uint8)(&v.Type), &v.Round)
	f.hash(&v.Parent)
	f.hash(&v.Digest)
	f.id(&v.Validator)
	f.sig(&v.Sig)
}

func (f *form) status(s *protocol.StatusVote) {
	f.head(&s.Version, &s.Network, &s.Cycle)
	f.turn(&s.Instance, (*uint8)(&s.Type), &s.Round)
	f.hash(&s.Parent)
	if s.Type == protocol.StatusLock {
		f.uint32(&s.LockRound)
		f.hash(&s.LockDigest)
	}
	f.id(&s.Validator)
	f.sig(&s.Sig)
}

func (f *form) signatures(all *[]protocol.VoteSig) {
	each(f, all, packedSig, encodedSig, func(s *protocol.VoteSig) {
		f.id(&s.Validator)
		f.sig(&s.Sig)
	})
}

func (f *form) hashes(all *[]protocol.Hash) {
	each(f, all, len(protocol.Hash{}), encodedHash, func(h *protocol.Hash) { f.hash(h) })
}

// round is a byte: a turn without a type.
func (f *form) round(i *protocol.Instance, round *uint32) {
	one := uint8(1)
	if f.turn(i, &one, round); one != 1 {
		f.fail("no type here")
	}
}

func (f *form) lock(l *protocol.Lock) {
	f.head(&l.Version, &l.Network, &l.Cycle)
	f.round(&l.Instance, &l.Round)
	f.hash(&l.Parent)
	f.hash(&l.Digest)
	f.hash(&l.Snapshot)
	f.signatures(&l.Signatures)
}

// present is a byte: 1 if something follows, else 0.
func present[T any](f *form, p **T) bool {
	var b byte
	if *p != nil {
		b = 1
	}
	f.octet(&b)
	if b > 1 {
		f.fail("neither there nor not")
	}
	if f.reading && b == 1 {
		*p = new(T)
	}
	return b == 1 && f.err == nil
}

func (f *form) proposal(p *protocol.Proposal) {
	f.head(&p.Version, &p.Network, &p.Cycle)
	f.round(&p.Instance, &p.Round)
	f.hash(&p.Parent)
	f.proposed(p)
}

// proposed is a proposal without what a certificate says too.
func (f *form) proposed(p *protocol.Proposal) {
	f.id(&p.Proposer)
	f.hashes(&p.Vectors)
	f.hashes(&p.Lists)
	f.hashes(&p.Proofs)
	if present(f, &p.Value.Weights) {
		w := p.Value.Weights
		f.hash(&w.MergeSet)
		each(f, &w.Weights, packedWeight, encodedWeight, func(m *protocol.MinerWeight) {
			f.id(&m.Miner)
			f.name(&m.Group)
			f.octet((*byte)(&m.Status))
			f.uint64(&m.Weight)
			f.uint64(&m.Part)
		})
	}
	if present(f, &p.Value.Merge) {
		f.uint32(&p.Value.Merge.Alpha)
		each(f, &p.Value.Merge.Excluded, 1, 2, func(g *string) { f.name(g) })
		f.link(&p.Value.Merge.Next)
	}
	if present(f, &p.Lock) {
		f.lock(p.Lock)
	}
	f.sig(&p.Sig)
}

func (f *form) certificate(c *protocol.Certificate) {
	f.head(&c.Version, &c.Network, &c.Cycle)
	f.round(&c.Instance, &c.Round)
	f.hash(&c.Parent)
	f.hash(&c.Snapshot)
	f.signatures(&c.Signatures)
	if !present(f, &c.Proposal) {
		return
	}
	p := c.Proposal
	if f.reading {
		p.Version, p.Network, p.Cycle, p.Instance, p.Parent = c.Version, c.Network, c.Cycle, c.Instance, c.Parent
	}
	f.uint32(&p.Round)
	f.proposed(p)
}

// record reads a record.
func (f *form) record(kind consensus.Kind) protocol.Record {
	switch kind {
	case consensus.KindScoreCommit:
		return read(f.scoreCommit)
	case consensus.KindScoreVector:
		return read(f.scoreVector)
	case consensus.KindMergeVector:
		return read(f.mergeVector)
	case consensus.KindList:
		return read(f.list)
	case consensus.KindProposal:
		return read(f.proposal)
	case consensus.KindVote:
		return read(f.vote)
	case consensus.KindStatus:
		return read(f.status)
	case consensus.KindCertificate:
		return read(f.certificate)
	case consensus.KindLock:
		return read(f.lock)
	}
	f.fail("no packed form")
	return nil
}

func read[T protocol.Record](record func(*T)) T {
	var v T
	record(&v)
	return v
}
