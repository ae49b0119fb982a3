package archtest

import (
	"bufio"
	"bytes"
	"fmt"
	"go/ast"
	"go/build/constraint"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
)

// Tree is the parsed Go source of a module.
type Tree struct {
	module string
	fset   *token.FileSet
	files  []*source
}

// source is one Go file.
type source struct {
	path, dir string // slash-separated, below the module's root
	syntax    *ast.File
	build     constraint.Expr // nil without a build line
	lines     int
	test      bool // named _test.go
	generated bool
	ignored   bool // built only with the tag ignore
}

// Load parses every Go file below the root of a module, but for testdata, hidden and vendored directories and other
// modules.
func Load(root fs.FS) (*Tree, error) {
	mod, err := fs.ReadFile(root, "go.mod")
	if err != nil {
		return nil, err
	}
	t := &Tree{fset: token.NewFileSet()}
	for scan := bufio.NewScanner(bytes.NewReader(mod)); scan.Scan(); {
		if name, ok := strings.CutPrefix(scan.Text(), "module "); ok {
			t.module = strings.TrimSpace(name)
		}
	}
	if t.module == "" {
		return nil, fmt.Errorf("go.mod names no module")
	}
	err = fs.WalkDir(root, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		base := path.Base(name)
		if d.IsDir() {
			if name == "." {
				return nil
			}
			if base == "testdata" || base == "vendor" || strings.HasPrefix(base, ".") || strings.HasPrefix(base, "_") {
				return fs.SkipDir
			}
			if _, err := fs.Stat(root, path.Join(name, "go.mod")); err == nil {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(base, ".go") || strings.HasPrefix(base, ".") || strings.HasPrefix(base, "_") {
			return nil
		}
		b, err := fs.ReadFile(root, name)
		if err != nil {
			return err
		}
		f, err := t.parse(name, b)
		if err != nil {
			return err
		}
		t.files = append(t.files, f)
		return nil
	})
	return t, err
}

func (t *Tree) parse(name string, b []byte) (*source, error) {
	syntax, err := parser.ParseFile(t.fset, name, b, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	f := &source{
		path: name, dir: path.Dir(name), syntax: syntax,
		lines:     bytes.Count(b, []byte("\n")),
		test:      strings.HasSuffix(name, "_test.go"),
		generated: ast.IsGenerated(syntax),
	}
	for _, group := range syntax.Comments {
		for _, c := range group.List {
			if c.Pos() < syntax.Package && constraint.IsGoBuild(c.Text) {
				if f.build, err = constraint.Parse(c.Text); err != nil {
					return nil, fmt.Errorf("%s: %w", name, err)
				}
			}
		}
	}
	f.ignored = f.requires("ignore")
	return f, nil
}

// requires reports whether the file's build line holds under no choice of tags without this one.
func (f *source) requires(tag string) bool {
	if f.build == nil {
		return false
	}
	named := make(map[string]bool)
	collect(f.build, named)
	delete(named, tag)
	tags := slices.Sorted(maps.Keys(named))
	if len(tags) > 16 {
		return false
	}
	for choice := range 1 << len(tags) {
		if f.build.Eval(func(t string) bool {
			i := slices.Index(tags, t)
			return i >= 0 && choice>>i&1 == 1
		}) {
			return false
		}
	}
	return true
}

// collect gathers the tags of a build line.
func collect(x constraint.Expr, into map[string]bool) {
	switch x := x.(type) {
	case *constraint.TagExpr:
		into[x.Tag] = true
	case *constraint.NotExpr:
		collect(x.X, into)
	case *constraint.AndExpr:
		collect(x.X, into)
		collect(x.Y, into)
	case *constraint.OrExpr:
		collect(x.X, into)
		collect(x.Y, into)
	}
}

// code is the files that the rules are about: no tests, nothing ignored.
func (t *Tree) code() []*source {
	return slices.DeleteFunc(slices.Clone(t.files), func(f *source) bool { return f.test || f.ignored })
}

// packages returns the directories that hold code, sorted; a directory of nothing but tests counts.
func (t *Tree) packages() []string {
	dirs := make(map[string]bool)
	for _, f := range t.files {
		if !f.ignored {
			dirs[f.dir] = true
		}
	}
	return slices.Sorted(maps.Keys(dirs))
}

func importPath(spec *ast.ImportSpec) string {
	p, err := strconv.Unquote(spec.Path.Value)
	if err != nil {
		return spec.Path.Value // the parser has accepted it, so this is not reached
	}
	return p
}

// inModule returns the directory that an import path names in this module.
func (t *Tree) inModule(importPath string) (dir string, ok bool) {
	if importPath == t.module {
		return ".", true
	}
	return strings.CutPrefix(importPath, t.module+"/")
}

// isStandard reports whether an import path is of the standard library: its first element has no dot.
func isStandard(importPath string) bool {
	first, _, _ := strings.Cut(importPath, "/")
	return !strings.Contains(first, ".")
}

// uses calls report for every selection pkg.Name of an imported package and for a dot import of it, which would hide
// them (Name "."). It goes by the import's name in the file; a local variable of that name is taken for the package.
func (f *source) uses(importedAs string, report func(pos token.Pos, name string)) {
	locals := make(map[string]bool)
	for _, spec := range f.syntax.Imports {
		if importPath(spec) != importedAs {
			continue
		}
		local := path.Base(importedAs)
		if strings.HasPrefix(local, "v") && strings.Trim(local[1:], "0123456789") == "" {
			local = path.Base(path.Dir(importedAs)) // math/rand/v2 is rand
		}
		if spec.Name != nil {
			local = spec.Name.Name
		}
		if local == "." {
			report(spec.Pos(), ".")
		}
		locals[local] = true
	}
	if len(locals) == 0 {
		return
	}
	ast.Inspect(f.syntax, func(n ast.Node) bool {
		if sel, ok := n.(*ast.SelectorExpr); ok {
			if x, ok := sel.X.(*ast.Ident); ok && locals[x.Name] {
				report(sel.Pos(), sel.Sel.Name)
			}
		}
		return true
	})
}
