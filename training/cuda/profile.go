package cuda

import (
	"cmp"
	"slices"
	"sync"
)

// Profile is a Driver that times every kernel on its stream. That costs two events a launch and hides nothing that a
// kernel waits for, so sums are of kernels alone.
type Profile struct {
	Driver
	mu    sync.Mutex
	names map[Function]string
	spare []Event
	open  []timed
	total map[string]*KernelTime
}

type timed struct {
	name     string
	from, to Event
}

// KernelTime is what a kernel has taken in all.
type KernelTime struct {
	Name     string
	Launches int
	Seconds  float64
}

// NewProfile wraps a driver.
func NewProfile(d Driver) *Profile {
	return &Profile{Driver: d, names: map[Function]string{}, total: map[string]*KernelTime{}}
}

// Load remembers names.
func (p *Profile) Load(ptx []byte, names []string) (map[string]Function, error) {
	all, err := p.Driver.Load(ptx, names)
	p.mu.Lock()
	defer p.mu.Unlock()
	for n, f := range all {
		p.names[f] = n
	}
	return all, err
}

// Launch puts an event before and after the kernel.
func (p *Profile) Launch(f Function, grid, block [3]int, shared int, s Stream, args ...any) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	t := timed{name: p.names[f]}
	for _, e := range []*Event{&t.from, &t.to} {
		var err error
		if n := len(p.spare); n > 0 {
			*e, p.spare = p.spare[n-1], p.spare[:n-1]
		} else if *e, err = p.NewEvent(); err != nil {
			return err
		}
	}
	if err := p.Record(t.from, s); err != nil {
		return err
	}
	if err := p.Driver.Launch(f, grid, block, shared, s, args...); err != nil {
		return err
	}
	p.open = append(p.open, t)
	return p.Record(t.to, s)
}

// Report sums up the kernels since the last report, the longest first. It waits for them.
func (p *Profile) Report() ([]KernelTime, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, t := range p.open {
		ms, err := p.Elapsed(t.from, t.to)
		if err != nil {
			return nil, err
		}
		k := p.total[t.name]
		if k == nil {
			k = &KernelTime{Name: t.name}
			p.total[t.name] = k
		}
		k.Launches, k.Seconds = k.Launches+1, k.Seconds+ms/1e3
		p.spare = append(p.spare, t.from, t.to)
	}
	var all []KernelTime
	for _, k := range p.total {
		all = append(all, *k)
	}
	p.open, p.total = nil, map[string]*KernelTime{}
	slices.SortFunc(all, func(a, b KernelTime) int {
		return cmp.Or(cmp.Compare(b.Seconds, a.Seconds), cmp.Compare(a.Name, b.Name))
	})
	return all, nil
}
