package dev

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"slices"
	"syscall"
	"time"

	"github.com/blockzero-net/bzd/consensus/beacon"
	"github.com/blockzero-net/bzd/internal/protocol"
)

// Config is what a [Server] needs. The first start in a directory writes everything but Dir, Now and the limits down; a
// later start with other values fails with [ErrConfig].
type Config struct {
	// Dir keeps the chain; it is made if missing. One server per directory.
	Dir string
	// Network is the genesis document's CID: submissions and registrations of other networks are refused.
	Network protocol.Link
	// BeaconSeed gives the beacon's key (beacon.NewKey). It is not written to Dir. It must not be zero: everybody could
	// open every locked seed early.
	BeaconSeed [32]byte
	// Genesis is the time of block 0, to the millisecond; zero means the time of the first start.
	Genesis time.Time
	// BlockPeriod is the time between blocks, in whole milliseconds.
	BlockPeriod time.Duration
	// Beacon is when rounds are published, to the millisecond; a zero Genesis in it means the time of block 0.
	Beacon beacon.Clock
	// CycleBlocks: cycle t starts at block t·CycleBlocks and its weights are taken until the next starts.
	CycleBlocks uint32
	// Participants is the registry of block 0, sorted by id; on a later start nil means what it was.
	Participants []protocol.Participant
	// Now is the time.
	Now func() time.Time

	MaxStake   uint64        // most stake of one participant; 0 means 2⁴⁰
	MaxJournal int64         // bytes the chain may grow to; 0 means 1 GiB
	Timeout    time.Duration // for a client to send a request and to take the answer; 0 means 10 s
}

// ErrConfig: the configuration is not what the directory was made with, or is no configuration at all.
var ErrConfig = errors.New("dev chain: bad configuration")

// Validate reports every fault.
func (c Config) Validate() error {
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("%w: "+format, append([]any{ErrConfig}, args...)...))
	}
	if c.Dir == "" {
		bad("no directory; a restart would lose the chain")
	}
	if !c.Network.Defined() || c.Network.Cid().Prefix().Codec != protocol.DagCBOR {
		bad("network %q is not the CID of a genesis document", c.Network)
	}
	if c.BeaconSeed == [32]byte{} {
		bad("no beacon seed; everybody could open every locked seed early")
	}
	if c.BlockPeriod < time.Millisecond || c.BlockPeriod%time.Millisecond != 0 {
		bad("block period %v is not a whole number of milliseconds", c.BlockPeriod)
	}
	if c.Beacon.Period < time.Millisecond || c.Beacon.Period%time.Millisecond != 0 {
		bad("beacon period %v is not a whole number of milliseconds", c.Beacon.Period)
	}
	if c.CycleBlocks == 0 {
		bad("a cycle of no blocks; every cycle would start at once")
	}
	if c.Now == nil {
		bad("no clock function; no block would ever come")
	}
	if c.MaxJournal < 0 || c.Timeout < 0 {
		bad("at most %d bytes, timeout %v; neither may be negative", c.MaxJournal, c.Timeout)
	}
	if err := (protocol.Snapshot{Version: protocol.Version, Participants: c.Participants}).Validate(); err != nil {
		bad("the registry of block 0: %w", err)
	}
	return errors.Join(errs...)
}

// header is the first entry of the journal: what the chain is.
type header struct {
	Version       uint32                 `cbor:"version"`
	Network       protocol.Link          `cbor:"network"`
	Beacon        []byte                 `cbor:"beacon"`        // public key
	Genesis       uint64                 `cbor:"genesis"`       // of block 0, Unix milliseconds
	BlockMillis   uint64                 `cbor:"block"`         // period
	BeaconGenesis uint64                 `cbor:"beacongenesis"` // of round 1, Unix milliseconds
	BeaconMillis  uint64                 `cbor:"beaconperiod"`
	CycleBlocks   uint32                 `cbor:"cycle"`
	Participants  []protocol.Participant `cbor:"participants"` // of block 0
}

// Validate implements protocol.Record.
func (h header) Validate() error {
	if h.Version != protocol.Version || h.BlockMillis == 0 || h.BeaconMillis == 0 || h.CycleBlocks == 0 || !h.Network.Defined() {
		return fmt.Errorf("%w: version %d, block period %d ms, beacon period %d ms, %d blocks a cycle, network %q", ErrConfig, h.Version,
			h.BlockMillis, h.BeaconMillis, h.CycleBlocks, h.Network)
	}
	const lastYear = 1 << 45 // milliseconds, year 3084: sums of times do not overflow
	if h.Genesis >= lastYear || h.BeaconGenesis >= lastYear || h.BlockMillis >= lastYear || h.BeaconMillis >= lastYear {
		return fmt.Errorf("%w: a time past the year 3000", ErrConfig)
	}
	if _, err := beacon.ParsePublic(h.Beacon); err != nil {
		return err
	}
	return protocol.Snapshot{Version: protocol.Version, Participants: h.Participants}.Validate()
}

// header is what the first start writes down.
func (c Config) header(public beacon.Public) header {
	genesis := c.Genesis
	if genesis.IsZero() {
		genesis = c.Now()
	}
	beaconGenesis := c.Beacon.Genesis
	if beaconGenesis.IsZero() {
		beaconGenesis = genesis
	}
	return header{
		Version: protocol.Version, Network: c.Network, Beacon: public.Bytes(), CycleBlocks: c.CycleBlocks, Participants: c.Participants,
		Genesis: uint64(genesis.UnixMilli()), BlockMillis: uint64(c.BlockPeriod / time.Millisecond),
		BeaconGenesis: uint64(beaconGenesis.UnixMilli()), BeaconMillis: uint64(c.Beacon.Period / time.Millisecond),
	}
}

// matches names every difference between what the directory holds and what a later start asks for.
func (h header) matches(c Config, public beacon.Public) error {
	want := c.header(public)
	if c.Genesis.IsZero() {
		want.Genesis = h.Genesis
		if c.Beacon.Genesis.IsZero() {
			want.BeaconGenesis = h.BeaconGenesis
		}
	}
	if c.Participants == nil {
		want.Participants = h.Participants
	}
	var errs []error
	differ := func(what string, have, want any) {
		errs = append(errs, fmt.Errorf("%w: %s holds a chain with %s %v, not %v; use another directory or the old value", ErrConfig, c.Dir,
			what, have, want))
	}
	if h.Network != want.Network {
		differ("the network", h.Network, want.Network)
	}
	if !slices.Equal(h.Beacon, want.Beacon) {
		differ("the beacon key", fmt.Sprintf("%.8x…", h.Beacon), fmt.Sprintf("%.8x…", want.Beacon))
	}
	if h.Genesis != want.Genesis || h.BeaconGenesis != want.BeaconGenesis {
		differ("genesis times (Unix ms)", [2]uint64{h.Genesis, h.BeaconGenesis}, [2]uint64{want.Genesis, want.BeaconGenesis})
	}
	if h.BlockMillis != want.BlockMillis || h.BeaconMillis != want.BeaconMillis || h.CycleBlocks != want.CycleBlocks {
		differ("periods (ms per block, ms per round, blocks per cycle)", []uint64{h.BlockMillis, h.BeaconMillis, uint64(h.CycleBlocks)},
			[]uint64{want.BlockMillis, want.BeaconMillis, uint64(want.CycleBlocks)})
	}
	if !slices.Equal(h.Participants, want.Participants) {
		differ("other participants at block 0:", len(h.Participants), len(want.Participants))
	}
	return errors.Join(errs...)
}

// chain is the hash that names the chain.
func (h header) chain() (protocol.Hash, error) {
	b, err := protocol.Encode(h)
	if err != nil {
		return protocol.Hash{}, err
	}
	return sha256.Sum256(append([]byte("bzd/devchain/1\x00"), b...)), nil
}

func (h header) clock() beacon.Clock {
	return beacon.Clock{
		Genesis: time.UnixMilli(int64(h.BeaconGenesis)).UTC(),
		Period:  time.Duration(h.BeaconMillis) * time.Millisecond,
	}
}

// Listen opens a TCP port on loopback for [Server.Serve]; a port of 0 takes a free one.
func Listen(addr string) (net.Listener, error) {
	tcp, err := net.ResolveTCPAddr("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("%w: address %q: %w", ErrConfig, addr, err)
	}
	if !tcp.IP.IsLoopback() {
		return nil, fmt.Errorf("%w: address %q is not on loopback; a development chain trusts who can reach it, use 127.0.0.1", ErrConfig, addr)
	}
	l, err := net.ListenTCP("tcp", tcp)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("dev chain: port %d of %s is in use; stop the other process or choose another port", tcp.Port, tcp.IP)
	}
	return l, err
}
