package protocol

import (
	"cmp"
	"slices"
	"strings"
)

// Bounds of names and of the model's shape.
const (
	maxName    = 32
	maxGroups  = 1024
	maxDomains = 1024
	maxExperts = 65536 // per group
	maxLayer   = 1<<16 - 1
	maxExpert  = 1<<16 - 1

	// ShareTotal is what the pay shares of all groups sum to: parts per million.
	ShareTotal = 1_000_000
)

// ExpertRef names one expert of the model.
type ExpertRef struct {
	Layer uint32 `cbor:"layer"`
	Index uint32 `cbor:"index"`
}

// Compare orders by layer, then index.
func (e ExpertRef) Compare(other ExpertRef) int {
	return cmp.Or(cmp.Compare(e.Layer, other.Layer), cmp.Compare(e.Index, other.Index))
}

// Group is an expert group: the experts, with their router rows, that serve one domain.
type Group struct {
	Name    string      `cbor:"name"`
	Domain  string      `cbor:"domain"`
	Experts []ExpertRef `cbor:"experts"` // sorted, no duplicates
	Share   uint32      `cbor:"share"`   // of the miners' pay, parts per million
}

// Validate implements [Record].
func (g Group) Validate() error { return validate("group", g) }

func (g Group) faults(f faults) {
	f.name("name", g.Name)
	f.name("domain", g.Domain)
	if g.Share == 0 || g.Share > ShareTotal {
		f.add("share", "%d is not between 1 and %d parts per million; a group without pay has no miners", g.Share, ShareTotal)
	}
	if len(g.Experts) == 0 || len(g.Experts) > maxExperts {
		f.add("experts", "%d experts, want 1 to %d", len(g.Experts), maxExperts)
	}
	for i, e := range g.Experts {
		if f.full() {
			return
		}
		if e.Layer > maxLayer || e.Index > maxExpert {
			f.add(index("experts", i), "layer %d, expert %d is past the largest allowed, %d and %d", e.Layer, e.Index, maxLayer, maxExpert)
		}
		if i > 0 && g.Experts[i-1].Compare(e) >= 0 {
			f.add(index("experts", i), "layer %d, expert %d is not above the one before it; sort them by layer and index, each once", e.Layer, e.Index)
		}
	}
}

// Domain is a content-addressed dataset, and what its loss may suffer.
type Domain struct {
	Name            string `cbor:"name"`
	Dataset         Link   `cbor:"dataset"`   // dag-cbor
	HeldOutPermille uint32 `cbor:"heldout"`   // of the documents, kept from training
	ToleranceNano   int64  `cbor:"tolerance"` // nano-nats by which a merge may raise this domain's mean loss
}

// Validate implements [Record].
func (d Domain) Validate() error { return validate("domain", d) }

func (d Domain) faults(f faults) {
	f.name("name", d.Name)
	f.link("dataset", d.Dataset, DagCBOR)
	if d.HeldOutPermille == 0 || d.HeldOutPermille >= 1000 {
		f.add("heldout", "%d is not between 1 and 999 permille; training and measuring both need documents", d.HeldOutPermille)
	}
	f.tolerance("tolerance", d.ToleranceNano)
}

// maxTolerance is one nat: more would veto nothing.
const maxTolerance = 1_000_000_000

func (f faults) tolerance(field string, nano int64) {
	if nano < 0 || nano > maxTolerance {
		f.add(field, "%d nano-nats is not between 0 and %d; below zero every merge is vetoed, above one nat none is", nano, maxTolerance)
	}
}

// name adds a fault unless s is 1 to 32 characters of a-z, 0-9 and '-'.
func (f faults) name(field, s string) {
	if s == "" || len(s) > maxName || strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		f.add(field, "%.40q is not 1 to %d characters of a-z, 0-9 and '-'", s, maxName)
	}
}

// groups adds the faults of a model's list of groups: sorted by name, shares that sum to all, no expert twice.
func (f faults) groups(field string, groups []Group) {
	if len(groups) == 0 || len(groups) > maxGroups {
		f.add(field, "%d groups, want 1 to %d", len(groups), maxGroups)
	}
	var shares uint64
	owner := make(map[ExpertRef]string)
	for i, g := range groups {
		if f.full() {
			return
		}
		f.under(index(field, i), g)
		if i > 0 && groups[i-1].Name >= g.Name {
			f.add(index(field, i)+".name", "%q is not above %q before it; sort groups by name, each once", g.Name, groups[i-1].Name)
		}
		shares += uint64(g.Share)
		for _, e := range g.Experts {
			if other, taken := owner[e]; taken && other != g.Name {
				f.add(index(field, i)+".experts", "layer %d, expert %d is already in group %q; two groups would overwrite each other's steps", e.Layer, e.Index, other)
				break
			}
			owner[e] = g.Name
		}
	}
	if shares != ShareTotal {
		f.add(field, "shares sum to %d parts per million, not %d; pay would not add up", shares, ShareTotal)
	}
}

// findDomain returns the domain of that name.
func findDomain(domains []Domain, name string) (Domain, bool) {
	i := slices.IndexFunc(domains, func(d Domain) bool { return d.Name == name })
	if i < 0 {
		return Domain{}, false
	}
	return domains[i], true
}
