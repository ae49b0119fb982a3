package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"

	"github.com/blockzero-net/bzd/training/cpu"
	"github.com/blockzero-net/bzd/training/data"
)

// common are the flags that many commands share.
type common struct {
	env     environment
	help    string
	set     *flag.FlagSet
	threads int
	isa     string
	on      string // what computes
	card    int
	limits  limits // of the card
	room    int64  // for weights in files, on the CPU; see cpu.Options.Mapped
	dir     string
	goroot  string
	data    pairs
	topK    int // density of a genesis that is set up, -1 for the default
}

// pairs collects repeated name=value flags.
type pairs [][2]string

func (p *pairs) String() string { return "" }

func (p *pairs) Set(s string) error {
	name, value, ok := strings.Cut(s, "=")
	if !ok || name == "" || value == "" {
		return errors.New("want NAME=DIR")
	}
	*p = append(*p, [2]string{name, value})
	return nil
}

// list collects a repeated flag.
type list []string

func (l *list) String() string     { return strings.Join(*l, ",") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

// newFlags starts a flag set whose --help prints text and the flags.
func newFlags(env environment, name, text string) *common {
	c := &common{env: env, help: text, topK: -1, set: flag.NewFlagSet(name, flag.ContinueOnError)}
	c.set.SetOutput(io.Discard) // run says what is wrong, in one line
	return c
}

func (c *common) compute() *common {
	c.set.IntVar(&c.threads, "threads", 0, "goroutines to compute with; 0 means all processors. Never changes a result")
	c.set.StringVar(&c.isa, "isa", "", "instruction set: avx512, avx2, neon or scalar; empty means the fastest. Never changes a result")
	return c
}

func (c *common) text() *common {
	c.set.StringVar(&c.goroot, "goroot", "", "Go installation whose sources are the built-in domains; empty means look for one")
	c.set.Var(&c.data, "data", "`NAME=DIR`: a domain of your own from the text files in DIR; repeatable")
	return c
}

func (c *common) network() *common {
	c.set.StringVar(&c.dir, "dir", "", "directory of the network; empty means $BZD_DIR, else bzd below the user's cache directory")
	return c.text().compute()
}

// parse reads the flags; rest says whether more arguments may follow.
func (c *common) parse(args []string, rest bool) error {
	if err := c.set.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(c.env.out, c.help)
			c.set.SetOutput(c.env.out)
			flags := 0
			c.set.VisitAll(func(*flag.Flag) { flags++ })
			if flags > 0 {
				fmt.Fprintln(c.env.out, "\nFlags:")
			}
			c.set.PrintDefaults()
			return err
		}
		return usageError("%v", err)
	}
	if !rest && c.set.NArg() > 0 {
		return usageError("unexpected argument %q", c.set.Arg(0))
	}
	for _, a := range c.set.Args() {
		if strings.HasPrefix(a, "-") {
			return usageError("flag %q after an argument: flags come first", a)
		}
	}
	if c.threads < 0 {
		return usageError("--threads %d: at least 1, or 0 for all processors", c.threads)
	}
	for i, p := range c.data {
		for _, q := range c.data[:i] {
			if p[0] == q[0] {
				return usageError("--data %s=DIR is given twice", p[0])
			}
		}
	}
	return nil
}

// require complains about flags left empty.
func (c *common) require(names ...string) error {
	for _, n := range names {
		if c.set.Lookup(n).Value.String() == "" {
			return usageError("--%s is missing", n)
		}
	}
	return nil
}

func (c *common) workers() int {
	if c.threads > 0 {
		return c.threads
	}
	return runtime.GOMAXPROCS(0)
}

// backend gives a backend whose single operations use threads goroutines.
func (c *common) backend(threads int) (*cpu.Backend, error) {
	return cpu.New(cpu.Options{Threads: threads, ISA: cpu.ISA(c.isa), Mapped: c.room})
}

// datasets builds the domains of that name, all built-in ones and the user's if wanted is nil. A built-in domain that
// cannot be built is said on standard error.
func (c *common) datasets(wanted []string) ([]*data.Dataset, error) {
	own := map[string]string{}
	for _, p := range c.data {
		own[p[0]] = p[1]
	}
	names := wanted
	if names == nil {
		names = data.BuiltinNames()
		for _, p := range c.data {
			if !slices.Contains(names, p[0]) {
				names = append(names, p[0])
			}
		}
	}
	root, looked := c.goroot, []string(nil)
	if root == "" {
		root, looked = c.env.goroot()
	}
	var sets []*data.Dataset
	for _, n := range names {
		if dir, ok := own[n]; ok {
			d, err := data.FromDir(n, dir, data.Options{})
			if err != nil {
				return nil, err
			}
			sets = append(sets, d)
			continue
		}
		if !slices.Contains(data.BuiltinNames(), n) {
			return nil, fmt.Errorf("no text for domain %q: give it with --data %s=DIR", n, n)
		}
		d, err := data.BuiltinOne(root, n)
		var missing data.Missing
		switch {
		case errors.As(err, &missing):
			fmt.Fprintf(c.env.err, "bzd: going on without domain %s: %s\n", n, missing.Reason)
			if root == "" && len(looked) > 0 {
				fmt.Fprintf(c.env.err, "bzd: looked for a Go installation in %s; set GOROOT or --goroot\n", strings.Join(looked, ", "))
				looked = nil
			}
		case err != nil:
			return nil, err
		default:
			sets = append(sets, d)
		}
	}
	return sets, nil
}
