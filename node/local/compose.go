package local

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/blockzero-net/bzd/content/checkpoint"
	"github.com/blockzero-net/bzd/internal/protocol"
	"github.com/blockzero-net/bzd/training/backend"
	"github.com/blockzero-net/bzd/training/data"
	"github.com/blockzero-net/bzd/training/model"
	"github.com/blockzero-net/bzd/training/tokenizer"
)

// Files of a checkpoint.
const (
	stateFile  = "protocol.cbor"
	routerFile = "router.safetensors"
	hubFile    = "hub" // of the shards' names
)

func expertsFile(group string) string { return "experts-" + group + ".safetensors" }

// GenesisOptions say what network to found.
type GenesisOptions struct {
	Name   string
	Canary string // the domain that belongs to no group
	Params protocol.Params
	Load   *protocol.Load // what is expected of the network, but for its groups; nil: what a development chain is asked
	Plan   PlanOptions
}

// DefaultGenesis is the demo's.
func DefaultGenesis() GenesisOptions {
	return GenesisOptions{Name: "demo", Canary: data.Prose, Params: protocol.DemoParams(), Plan: DefaultPlan()}
}

// slowestRound is the longest beacon round of a development chain, in milliseconds: its rounds become as long as the
// machine needs.
const slowestRound = 20_000

// feasible refuses parameters under which no cycle could end in time, with a load of so many groups.
func (o GenesisOptions) feasible(groups int) error {
	load := protocol.DemoLoad()
	load.PeriodMillis, load.BlockMillis = slowestRound, slowestRound
	if o.Load != nil {
		load = *o.Load
	}
	load.Groups, load.Miners = uint32(groups), max(load.Miners, uint32(groups))
	fit, err := protocol.Feasible(o.Params, load)
	if err != nil {
		return err
	}
	var faults []error
	for _, f := range fit.Phases {
		if !f.Fits {
			faults = append(faults, fmt.Errorf("%s needs %d ms and has %d; raise %s from %d to %d", f.Phase, f.Need, f.Have, f.Parameter, f.From, f.To))
		}
	}
	return errors.Join(faults...)
}

// domainTolerance is how far a merge may raise a domain's mean loss before its lower bound vetoes, in nano-nats.
const domainTolerance = 10_000_000

// validate reports every fault of the options that would show only after long work, or not at all.
func (o GenesisOptions) validate(base model.Config, t Tokenizer, sets []*data.Dataset) error {
	faults := []error{o.Params.Validate()}
	if seq := int(o.Params.SequenceLength) / t.bytes(); seq > base.Positions {
		faults = append(faults, fmt.Errorf("sequences of %d tokens, the base has %d positions; nothing could be trained or measured", seq, base.Positions))
	}
	seen := map[string]bool{}
	for _, d := range sets {
		if seen[d.Name()] {
			faults = append(faults, fmt.Errorf("domain %q is given twice", d.Name()))
		}
		seen[d.Name()] = true
	}
	switch {
	case !seen[o.Canary]:
		faults = append(faults, fmt.Errorf("no text of the canary %q; forgetting could not be measured", o.Canary))
	case len(seen) == 1:
		faults = append(faults, fmt.Errorf("no domain but the canary %q; there would be no group to train", o.Canary))
	}
	if len(seen) > 1 && o.Params.Validate() == nil {
		faults = append(faults, o.feasible(len(seen)-1))
	}
	return errors.Join(faults...)
}

// Compose founds a network: it admits every dataset but the canary to the base as a group of its own and writes the
// checkpoint Φ(0) to dir. The datasets' order does not matter. After an error nothing is written.
func Compose(b backend.Backend, base *Phi, sets []*data.Dataset, dir string, o GenesisOptions) (protocol.Genesis, []Admission, error) {
	fail := func(err error) (protocol.Genesis, []Admission, error) { return protocol.Genesis{}, nil, err }
	if err := errors.Join(o.Plan.validate(base.Model.Experts), o.validate(base.Model.Config, base.Tokens, sets)); err != nil {
		return fail(fmt.Errorf("found a network: %w", err))
	}
	sets = sorted(sets)
	admitted, err := Plan(base, sets, o.Canary, o.Plan)
	if err != nil {
		return fail(err)
	}
	g, err := newGenesis(sets, o, func(domain string) (refs []protocol.ExpertRef) {
		for _, a := range admitted {
			for _, e := range a.To {
				if a.Domain == domain {
					refs = append(refs, protocol.ExpertRef{Layer: uint32(a.Layer), Index: uint32(e)})
				}
			}
		}
		return refs
	})
	if err != nil {
		return fail(err)
	}
	m, err := admit(b, base.Model, admitted, len(g.Groups)*o.Plan.Copies)
	if err != nil {
		return fail(err)
	}
	next := &Phi{Model: m, Tokens: base.Tokens, State: protocol.ProtocolState{Version: protocol.Version, Groups: g.Groups}}
	if base.documents != nil {
		next.documents = maps.Clone(base.documents)
		if next.documents[checkpoint.ConfigName], err = m.Amend(base.documents[checkpoint.ConfigName]); err != nil {
			return fail(err)
		}
	}
	root, _, err := writeCheckpoint(dir, contentsOf(next), reuse{}, nil)
	if err != nil {
		return fail(err)
	}
	g.Checkpoint, err = protocol.NewLink(root)
	return g, admitted, err
}

// sorted are the datasets by name.
func sorted(sets []*data.Dataset) []*data.Dataset {
	return slices.SortedFunc(slices.Values(sets), func(a, b *data.Dataset) int { return strings.Compare(a.Name(), b.Name()) })
}

// newGenesis is the document of a network in which every dataset but the canary, of those sorted by name, has a group with
// those experts. Its checkpoint is missing until it is written: the rest is checked before.
func newGenesis(sets []*data.Dataset, o GenesisOptions, experts func(domain string) []protocol.ExpertRef) (protocol.Genesis, error) {
	g := protocol.Genesis{Version: protocol.Version, Name: o.Name, Canary: o.Canary, Params: o.Params}
	count := uint32(len(sets) - 1)
	for _, d := range sets {
		link, err := protocol.NewLink(d.CID())
		if err != nil {
			return protocol.Genesis{}, err
		}
		dom := protocol.Domain{Name: d.Name(), Dataset: link, HeldOutPermille: uint32(d.HeldOutPermille()), ToleranceNano: domainTolerance}
		if d.Name() == o.Canary {
			dom.ToleranceNano = o.Params.CanaryToleranceNano
		}
		g.Domains = append(g.Domains, dom)
		if d.Name() == o.Canary {
			continue
		}
		grp := protocol.Group{Name: d.Name(), Domain: d.Name(), Share: protocol.ShareTotal / count, Experts: experts(d.Name())}
		if len(g.Groups) == 0 {
			grp.Share += protocol.ShareTotal % count
		}
		g.Groups = append(g.Groups, grp)
	}
	g.Checkpoint = protocol.LinkTo(protocol.DagPB, nil)
	return g, g.Validate()
}

// admit returns the base with the admitted experts appended.
func admit(b backend.Backend, base *model.Model, admitted []Admission, more int) (*model.Model, error) {
	c := base.Config
	c.Experts += more
	from := map[string]string{} // tensor of the new model → tensor of the base it copies
	rows := map[string]map[int][]float32{}
	for _, a := range admitted {
		name := model.RouterName(a.Layer)
		if rows[name] == nil {
			rows[name] = map[int][]float32{}
		}
		for i, to := range a.To {
			rows[name][to] = a.Rows[i]
			for _, p := range []string{"gate", "up", "down"} {
				from[model.ExpertName(a.Layer, to, p)] = model.ExpertName(a.Layer, a.From[i], p)
			}
		}
	}
	return model.New(b, c, func(s model.Spec, dst []float32) error {
		name := s.Name
		if f, ok := from[name]; ok {
			name = f
		}
		copy(dst, base.Read(name)) // a router has fewer rows in the base
		for r, v := range rows[s.Name] {
			copy(dst[r*c.Dim:], v)
		}
		return nil
	})
}

// reuse is what a checkpoint takes from the one that it follows: the files in which no tensor changed.
type reuse struct {
	dir     string // where that one lies
	parts   checkpoint.Parts
	changed map[string][]float32 // by tensor
}

// file is a file of those tensors as it stands, if none of them changed.
func (r reuse) file(name string, tensors []model.Spec) (checkpoint.File, bool) {
	part, ok := r.parts[name]
	return checkpoint.File{Name: name, From: filepath.Join(r.dir, name), Known: part}, ok && !r.touches(tensors)
}

func (r reuse) touches(tensors []model.Spec) bool {
	return slices.ContainsFunc(tensors, func(s model.Spec) bool { _, ok := r.changed[s.Name]; return ok })
}

// hub are the hub's files as they stand, none if there is nothing to take them from.
func (r reuse) hub(tensors []model.Spec) (files []checkpoint.File) {
	for name, part := range r.parts {
		if strings.HasPrefix(name, hubFile+"-") && !r.touches(tensors) {
			files = append(files, checkpoint.File{Name: name, From: filepath.Join(r.dir, name), Known: part})
		}
	}
	return files
}

// contents is what a checkpoint is written of.
type contents struct {
	config    model.Config
	documents map[string][]byte // config.json included; nil: this build's own
	state     protocol.ProtocolState
	load      func(model.Spec) ([]float32, error) // gives a tensor's values
}

// contentsOf is a model that computes.
func contentsOf(p *Phi) contents {
	return contents{p.Model.Config, p.documents, p.State, func(s model.Spec) ([]float32, error) { return p.Model.Read(s.Name), nil }}
}

// writeCheckpoint writes a model to dir, its tensors named as in its family: routers and the groups' experts in F32,
// everything else, the hub, in BF16. What has not changed since r keeps its file. emit takes the blocks of the others; it
// may be nil.
func writeCheckpoint(dir string, w contents, r reuse, emit func(blocks.Block) error) (cid.Cid, checkpoint.Parts, error) {
	encoded, err := protocol.Encode(w.state)
	if err != nil {
		return cid.Undef, nil, err
	}
	c := checkpoint.Contents{Documents: map[string][]byte{stateFile: encoded}}
	if w.documents == nil {
		c.Documents[checkpoint.ConfigName] = w.config.JSON()
		maps.Copy(c.Documents, tokenizer.Files())
	}
	maps.Copy(c.Documents, w.documents)
	groupOf := map[string]string{}
	for _, g := range w.state.Groups {
		for _, e := range g.Experts {
			for _, p := range []string{"gate", "up", "down"} {
				groupOf[model.ExpertName(int(e.Layer), int(e.Index), p)] = g.Name
			}
		}
	}
	routers := map[string]bool{}
	for l := range w.config.Layers {
		routers[model.RouterName(l)] = true
	}
	var hub, router []model.Spec
	groups, names := map[string][]model.Spec{}, map[string]string{}
	for _, stored := range w.config.Stored(false) {
		s := stored.Parts[0]
		names[s.Name] = stored.Name
		switch g, own := groupOf[s.Name]; {
		case own:
			groups[g] = append(groups[g], s)
		case routers[s.Name]:
			router = append(router, s)
		default:
			hub = append(hub, s)
		}
	}
	tensors := func(specs []model.Spec, t checkpoint.DType) (list []checkpoint.Tensor) {
		for _, s := range specs {
			x := tensorOf(s, t, nil)
			x.Name, x.Load = names[s.Name], func() ([]float32, error) { return w.load(s) }
			list = append(list, x)
		}
		return list
	}
	if c.Files = r.hub(hub); c.Files == nil {
		c.Files = checkpoint.Shards(hubFile, 0, tensors(hub, checkpoint.BF16))
	}
	file := func(name string, specs []model.Spec) {
		f, ok := r.file(name, specs)
		if !ok {
			f = checkpoint.File{Name: name, Tensors: tensors(specs, checkpoint.F32)}
		}
		c.Files = append(c.Files, f)
	}
	file(routerFile, router)
	for _, g := range w.state.Groups {
		file(expertsFile(g.Name), groups[g.Name])
	}
	root, parts, err := checkpoint.WriteBlocks(dir, c, emit)
	if err != nil {
		return cid.Undef, nil, fmt.Errorf("write checkpoint: %w", err)
	}
	return root, parts, nil
}
