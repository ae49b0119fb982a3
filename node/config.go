package node

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"time"

	"github.com/blockzero-net/bzd/consensus/beacon"
	"github.com/blockzero-net/bzd/consensus/chain"
	"github.com/blockzero-net/bzd/internal/protocol"
)

// Config is what a node needs to know. Everything it computes with comes from the genesis that it fetches by its CID.
type Config struct {
	Dir       string        // everything the node keeps: keys, blocks, checkpoints, journal
	Network   protocol.Link // the genesis document
	Roles     protocol.Role
	ID        protocol.ID        // on the chain
	Key       ed25519.PrivateKey // signs protocol records; the registry has its public half
	Group     string             // that a miner serves
	Listen    []string           // multiaddresses; none: the node only dials
	Bootstrap []string           // multiaddresses with /p2p/<peer id>
	DHT       bool               // find checkpoints at nodes that are no peers yet, and be found; see p2p/discovery
	Gateway   string             // address of the HTTP gateway, such as 127.0.0.1:0; empty: none

	Quota int // MiB that the block store may hold, 0: what the disk has; see blockstore.Options

	Threads int    // goroutines that measuring may use
	ISA     string // instruction set, empty for the fastest
	Seed    string // of the miner's order of reading the text

	// Behaviour lets a test network contain cheaters and failures. The zero value is honest.
	Behaviour Behaviour

	Now    func() time.Time
	Events func(Event) // called from several goroutines; must return quickly. May be nil
}

// Chain is what a node takes part on: a chain and the beacon that goes with it.
type Chain struct {
	Client      chain.Client
	BlockPeriod time.Duration
	Beacon      beacon.Source // of round signatures; they are verified
	Public      beacon.Public
	Clock       beacon.Clock // when rounds are published
}

// Validate reports every fault at once.
func (c Chain) Validate() error {
	var faults []error
	if c.Client == nil {
		faults = append(faults, errors.New("node: no chain; the node would not know who takes part"))
	}
	if c.Beacon == nil {
		faults = append(faults, errors.New("node: no beacon; nothing could be opened or drawn"))
	}
	if c.BlockPeriod <= 0 || c.Clock.Period <= 0 || c.BlockPeriod%c.Clock.Period != 0 {
		faults = append(faults, fmt.Errorf("node: block period %v is no multiple of the beacon's %v; a cycle's draw would depend on the time", c.BlockPeriod, c.Clock.Period))
	}
	return errors.Join(append(faults, c.Clock.Validate())...)
}

// Behaviour is what a node does wrong on purpose.
type Behaviour struct {
	Late     bool // commits after the deadline
	Corrupt  bool // commits to sealed bytes that do not open
	Withhold bool // commits without serving the blocks
	Worse    bool // submits the opposite of what it learned
	Silent   bool // never proposes
	// Byzantine is how a validator cheats in the agreement; empty: not at all.
	Byzantine string
	// What these validators say in the agreements of the cycles from ApartFrom to ApartTo does not arrive here.
	Apart              []protocol.ID
	ApartFrom, ApartTo int
}

// Ways to cheat in the agreement.
const (
	Equivocate     = "equivocate"      // says one thing to all and another to every second validator
	Selective      = "selective"       // proposes and votes to every second validator only
	WithholdCommit = "withhold-commit" // prepares, but never signs off
	Lie            = "lie"             // turns every score around
)

// Byzantines lists the ways.
var Byzantines = []string{Equivocate, Selective, WithholdCommit, Lie}

// Validate reports every fault at once.
func (c Config) Validate() error {
	var faults []error
	need := func(ok bool, format string, a ...any) {
		if !ok {
			faults = append(faults, fmt.Errorf("node: "+format, a...))
		}
	}
	need(c.Dir != "", "no directory; keys and blocks would be lost")
	need(c.Network.Defined(), "no network: give the CID of its genesis")
	need(c.Roles != 0, "no role; the node would do nothing")
	need(!c.Roles.Has(protocol.RoleMiner) || c.Group != "", "a miner serves a group; none is given")
	need(len(c.Key) == ed25519.PrivateKeySize || !c.Roles.Has(protocol.RoleMiner) && !c.Roles.Has(protocol.RoleValidator), "no key to sign with")
	need(c.Quota >= 0, "a quota of %d MiB; nothing could be stored", c.Quota)
	need(c.Now != nil, "no clock")
	return errors.Join(faults...)
}

// Event is something that happened in a node, for whoever shows it.
type Event struct {
	Kind  EventKind
	Cycle uint64
	Text  string

	Done, Total int                    // of Training, Evaluating, Fetching and Fetched; a Total of 0 is not known yet
	Certified   bool                   // of Decided and Advanced; of Carried: a null certificate says so
	Excluded    []string               // of Advanced: groups left out of the merge
	Decision    time.Duration          // of Decided: from the end of evaluation to the certificate
	Rounds      int                    // of Decided: that the agreement took, 0 without a certificate
	Weights     []protocol.MinerWeight // of Decided, instance W
	Rows        []protocol.GroupRows   // of Scored
	Next        protocol.Link          // of Advanced
	Alpha       protocol.Rational      // of Advanced
	Bytes       int64                  // of Committed; of Fetching and Fetched: what peers sent
	Miner       protocol.ID            // of Reason
	Agreement   *Agreement             // of Agreed
}

// Agreement is how one instance went at one validator until its first output. Times are milliseconds from the instance's
// Start, 0 for what did not happen; messages are counted by kind.
type Agreement struct {
	Instance  string            `json:"instance"` // W or M
	Outcome   string            `json:"outcome"`
	Prepared  int64             `json:"prepared_ms"`  // to this validator's first PREPARE
	Committed int64             `json:"committed_ms"` // to its first COMMIT-V
	Decided   int64             `json:"decided_ms"`   // to its certificate
	Sent      map[string]uint64 `json:"sent"`         // to all, repetitions included
	Received  map[string]uint64 `json:"received"`     // that were new
	Ignored   uint64            `json:"ignored"`
	Refused   uint64            `json:"refused"` // by their senders' fault
}

// EventKind says what happened.
type EventKind uint8

// The kinds.
const (
	Started    EventKind = iota + 1 // Text is the node's address
	Phase                           // Text is the phase that begins
	Training                        // Done of Total steps
	Evaluating                      // Done of Total sequences are measured, for scores or for the merge
	Fetching                        // Done of Total blocks of Text are here
	Fetched                         // all blocks of Text are here: Total, of which Done came from peers
	Committed                       // Bytes were sealed and committed to
	Reason                          // why Miner's work was not taken: Text
	Scored                          // Rows were measured
	Decided                         // W has an output
	Agreed                          // an instance has its first output: Agreement, and Text in words
	Accused                         // an equivocation was proven: Text says by whom and in which file the proof is
	Submitted                       // this validator's weights are on chain
	Advanced                        // the cycle ended with checkpoint Next
	Carried                         // a cycle that this node missed decided nothing, as far as it can find out: Next stays
	Trouble                         // Text says what went wrong; the node goes on
)
