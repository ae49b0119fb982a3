package archtest

import (
	"fmt"
	"go/ast"
	"go/token"
	"path"
	"slices"
	"strings"
)

// Rule is one rule of the architecture.
type Rule struct {
	Name   string
	Reason string // why it exists
	Remedy string // what to do instead
	check  func(t *Tree, report reporter)
}

// Violation is one place where a rule is broken.
type Violation struct {
	Rule  Rule
	Where string // file:line, or a directory
	What  string
}

func (v Violation) String() string {
	return fmt.Sprintf("%s: %s\n\trule %s: %s\n\tinstead: %s", v.Where, v.What, v.Rule.Name, v.Rule.Reason, v.Rule.Remedy)
}

type reporter func(where, format string, args ...any)

// Check applies every rule and returns what it found, in the order of the rules.
func Check(t *Tree) []Violation {
	var found []Violation
	for _, r := range Rules() {
		r.check(t, func(where, format string, args ...any) {
			found = append(found, Violation{r, where, fmt.Sprintf(format, args...)})
		})
	}
	return found
}

// Rules returns every rule.
func Rules() []Rule {
	return []Rule{
		{
			Name:   "place",
			Reason: "a package outside the design has no import rules and no reader who would look for it there",
			Remedy: "move it below one of the domains or composition roots, or add its place to the design and to layout.go",
			check:  checkPlace,
		},
		{
			Name:   "imports",
			Reason: "domains that do not know each other can be understood, tested and replaced one at a time",
			Remedy: "declare the 1 to 3 methods you need as an interface where you need them, and let a composition root supply the other side",
			check:  checkImports,
		},
		{
			Name:   "leaf",
			Reason: "internal/protocol is imported by everyone, so whatever it imports everyone gets",
			Remedy: "keep internal/protocol to records, their encoding and exact arithmetic; put the rest in the package that needs it",
			check:  checkLeaf,
		},
		{
			Name:   "pure",
			Reason: "every validator must compute the same result from the same certified inputs, and a simulation must be able to replay it",
			Remedy: "take times, seeds and bytes as arguments and return what should happen; let a runner outside do it",
			check:  checkPure,
		},
		{
			Name:   "integers",
			Reason: "floating point differs between machines, compilers and orders of summation; two validators would certify different results",
			Remedy: "compute in integers, with math/bits or math/big where 64 bits are too few",
			check:  checkIntegers,
		},
		{
			Name:   "clock",
			Reason: "code that reads the clock or sleeps can be tested only by waiting, and simulated not at all",
			Remedy: "take the time, or a function or interface that gives it, from the composition root",
			check:  checkClock,
		},
		{
			Name:   "test-sleep",
			Reason: "a test that sleeps is slow where the machine is fast and fails where it is slow",
			Remedy: "use testing/synctest, or wait for the event itself",
			check:  checkTestSleep,
		},
		{
			Name:   "random",
			Reason: "global randomness cannot be seeded, so a run that failed cannot be repeated",
			Remedy: "take a seed or a *rand.Rand, made with rand.New, from the composition root",
			check:  checkRandom,
		},
		{
			Name:   "metrics",
			Reason: "the default prometheus registry is one per process, and a process may hold a whole network of nodes",
			Remedy: "make a prometheus.Registry in the composition root and hand it down; promauto.With and promhttp.HandlerFor take one",
			check:  checkMetrics,
		},
		{
			Name:   "doc",
			Reason: "a newcomer reads doc.go first, and godoc shows one package comment",
			Remedy: "write doc.go with the one package comment: what the package is for, its main types, what it must not import",
			check:  checkDoc,
		},
		{
			Name:   "state",
			Reason: "a process may hold a whole network; what a package keeps in variables all its nodes would share, and nodes share nothing but sockets",
			Remedy: "keep it in a value that the composition root makes and hands down; a package variable may be an error, a table, a pattern, an embedded file or sync.OnceValue of one",
			check:  checkState,
		},
		{
			Name:   "handed",
			Reason: "a node that is handed an object that another has too could talk to it without a socket, and would not work on a machine of its own",
			Remedy: "hand it addresses, directories and keys, and let it open what it needs itself",
			check:  checkHanded,
		},
		{
			Name:   "init",
			Reason: "an init function runs in every program that links the package, in an order nobody sees",
			Remedy: "call a constructor from the composition root, or give a variable its value; CPU feature detection may stay in cpufeatures*.go",
			check:  checkInit,
		},
		{
			Name:   "length",
			Reason: "a file that does not fit in the head hides a second idea",
			Remedy: "find the second idea and give it a file of its own",
			check:  checkLength,
		},
		{
			Name:   "names",
			Reason: "a package or file for everything is a place where nothing is found",
			Remedy: "name it for what it does, or move its parts to where they are used",
			check:  checkNames,
		},
		{
			Name:   "cgo",
			Reason: "the node builds with the Go toolchain alone; only the CUDA backend needs a C compiler",
			Remedy: "put the file behind //go:build cuda, or do without C",
			check:  checkCgo,
		},
	}
}

// maxLines is where a file is surely too long; 600 is where to look.
const maxLines = 700

func (t *Tree) at(pos token.Pos) string {
	p := t.fset.Position(pos)
	return fmt.Sprintf("%s:%d", p.Filename, p.Line)
}

func checkPlace(t *Tree, report reporter) {
	for _, dir := range t.packages() {
		if !hasPlace(dir) {
			report(dir, "the design has no place for a package here")
		}
	}
}

func checkImports(t *Tree, report reporter) {
	for _, f := range t.code() {
		if isRoot(f.dir) || f.dir == leaf {
			continue
		}
		for _, spec := range f.syntax.Imports {
			to, ok := t.inModule(importPath(spec))
			if !ok || to == leaf {
				continue
			}
			switch from := domainOf(f.dir); {
			case within(to, "node"):
				report(t.at(spec.Pos()), "%s imports %s; only composition roots may", f.dir, to)
			case isRoot(to):
				report(t.at(spec.Pos()), "%s imports the composition root %s", f.dir, to)
			case from == "" || from != domainOf(to):
				report(t.at(spec.Pos()), "%s imports %s, which is not its own domain and not %s", f.dir, to, leaf)
			}
		}
	}
}

func checkLeaf(t *Tree, report reporter) {
	for _, f := range t.code() {
		if f.dir != leaf {
			continue
		}
		for _, spec := range f.syntax.Imports {
			if p := importPath(spec); !isStandard(p) && !slices.Contains(leafImports, p) {
				report(t.at(spec.Pos()), "%s imports %s", f.dir, p)
			}
		}
	}
}

// impure are the standard packages, with all below them, through which a pure package would touch the world.
var impure = []string{
	"os", "net", "time", "math/rand", "crypto/rand", "sync", "syscall", "log", "context", "io/ioutil", "runtime", "unsafe", "plugin", "testing",
}

func checkPure(t *Tree, report reporter) {
	for _, f := range t.code() {
		if !slices.Contains(pure, f.dir) {
			continue
		}
		for _, spec := range f.syntax.Imports {
			p := importPath(spec)
			to, own := t.inModule(p)
			switch {
			case slices.ContainsFunc(impure, func(bad string) bool { return within(p, bad) }):
				report(t.at(spec.Pos()), "the pure package %s imports %s", f.dir, p)
			case f.dir != leaf && own && to != leaf, f.dir != leaf && !own && !isStandard(p):
				report(t.at(spec.Pos()), "the pure package %s imports %s; the standard library and %s are all it may", f.dir, p, leaf)
			}
		}
		ast.Inspect(f.syntax, func(n ast.Node) bool {
			switch n.(type) {
			case *ast.GoStmt:
				report(t.at(n.Pos()), "the pure package %s starts a goroutine", f.dir)
			case *ast.ChanType:
				report(t.at(n.Pos()), "the pure package %s has a channel", f.dir)
			}
			return true
		})
	}
}

func checkIntegers(t *Tree, report reporter) {
	for _, f := range t.code() {
		exempt, ok := integral[f.dir]
		if !ok || path.Base(f.path) == exempt {
			continue
		}
		ast.Inspect(f.syntax, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.Ident:
				if n.Name == "float32" || n.Name == "float64" || n.Name == "complex64" || n.Name == "complex128" {
					report(t.at(n.Pos()), "%s uses %s", f.dir, n.Name)
				}
			case *ast.BasicLit:
				if n.Kind == token.FLOAT || n.Kind == token.IMAG {
					report(t.at(n.Pos()), "%s uses the constant %s", f.dir, n.Value)
				}
			}
			return true
		})
		f.uses("math", func(pos token.Pos, name string) {
			if !strings.HasPrefix(name, "Max") && !strings.HasPrefix(name, "Min") || strings.Contains(name, "Float") {
				report(t.at(pos), "%s uses math.%s", f.dir, name)
			}
		})
	}
}

func checkClock(t *Tree, report reporter) {
	banned := []string{".", "Now", "Since", "Until", "Sleep", "After", "Tick"}
	for _, f := range t.code() {
		if isRoot(f.dir) {
			continue
		}
		f.uses("time", func(pos token.Pos, name string) {
			if slices.Contains(banned, name) {
				report(t.at(pos), "time.%s outside a composition root", name)
			}
		})
	}
}

func checkTestSleep(t *Tree, report reporter) {
	for _, f := range t.files {
		if !f.test {
			continue
		}
		f.uses("time", func(pos token.Pos, name string) {
			if name == "Sleep" || name == "." {
				report(t.at(pos), "time.%s in a test", name)
			}
		})
	}
}

func checkRandom(t *Tree, report reporter) {
	allowed := []string{"New", "NewSource", "NewZipf", "NewPCG", "NewChaCha8", "Rand", "Source", "Source64", "Zipf", "PCG", "ChaCha8"}
	for _, f := range t.code() {
		if isRoot(f.dir) {
			continue
		}
		for _, p := range []string{"math/rand", "math/rand/v2"} {
			f.uses(p, func(pos token.Pos, name string) {
				if !slices.Contains(allowed, name) {
					report(t.at(pos), "%s.%s draws from the global source", p, name)
				}
			})
		}
	}
}

func checkMetrics(t *Tree, report reporter) {
	const client = "github.com/prometheus/client_golang/prometheus"
	global := map[string][]string{
		client:               {".", "Register", "MustRegister", "Unregister", "DefaultRegisterer", "DefaultGatherer"},
		client + "/promhttp": {".", "Handler"},
	}
	for _, f := range t.code() {
		for p, names := range global {
			f.uses(p, func(pos token.Pos, name string) {
				if slices.Contains(names, name) {
					report(t.at(pos), "%s.%s uses the default registry", path.Base(p), name)
				}
			})
		}
		f.uses(client+"/promauto", func(pos token.Pos, name string) {
			if name != "With" && name != "Factory" {
				report(t.at(pos), "promauto.%s uses the default registry", name)
			}
		})
	}
}

func checkDoc(t *Tree, report reporter) {
	for _, dir := range t.packages() {
		var doc *source
		for _, f := range t.code() {
			switch {
			case f.dir != dir:
			case path.Base(f.path) == "doc.go":
				doc = f
			case f.syntax.Doc != nil && !f.generated:
				report(f.path, "a package comment outside doc.go")
			}
		}
		if doc == nil {
			report(dir, "no doc.go")
			continue
		}
		want := "Package " + doc.syntax.Name.Name
		if doc.syntax.Name.Name == "main" {
			want = "Command " + path.Base(dir)
		}
		text := doc.syntax.Doc.Text()
		if rest, ok := strings.CutPrefix(text, want); !ok || !strings.HasPrefix(rest, " ") && !strings.HasPrefix(rest, "\n") {
			report(doc.path, "the package comment does not start with %q", want)
		}
	}
}

func checkInit(t *Tree, report reporter) {
	for _, f := range t.code() {
		if f.generated || strings.HasPrefix(path.Base(f.path), "cpufeatures") {
			continue
		}
		for _, d := range f.syntax.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
				report(t.at(fn.Pos()), "an init function")
			}
		}
	}
}

func checkLength(t *Tree, report reporter) {
	for _, f := range t.files {
		if !f.test && !f.generated && f.lines > maxLines {
			report(f.path, "%d lines, at most %d", f.lines, maxLines)
		}
	}
}

func checkNames(t *Tree, report reporter) {
	vague := []string{"util", "utils", "common", "helper", "helpers", "misc"}
	for _, dir := range t.packages() {
		if slices.Contains(vague, path.Base(dir)) {
			report(dir, "a package called %s", path.Base(dir))
		}
	}
	for _, f := range t.files {
		if f.test {
			continue
		}
		for word := range strings.SplitSeq(strings.TrimSuffix(path.Base(f.path), ".go"), "_") {
			if slices.Contains(vague, word) {
				report(f.path, "a file called %s", word)
			}
		}
	}
}

func checkCgo(t *Tree, report reporter) {
	for _, f := range t.files {
		for _, spec := range f.syntax.Imports {
			if importPath(spec) == "C" && !f.requires("cuda") {
				report(t.at(spec.Pos()), `import "C" in a file that builds without the tag cuda`)
			}
		}
	}
}
