package data

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// The built-in domains, in the order of [Builtin].
const (
	Prose = "prose"
	Go    = "go"
	Asm   = "asm"
	Maths = "math"
)

// BuiltinNames are the names of the built-in domains.
func BuiltinNames() []string { return []string{Prose, Go, Asm, Maths} }

const (
	// proseHeldOut is larger than the default because the pool is small.
	proseHeldOut = 250
	// prosePiece is smaller than MaxPiece so that the held-out pool has
	// enough documents for a standard error clustered by document.
	prosePiece = 4 << 10
)

// commonGOROOTs are patterns of places where Go is installed.
var commonGOROOTs = []string{
	"/usr/local/go", "/usr/lib/go", "/usr/lib/go-*", "/usr/lib/golang", "/usr/share/go-*",
	"/opt/homebrew/opt/go/libexec", "/usr/local/opt/go/libexec", "/snap/go/current",
}

// FindGOROOT looks for a Go installation with sources: $GOROOT, then what
// goEnv returns (the caller runs `go env GOROOT`; nil if it cannot), then
// common places. It returns "" if there is none, and where it looked, for the
// message to the user.
func FindGOROOT(env func(string) string, goEnv func() (string, error)) (root string, looked []string) {
	return findGOROOT(env, goEnv, commonGOROOTs)
}

func findGOROOT(env func(string) string, goEnv func() (string, error), common []string) (string, []string) {
	var looked []string
	try := func(dir string) bool {
		if dir == "" || slices.Contains(looked, dir) {
			return false
		}
		looked = append(looked, dir)
		return hasSources(dir)
	}
	if dir := env("GOROOT"); try(dir) {
		return dir, looked
	}
	if goEnv != nil {
		if dir, err := goEnv(); err == nil {
			if dir = strings.TrimSpace(dir); try(dir) {
				return dir, looked
			}
		}
	}
	for _, pattern := range common {
		found, err := filepath.Glob(pattern)
		if err != nil || len(found) == 0 {
			looked = append(looked, pattern)
			continue
		}
		// The highest version first; longer numbers are higher.
		slices.SortFunc(found, func(a, b string) int {
			if len(a) != len(b) {
				return len(b) - len(a)
			}
			return strings.Compare(b, a)
		})
		for _, dir := range found {
			if try(dir) {
				return dir, looked
			}
		}
	}
	return "", looked
}

func hasSources(goroot string) bool {
	info, err := os.Stat(filepath.Join(goroot, "src", "fmt", "print.go"))
	return err == nil && info.Mode().IsRegular()
}

// Builtin builds the built-in domains from a Go installation. Those that
// cannot be built, because goroot is "" or holds no such files, are in the
// second result; math needs nothing and is always there. The error is an I/O
// fault on a file that exists: going on without it would silently make another
// dataset.
func Builtin(goroot string) ([]*Dataset, []Missing, error) {
	return builtin(goroot, BuiltinNames(), 0)
}

// BuiltinOne builds one built-in domain, reading only what it needs. The error
// is a [Missing] where [Builtin] would list one.
func BuiltinOne(goroot, name string) (*Dataset, error) {
	if !slices.Contains(BuiltinNames(), name) {
		return nil, fmt.Errorf("data: %w: no built-in domain %q; there are %s", ErrOption, name, strings.Join(BuiltinNames(), ", "))
	}
	sets, missing, err := builtin(goroot, []string{name}, 0)
	if err != nil {
		return nil, err
	}
	if len(missing) > 0 {
		return nil, missing[0]
	}
	return sets[0], nil
}

func builtin(goroot string, names []string, workers int) ([]*Dataset, []Missing, error) {
	var sets []*Dataset
	var missing []Missing
	files, reason, err := listGOROOT(goroot, names)
	if err != nil {
		return nil, nil, err
	}
	for _, name := range names {
		var d *Dataset
		var err error
		switch {
		case name == Maths:
			d, err = Math(sha256.Sum256([]byte(labelMathSeed)))
		case reason != "":
			missing = append(missing, Missing{name, reason})
			continue
		default:
			opts := Options{Workers: workers}
			if name == Prose {
				opts.HeldOut, opts.PieceSize = proseHeldOut, prosePiece
			}
			if opts, err = opts.withDefaults(); err == nil {
				d, err = build(name, goroot, files[name], opts)
			}
		}
		if none := (*NoTextError)(nil); errors.As(err, &none) {
			missing = append(missing, Missing{name, err.Error()})
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		sets = append(sets, d)
	}
	return sets, missing, nil
}

// listGOROOT returns the files of each domain, or the reason why there are
// none.
func listGOROOT(goroot string, names []string) (map[string][]source, string, error) {
	if !slices.ContainsFunc(names, func(n string) bool { return n != Maths }) {
		return nil, "", nil
	}
	if goroot == "" {
		return nil, "no Go installation with sources was found; install Go or set GOROOT", nil
	}
	if !hasSources(goroot) {
		return nil, fmt.Sprintf("%q holds no Go sources (src/fmt/print.go); some distributions package them apart (golang-src); install them or set GOROOT", goroot), nil
	}
	files := map[string][]source{}
	want := func(name string) bool { return slices.Contains(names, name) }
	err := walk(filepath.Join(goroot, "src"), []string{testData}, func(path, rel, ext string) {
		switch {
		case ext == ".s" && want(Asm):
			files[Asm] = append(files[Asm], source{path: path})
		case vendored(rel): // other modules' text
		case ext == ".go" && want(Go):
			files[Go] = append(files[Go], source{path: path, noGenerated: true})
		case ext == ".md" && want(Prose):
			files[Prose] = append(files[Prose], source{path: path})
		}
	})
	if err != nil || !want(Prose) {
		return files, "", err
	}
	prose, err := listProse(goroot)
	files[Prose] = append(files[Prose], prose...)
	return files, "", err
}

const testData = "testdata"

func vendored(rel string) bool {
	return slices.Contains(strings.Split(filepath.Dir(rel), string(filepath.Separator)), "vendor")
}

// listProse returns what prose takes from outside src, and the one file it
// takes from test data.
func listProse(goroot string) ([]source, error) {
	var out []source
	// Fragments of release notes are templates.
	err := walk(filepath.Join(goroot, "doc"), []string{"initial", "next", testData}, func(path, _, ext string) {
		switch ext {
		case ".html":
			out = append(out, source{path: path, html: true})
		case ".md":
			out = append(out, source{path: path})
		}
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	top, err := filepath.Glob(filepath.Join(escapeGlob(goroot), "*.md"))
	if err != nil {
		return nil, fmt.Errorf("data: %q: %w", goroot, err)
	}
	top = append(top, filepath.Join(goroot, "src", testData, "Isaac.Newton-Opticks.txt"))
	for _, path := range top {
		if info, err := os.Lstat(path); err == nil && info.Mode().IsRegular() {
			out = append(out, source{path: path})
		}
	}
	return out, nil
}

func escapeGlob(s string) string {
	if filepath.Separator == '\\' {
		return s // Glob has no escapes where the separator is one
	}
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(s)
}

// walk calls visit for the regular files below dir, which may itself be a
// symbolic link, except in the skipped directories and hidden ones; rel is the
// path from dir.
func walk(dir string, skip []string, visit func(path, rel, ext string)) error {
	root, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return fmt.Errorf("data: %w", err)
	}
	err = filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case e.IsDir() && path != root && (slices.Contains(skip, e.Name()) || strings.HasPrefix(e.Name(), ".")):
			return filepath.SkipDir
		case e.Type().IsRegular() && !strings.HasPrefix(e.Name(), "."):
			rel, err := filepath.Rel(root, path)
			if err != nil {
				return err
			}
			visit(path, rel, filepath.Ext(path))
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("data: %w", err)
	}
	return nil
}
