package archtest

import (
	"go/ast"
	"go/token"
	"go/types"
	"slices"
	"strings"
)

// stateless reports whether dir must keep nothing in package variables: the domains, the leaf and the node, of which one
// process may hold many.
func stateless(dir string) bool {
	return domainOf(dir) != "" || dir == leaf || within(dir, "node")
}

// variable is a package variable.
type variable struct {
	dir, name string
	pos       token.Pos
}

// checkState lets package variables be what never changes: errors, tables, compiled patterns, embedded files, and what is
// computed once. Nothing may assign to one, take its address or write through it, here or in another package; one that
// could be changed through its value, such as a map that is made or anything of package sync, is refused from the start.
// Files that need a CUDA device are exempt: the device belongs to the process.
func checkState(t *Tree, report reporter) {
	vars := make(map[string]map[string]variable) // by directory and name
	for _, f := range t.code() {
		if !stateless(f.dir) || f.requires("cuda") || f.generated {
			continue
		}
		for _, d := range f.syntax.Decls {
			g, ok := d.(*ast.GenDecl)
			if !ok || g.Tok != token.VAR {
				continue
			}
			for _, s := range g.Specs {
				spec := s.(*ast.ValueSpec)
				embedded := hasDirective(g.Doc, "//go:embed") || hasDirective(spec.Doc, "//go:embed")
				for i, name := range spec.Names {
					if name.Name == "_" {
						continue
					}
					if vars[f.dir] == nil {
						vars[f.dir] = make(map[string]variable)
					}
					vars[f.dir][name.Name] = variable{f.dir, name.Name, name.Pos()}
					var value ast.Expr
					if i < len(spec.Values) {
						value = spec.Values[i]
					}
					switch {
					case embedded:
					case value == nil && len(spec.Values) == 0:
						report(t.at(name.Pos()), "the package variable %s has no value, so something would have to set it", name.Name)
					case changeable(spec.Type) || changeable(value):
						report(t.at(name.Pos()), "the package variable %s holds what can be changed", name.Name)
					}
				}
			}
		}
	}
	for _, f := range t.code() {
		t.writes(f, func(pos token.Pos, dir, name string) {
			if v, ok := vars[dir][name]; ok {
				report(t.at(pos), "%s is written or handed out for writing; it is a package variable of %s", v.name, v.dir)
			}
		})
	}
}

// hasDirective reports whether a comment holds a directive.
func hasDirective(doc *ast.CommentGroup, directive string) bool {
	return doc != nil && slices.ContainsFunc(doc.List, func(c *ast.Comment) bool { return strings.HasPrefix(c.Text, directive) })
}

// changeable reports whether a type or initial value is meant to be changed: made, pointed to, a channel, or of package
// sync, save what is computed once.
func changeable(x ast.Expr) bool {
	if x == nil {
		return false
	}
	found := false
	ast.Inspect(x, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncLit, *ast.FuncType:
			return false // what a function does inside is looked at as a write
		case *ast.ChanType:
			found = true
		case *ast.UnaryExpr:
			if _, literal := n.X.(*ast.CompositeLit); n.Op == token.AND && literal {
				found = true
			}
		case *ast.CallExpr:
			if fn, ok := n.Fun.(*ast.Ident); ok && (fn.Name == "make" || fn.Name == "new") {
				found = true
			}
		case *ast.SelectorExpr:
			if p, ok := n.X.(*ast.Ident); ok && (p.Name == "sync" || p.Name == "atomic") && !strings.HasPrefix(n.Sel.Name, "OnceValue") {
				found = true
			}
		}
		return true
	})
	return found
}

// writes calls found for everything in a file that may be a write to a package variable: an assignment to it or to a part
// of it, ++ and --, its address, and the builtins that change what they are given. It goes by names: a function that
// declares the name itself is taken to mean its own.
func (t *Tree) writes(f *source, found func(pos token.Pos, dir, name string)) {
	imports := make(map[string]string) // directory by local name
	for _, spec := range f.syntax.Imports {
		if dir, ok := t.inModule(importPath(spec)); ok {
			local := dir[strings.LastIndex(dir, "/")+1:]
			if spec.Name != nil {
				local = spec.Name.Name
			}
			imports[local] = dir
		}
	}
	for _, d := range f.syntax.Decls {
		own := declared(d)
		target := func(x ast.Expr) {
			for {
				switch y := x.(type) {
				case *ast.ParenExpr:
					x = y.X
					continue
				case *ast.StarExpr:
					x = y.X
					continue
				case *ast.IndexExpr:
					x = y.X
					continue
				case *ast.SliceExpr:
					x = y.X
					continue
				case *ast.SelectorExpr:
					if p, ok := y.X.(*ast.Ident); ok && imports[p.Name] != "" && !own[p.Name] {
						found(y.Pos(), imports[p.Name], y.Sel.Name)
						return
					}
					x = y.X
					continue
				case *ast.Ident:
					if !own[y.Name] {
						found(y.Pos(), f.dir, y.Name)
					}
				}
				return
			}
		}
		ast.Inspect(d, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.AssignStmt:
				if n.Tok != token.DEFINE {
					for _, x := range n.Lhs {
						target(x)
					}
				}
			case *ast.IncDecStmt:
				target(n.X)
			case *ast.RangeStmt:
				if n.Tok == token.ASSIGN {
					target(n.Key)
					target(n.Value)
				}
			case *ast.UnaryExpr:
				if n.Op == token.AND {
					if _, literal := n.X.(*ast.CompositeLit); !literal {
						target(n.X)
					}
				}
			case *ast.CallExpr:
				if fn, ok := n.Fun.(*ast.Ident); ok && len(n.Args) > 0 && slices.Contains([]string{"delete", "clear", "copy"}, fn.Name) {
					target(n.Args[0])
				}
			}
			return true
		})
	}
}

// declared collects the names that a function declares anywhere inside: parameters, results and local variables.
func declared(d ast.Decl) map[string]bool {
	names := make(map[string]bool)
	fn, ok := d.(*ast.FuncDecl)
	if !ok {
		return names
	}
	fields := func(l *ast.FieldList) {
		if l != nil {
			for _, f := range l.List {
				for _, n := range f.Names {
					names[n.Name] = true
				}
			}
		}
	}
	fields(fn.Recv)
	ast.Inspect(fn, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncType:
			fields(n.Params)
			fields(n.Results)
		case *ast.AssignStmt:
			if n.Tok == token.DEFINE {
				for _, x := range n.Lhs {
					if id, ok := x.(*ast.Ident); ok {
						names[id.Name] = true
					}
				}
			}
		case *ast.RangeStmt:
			if n.Tok == token.DEFINE {
				for _, x := range []ast.Expr{n.Key, n.Value} {
					if id, ok := x.(*ast.Ident); ok {
						names[id.Name] = true
					}
				}
			}
		case *ast.ValueSpec:
			for _, id := range n.Names {
				names[id.Name] = true
			}
		}
		return true
	})
	return names
}

// handed are the types that a field of node.Config may have: plain values, the clock, and where events go. Through none
// of them can one node reach another. Values of a key are bytes that nobody writes.
var handed = []string{
	"string", "[]string", "int", "uint64", "bool", "Behaviour", "protocol.Link", "protocol.Role", "protocol.ID", "[]protocol.ID",
	"ed25519.PrivateKey",
	"func() time.Time", "func(Event)",
}

// checkHanded keeps node.Config to addresses, directories, keys and other plain values, and Behaviour likewise.
func checkHanded(t *Tree, report reporter) {
	for _, f := range t.code() {
		if f.dir != "node" {
			continue
		}
		for _, d := range f.syntax.Decls {
			g, ok := d.(*ast.GenDecl)
			if !ok || g.Tok != token.TYPE {
				continue
			}
			for _, s := range g.Specs {
				spec := s.(*ast.TypeSpec)
				body, ok := spec.Type.(*ast.StructType)
				if !ok || spec.Name.Name != "Config" && spec.Name.Name != "Behaviour" {
					continue
				}
				for _, field := range body.Fields.List {
					if typ := types.ExprString(field.Type); !slices.Contains(handed, typ) {
						report(t.at(field.Pos()), "a field of node.%s is a %s", spec.Name.Name, typ)
					}
				}
			}
		}
	}
}
