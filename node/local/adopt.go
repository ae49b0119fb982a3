package local

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/blockzero-net/bzd/internal/protocol"
	"github.com/blockzero-net/bzd/training/backend"
	"github.com/blockzero-net/bzd/training/data"
	"github.com/blockzero-net/bzd/training/model"
)

// Groups are the experts of a model that each domain gets.
type Groups map[string][]model.ExpertRef

// Choice is what one domain gets in one layer by [Choose].
type Choice struct {
	Domain  string
	Layer   int
	Experts []int     // ascending
	Used    []float64 // share of the domain's routing that each has
	Others  []float64 // and of the other domains' routing, the canary's included, on average
}

// OpenModel loads a Hugging Face model of any family for computing. It has no groups.
func OpenModel(b backend.Backend, dir string) (*Phi, error) {
	f, err := openForeign(dir)
	if err != nil {
		return nil, err
	}
	defer f.c.Close()
	p := &Phi{Tokens: f.tokens, State: protocol.ProtocolState{Version: protocol.Version}}
	if p.documents, err = readDocuments(f.c); err != nil {
		return nil, err
	}
	if p.Model, err = whole(b)(f.config, f.w); err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	return p, nil
}

// Choose gives every domain but the canary per experts of each layer that the model has, disjoint: those whose share of
// the domain's routing is furthest above their share of the other text's. Domains choose in turn, one expert at a time, in
// the order of their names.
func Choose(base *Phi, sets []*data.Dataset, canary string, per, windows int) ([]Choice, error) {
	sets = sorted(sets)
	if most := base.Model.Experts / max(1, len(sets)-1); per < 1 || per > most {
		return nil, fmt.Errorf("%d experts per layer for each of %d domains: the model has %d in a layer, so 1 to %d",
			per, len(sets)-1, base.Model.Experts, most)
	}
	stats, err := measureAll(base, sets, windows)
	if err != nil {
		return nil, err
	}
	var out []Choice
	for l := range base.Model.Layers {
		share := make([][]float64, len(sets))
		for i := range sets {
			r := stats[i][l]
			share[i] = make([]float64, len(r.load))
			for e, n := range r.load {
				share[i][e] = float64(n) / float64(r.n*base.Model.TopK)
			}
		}
		others := func(own, e int) float64 {
			sum := 0.0
			for i := range sets {
				if i != own {
					sum += share[i][e]
				}
			}
			return sum / float64(len(sets)-1)
		}
		owner := map[int]int{}
		for range per {
			for i, d := range sets {
				if d.Name() == canary {
					continue
				}
				best := -1
				for e := range share[i] {
					if _, taken := owner[e]; !taken && (best < 0 || share[i][e]-others(i, e) > share[i][best]-others(i, best)) {
						best = e
					}
				}
				owner[best] = i
			}
		}
		for i, d := range sets {
			if d.Name() == canary {
				continue
			}
			c := Choice{Domain: d.Name(), Layer: l}
			for _, e := range slices.Sorted(maps.Keys(owner)) {
				if owner[e] == i {
					c.Experts, c.Used, c.Others = append(c.Experts, e), append(c.Used, share[i][e]), append(c.Others, others(i, e))
				}
			}
			out = append(out, c)
		}
	}
	return out, nil
}

// GroupsOf are the choices as groups.
func GroupsOf(choices []Choice) Groups {
	g := Groups{}
	for _, c := range choices {
		for _, e := range c.Experts {
			g[c.Domain] = append(g[c.Domain], model.ExpertRef{Layer: c.Layer, Index: e})
		}
	}
	return g
}

// Adopt founds a network on a Hugging Face model of any family in src: the groups get experts that it has, and the
// checkpoint Φ(0) is written to dir tensor by tensor. Hub weights are stored in bf16; one that is not exact there is
// refused unless round is set. Every dataset but the canary needs a group. After an error nothing is written.
func Adopt(src string, sets []*data.Dataset, dir string, groups Groups, o GenesisOptions, round bool) (protocol.Genesis, error) {
	fail := func(err error) (protocol.Genesis, error) { return protocol.Genesis{}, err }
	f, err := openForeign(src)
	if err != nil {
		return fail(err)
	}
	defer f.c.Close()
	if err := errors.Join(o.validate(f.config, f.tokens, sets), groups.validate(f.config, sets, o.Canary)); err != nil {
		return fail(fmt.Errorf("found a network: %w", err))
	}
	sets = sorted(sets)
	g, err := newGenesis(sets, o, func(domain string) (refs []protocol.ExpertRef) {
		for _, e := range groups[domain] {
			refs = append(refs, protocol.ExpertRef{Layer: uint32(e.Layer), Index: uint32(e.Index)})
		}
		slices.SortFunc(refs, func(a, b protocol.ExpertRef) int {
			return cmp.Or(cmp.Compare(a.Layer, b.Layer), cmp.Compare(a.Index, b.Index))
		})
		return refs
	})
	if err != nil {
		return fail(err)
	}
	if _, err := NewNetwork(g, sets); err != nil { // pools too small
		return fail(err)
	}
	if g.Checkpoint, err = f.write(dir, g.Groups, round); err != nil {
		return fail(err)
	}
	return g, nil
}

// validate reports every fault of the groups at once.
func (g Groups) validate(c model.Config, sets []*data.Dataset, canary string) error {
	var faults []error
	names := map[string]bool{}
	for _, d := range sets {
		names[d.Name()] = true
		if d.Name() != canary && len(g[d.Name()]) == 0 {
			faults = append(faults, fmt.Errorf("domain %q gets no experts; nobody could train it", d.Name()))
		}
	}
	owner := map[model.ExpertRef]string{}
	for _, name := range slices.Sorted(maps.Keys(g)) {
		if !names[name] {
			faults = append(faults, fmt.Errorf("group %q has no text, there is %s; give some with --data %s=DIR",
				name, strings.Join(slices.Sorted(maps.Keys(names)), ", "), name))
		}
		for _, e := range g[name] {
			if e.Layer < 0 || e.Layer >= c.Layers || e.Index < 0 || e.Index >= c.Experts {
				faults = append(faults, fmt.Errorf("group %q: expert %d of layer %d, the model has layers 0 to %d with experts 0 to %d",
					name, e.Index, e.Layer, c.Layers-1, c.Experts-1))
			}
			if other, taken := owner[e]; taken {
				faults = append(faults, fmt.Errorf("group %q: expert %d of layer %d is already that of group %q", name, e.Index, e.Layer, other))
			}
			owner[e] = name
		}
	}
	return errors.Join(faults...)
}
