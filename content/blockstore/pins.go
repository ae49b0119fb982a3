package blockstore

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/dgraph-io/badger/v4"
	"github.com/ipfs/go-cid"
	mh "github.com/multiformats/go-multihash"
)

// Owner is who needs a pinned block: a kind such as "cycle", "checkpoint" or "submission", and which one of these.
type Owner struct {
	Kind string // 1 to 32 lower case letters
	Name string // 1 to 200 printable ASCII characters without a space
}

func (o Owner) String() string { return o.Kind + "/" + o.Name }

// Validate reports whether an owner can be stored and told from every other.
func (o Owner) Validate() error {
	outside := func(s string, low, high byte, most int) bool {
		return s == "" || len(s) > most || strings.ContainsFunc(s, func(r rune) bool { return r < rune(low) || r > rune(high) })
	}
	if outside(o.Kind, 'a', 'z', 32) || outside(o.Name, '!', '~', 200) {
		return fmt.Errorf("%w: owner %.300q: want a kind of lower case letters and a name without spaces", ErrPin, o.String())
	}
	return nil
}

// Pin keeps blocks from collection.
type Pin struct {
	Owner  Owner
	Roots  []cid.Cid // kept with everything that they link to, as far as it is here
	Blocks []cid.Cid // kept by themselves
	// Spare pins are given up, the oldest first, when a put would otherwise exceed the quota.
	Spare bool
	// Age orders pins by when they were made. [Store.Pin] sets it where it is 0.
	Age uint64
}

// maxPinned bounds the CIDs of one pin: the segments of a delta of 64 GiB.
const maxPinned = 1 << 16

// pinPrefix begins the keys of pins. No multihash of the store begins with it.
var pinPrefix = []byte("\x00pin/")

func pinKey(o Owner) []byte { return append(pinPrefix[:len(pinPrefix):len(pinPrefix)], o.String()...) }

// A pin's value: version, flags, age, the numbers of roots and of blocks, the CIDs.
const (
	pinVersion = 1
	pinSpare   = 1
	pinHead    = 2 + 8 + 4 + 4
	pinCID     = 4 + sha256.Size
)

func (p Pin) encode() ([]byte, error) {
	if len(p.Roots)+len(p.Blocks) > maxPinned {
		return nil, fmt.Errorf("%w: %s names %d blocks, at most %d", ErrPin, p.Owner, len(p.Roots)+len(p.Blocks), maxPinned)
	}
	b := make([]byte, 0, pinHead+pinCID*(len(p.Roots)+len(p.Blocks)))
	b = append(b, pinVersion, 0)
	if p.Spare {
		b[1] = pinSpare
	}
	b = binary.LittleEndian.AppendUint64(b, p.Age)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(p.Roots)))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(p.Blocks)))
	for _, c := range slices.Concat(p.Roots, p.Blocks) {
		if _, err := digest(c); err != nil {
			return nil, err
		}
		if len(c.Bytes()) != pinCID {
			return nil, fmt.Errorf("%w: %s: %s is not of this network", ErrPin, p.Owner, c)
		}
		b = append(b, c.Bytes()...)
	}
	return b, nil
}

func decodePin(key, b []byte) (Pin, error) {
	kind, name, _ := strings.Cut(string(key[len(pinPrefix):]), "/")
	p := Pin{Owner: Owner{kind, name}}
	if len(b) < pinHead || b[0] != pinVersion {
		return p, fmt.Errorf("%w: %s: not written by this version", ErrPin, p.Owner)
	}
	p.Spare, p.Age = b[1]&pinSpare != 0, binary.LittleEndian.Uint64(b[2:])
	roots, blocks := binary.LittleEndian.Uint32(b[10:]), binary.LittleEndian.Uint32(b[14:])
	b = b[pinHead:]
	if uint64(roots)+uint64(blocks) > maxPinned || uint64(len(b)) != pinCID*(uint64(roots)+uint64(blocks)) {
		return p, fmt.Errorf("%w: %s: cut off", ErrPin, p.Owner)
	}
	for i := range roots + blocks {
		c, err := cid.Cast(b[pinCID*i : pinCID*(i+1)])
		if err != nil {
			return p, fmt.Errorf("%w: %s: %w", ErrPin, p.Owner, err)
		}
		if i < roots {
			p.Roots = append(p.Roots, c)
		} else {
			p.Blocks = append(p.Blocks, c)
		}
	}
	return p, nil
}

// Pin keeps blocks from collection until Unpin, in place of what the owner has pinned before. They need not be here yet:
// pin first, then fetch. When Pin returns, it is durable, and so is everything that was stored before the call.
func (s *Store) Pin(ctx context.Context, p Pin) error {
	if err := errors.Join(ctx.Err(), p.Owner.Validate()); err != nil {
		return err
	}
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	s.pins.Lock()
	defer s.pins.Unlock()
	if s.age == 0 {
		all, err := s.readPins()
		if err != nil {
			return err
		}
		for _, q := range all {
			s.age = max(s.age, q.Age)
		}
	}
	if p.Age == 0 {
		s.age++
		p.Age = s.age
	}
	value, err := p.encode()
	if err != nil {
		return err
	}
	if err := s.big.sync(); err != nil { // before the pin, which promises that they are here
		return explain(s.dir, err)
	}
	s.writes.RLock()
	if err = s.db.Update(func(t *badger.Txn) error { return t.Set(pinKey(p.Owner), value) }); err == nil {
		err = s.db.Sync()
	}
	s.writes.RUnlock()
	s.changed.Add(1)
	if err != nil || s.opts.Links == nil {
		return explain(s.dir, err)
	}
	// A collection under way has read the pins before.
	l, err := s.mark(ctx, []Pin{p})
	for d := range l.here {
		s.holds.met(d[:])
	}
	return err
}

// Unpin gives up what the owners have pinned; one without a pin is no error. Nothing is deleted before [Store.Collect].
func (s *Store) Unpin(ctx context.Context, owners ...Owner) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	s.pins.Lock()
	defer s.pins.Unlock()
	s.writes.RLock()
	defer s.writes.RUnlock()
	batch := s.db.NewWriteBatch()
	defer batch.Cancel()
	for _, o := range owners {
		if err := batch.Delete(pinKey(o)); err != nil {
			return explain(s.dir, err)
		}
	}
	s.changed.Add(1)
	return explain(s.dir, batch.Flush())
}

// Pins lists the pins, the oldest first.
func (s *Store) Pins() ([]Pin, error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.leave()
	return s.readPins()
}

func (s *Store) readPins() (pins []Pin, err error) {
	err = s.db.View(func(t *badger.Txn) error {
		opts := badger.DefaultIteratorOptions
		opts.Prefix = pinPrefix
		it := t.NewIterator(opts)
		defer it.Close()
		for it.Rewind(); it.Valid(); it.Next() {
			if err := it.Item().Value(func(v []byte) error {
				p, err := decodePin(it.Item().Key(), v)
				pins = append(pins, p)
				return err
			}); err != nil {
				return err
			}
		}
		return nil
	})
	slices.SortFunc(pins, func(a, b Pin) int {
		return cmp.Or(cmp.Compare(a.Age, b.Age), strings.Compare(a.Owner.String(), b.Owner.String()))
	})
	if errors.Is(err, ErrPin) {
		return nil, err
	}
	return pins, explain(s.dir, err)
}

// ofBlock reports whether a key of the tree is that of a block.
func ofBlock(key []byte) bool {
	return len(key) == 2+sha256.Size && key[0] == mh.SHA2_256 && key[1] == sha256.Size
}
