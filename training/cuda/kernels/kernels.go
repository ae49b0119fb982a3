package kernels

import (
	"embed"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"
)

//go:embed ptx/*.ptx ptx/SOURCES.sha256
var files embed.FS

// Module is one compiled source file.
type Module struct {
	Name    string   // of the source: gemm_bf16
	Arch    string   // what it was compiled for: sm_80 runs on that and everything newer, sm_90a on compute capability 9.0 alone
	PTX     []byte   // not to be changed
	Kernels []string // sorted
}

// Runs reports whether a card of that compute capability runs the module.
func (m Module) Runs(major, minor int) bool {
	if m.Arch == "sm_90a" {
		return major == 9 && minor == 0
	}
	return major >= 8
}

var entry = regexp.MustCompile(`(?m)^\s*(?:\.visible\s+)?\.entry\s+([A-Za-z_$][\w$]*)`)

// Modules returns all modules in the order of their files' names. The slice is the caller's.
func Modules() []Module { return slices.Clone(modules()) }

var modules = sync.OnceValue(func() []Module {
	list, err := files.ReadDir("ptx")
	if err != nil {
		panic(err) // it is embedded
	}
	var all []Module
	for _, f := range list {
		stem, ok := strings.CutSuffix(f.Name(), ".ptx")
		if !ok {
			continue
		}
		name, arch, ok := strings.Cut(stem, ".")
		if !ok {
			panic(fmt.Sprintf("kernels: ptx/%s is not named NAME.ARCH.ptx", f.Name()))
		}
		text, err := files.ReadFile(path.Join("ptx", f.Name()))
		if err != nil {
			panic(err)
		}
		m := Module{Name: name, Arch: arch, PTX: text}
		for _, match := range entry.FindAllSubmatch(text, -1) {
			m.Kernels = append(m.Kernels, string(match[1]))
		}
		slices.Sort(m.Kernels)
		all = append(all, m)
	}
	return all
})

// Find returns the module that has the kernel and runs on a card of that compute capability, the one made for that card
// alone if there is one.
func Find(kernel string, major, minor int) (Module, bool) {
	var best Module
	for _, m := range modules() {
		if _, ok := slices.BinarySearch(m.Kernels, kernel); ok && m.Runs(major, minor) && (best.Name == "" || m.Arch == "sm_90a") {
			best = m
		}
	}
	return best, best.Name != ""
}
