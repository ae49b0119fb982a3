package protocol

// Version is the protocol version written into every document of this release.
const Version = 1

const (
	maxDocument = 1 << 20 // one block
	maxHeader   = 16 << 20
)

// Genesis is the document whose CID names a network.
type Genesis struct {
	Version    uint32   `cbor:"version"`
	Name       string   `cbor:"name"`
	Checkpoint Link     `cbor:"checkpoint"` // dag-pb: the UnixFS directory of Φ(0)
	Groups     []Group  `cbor:"groups"`     // sorted by name
	Domains    []Domain `cbor:"domains"`    // sorted by name; the canary is one of them
	Canary     string   `cbor:"canary"`     // the domain that belongs to no group
	Params     Params   `cbor:"params"`
}

// DecodeGenesis decodes and checks a genesis document.
func DecodeGenesis(b []byte) (Genesis, error) { return decode[Genesis]("genesis", maxDocument, b) }

// Domain returns the domain of that name.
func (g Genesis) Domain(name string) (Domain, bool) { return findDomain(g.Domains, name) }

// Validate implements [Record].
func (g Genesis) Validate() error { return validate("genesis", g) }

func (g Genesis) faults(f faults) {
	f.version(g.Version)
	f.name("name", g.Name)
	f.link("checkpoint", g.Checkpoint, DagPB)
	f.groups("groups", g.Groups)
	if len(g.Domains) == 0 || len(g.Domains) > maxDomains {
		f.add("domains", "%d domains, want 1 to %d", len(g.Domains), maxDomains)
	}
	for i, d := range g.Domains {
		if f.full() {
			return
		}
		f.under(index("domains", i), d)
		if i > 0 && g.Domains[i-1].Name >= d.Name {
			f.add(index("domains", i)+".name", "%q is not above %q before it; sort domains by name, each once", d.Name, g.Domains[i-1].Name)
		}
	}
	for i, group := range g.Groups {
		if f.full() {
			return
		}
		if _, ok := g.Domain(group.Domain); !ok {
			f.add(index("groups", i)+".domain", "no domain is called %.40q; the group's miners would have nothing to learn from", group.Domain)
		}
		if group.Domain == g.Canary {
			f.add(index("groups", i)+".domain", "%.40q is the canary; a group that trains on it would hide what the others forget", group.Domain)
		}
	}
	if d, ok := g.Domain(g.Canary); !ok {
		f.add("canary", "no domain is called %.40q; forgetting could not be measured", g.Canary)
	} else if d.ToleranceNano != g.Params.CanaryToleranceNano {
		f.add("canary", "its domain tolerates %d nano-nats and params.forget %d; they are one number", d.ToleranceNano, g.Params.CanaryToleranceNano)
	}
	f.under("params", g.Params)
}

// ProtocolState is protocol.cbor inside a checkpoint: what a newcomer needs to know beside the weights.
type ProtocolState struct {
	Version  uint32  `cbor:"version"`
	Previous *Link   `cbor:"previous"` // dag-pb: the checkpoint this one was merged from; nil (CBOR null) at genesis
	Groups   []Group `cbor:"groups"`   // sorted by name; none in a model from elsewhere that nobody trains yet
}

// DecodeProtocolState decodes and checks a protocol.cbor.
func DecodeProtocolState(b []byte) (ProtocolState, error) {
	return decode[ProtocolState]("protocol state", maxDocument, b)
}

// Validate implements [Record].
func (s ProtocolState) Validate() error { return validate("state", s) }

func (s ProtocolState) faults(f faults) {
	f.version(s.Version)
	if s.Previous != nil {
		f.link("previous", *s.Previous, DagPB)
	}
	if len(s.Groups) > 0 {
		f.groups("groups", s.Groups)
	}
}

func (f faults) version(v uint32) {
	if v != Version {
		f.add("version", "%d, but this release speaks version %d", v, Version)
	}
}
