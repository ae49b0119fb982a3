package emu

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/cpu"
	"golang.org/x/sys/unix"
)

// flags compile kernels and runner. Products and sums are not fused and integers wrap, as on the GPU; the sanitizers'
// reports go to functions of runner.cpp.
func flags() []string {
	f := []string{"-std=c++17", "-O2", "-ffp-contract=off", "-fno-strict-aliasing", "-fno-math-errno", "-fwrapv", "-fno-pie",
		"-Wno-unknown-pragmas", "-Wno-unused-function", "-DBZD_EMULATE=1"}
	if cpu.X86.HasFMA && cpu.X86.HasAVX2 {
		f = append(f, "-mfma", "-mavx2")
	}
	return f
}

var kernelFlags = []string{"-fsanitize=bounds,alignment", "-fno-sanitize-recover=all"}

// build returns the path of the program that runs the kernels, compiling what has changed.
func build(ctx context.Context, c Config) (string, error) {
	compiler, err := exec.LookPath("g++")
	if err != nil {
		return "", fmt.Errorf("%w: kernels are compiled with g++: %w", ErrUnavailable, err)
	}
	if runtime.GOARCH != "amd64" && runtime.GOARCH != "arm64" {
		return "", fmt.Errorf("%w: no context switch for %s", ErrUnavailable, runtime.GOARCH)
	}
	b := &builder{ctx: ctx, compiler: compiler, kernels: c.Kernels, cache: c.Cache}
	if b.kernels == "" {
		if b.kernels, err = findKernels(); err != nil {
			return "", err
		}
	}
	if b.kernels, err = filepath.Abs(b.kernels); err != nil {
		return "", err
	}
	b.here = filepath.Join(filepath.Dir(b.kernels), "emu")
	if b.cache == "" {
		dir, err := os.UserCacheDir()
		if err != nil {
			dir = os.TempDir()
		}
		b.cache = filepath.Join(dir, "bzd-emulator")
	}
	if err := os.MkdirAll(b.cache, 0o755); err != nil {
		return "", err
	}
	return b.program(c.Extra, c.hopper())
}

// findKernels looks for the module's root above the working directory, where tests run.
func findKernels() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		kernels := filepath.Join(dir, "training", "cuda", "kernels")
		if _, err := os.Stat(kernels); err == nil {
			return kernels, nil
		}
		if filepath.Dir(dir) == dir {
			return "", fmt.Errorf("%w: no training/cuda/kernels above the working directory", ErrUnavailable)
		}
		dir = filepath.Dir(dir)
	}
}

type builder struct {
	ctx      context.Context
	compiler string
	kernels  string
	here     string // directory of emu.h
	cache    string
}

// own are the emulator's own sources.
func (b *builder) own() []string {
	var all []string
	for _, name := range []string{"emu.h", "sm90.h", "runner/switch.h", "runner/sm90.h", "runner/runner.cpp"} {
		all = append(all, filepath.Join(b.here, filepath.FromSlash(name)))
	}
	return all
}

func (b *builder) program(extra []string, hopper bool) (string, error) {
	sources, err := filepath.Glob(filepath.Join(b.kernels, "*.cu"))
	if err != nil {
		return "", err
	}
	if !hopper { // they take the compiler as long as the rest
		sources = slices.DeleteFunc(sources, func(s string) bool { return strings.HasSuffix(s, "_sm90.cu") })
	}
	for _, e := range extra {
		abs, err := filepath.Abs(e)
		if err != nil {
			return "", err
		}
		sources = append(sources, abs)
	}
	headers, err := filepath.Glob(filepath.Join(b.kernels, "*.cuh"))
	if err != nil {
		return "", err
	}
	info, err := os.Stat(b.compiler)
	if err != nil {
		return "", err
	}
	identity := fmt.Sprintln(b.compiler, info.Size(), info.ModTime(), flags(), kernelFlags)
	digest := sha256.New()
	digest.Write([]byte(identity))
	inputs := slices.Concat(sources, headers, b.own())
	for _, name := range inputs {
		text, err := os.ReadFile(name)
		if err != nil {
			return "", fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
		fmt.Fprintln(digest, name, len(text))
		digest.Write(text)
	}
	program := filepath.Join(b.cache, "run-"+hex.EncodeToString(digest.Sum(nil)[:12]))
	if _, err := os.Stat(program); err == nil {
		return program, nil
	}

	// Test processes that start together wait for the first one's work.
	lock, err := os.OpenFile(filepath.Join(b.cache, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return "", err
	}
	if _, err := os.Stat(program); err == nil {
		return program, nil
	}
	b.prune()
	return program, b.link(program, sources, identity)
}

// prune keeps the cache small: old programs go when there are many.
func (b *builder) prune() {
	const most = 400
	entries, err := os.ReadDir(b.cache)
	if err != nil || len(entries) < most {
		return
	}
	age := func(e os.DirEntry) int64 {
		if info, err := e.Info(); err == nil {
			return info.ModTime().UnixNano()
		}
		return 0
	}
	slices.SortFunc(entries, func(x, y os.DirEntry) int { return int(min(1, max(-1, age(x)-age(y)))) })
	for _, e := range entries[:most/2] {
		if e.Name() != "lock" {
			os.Remove(filepath.Join(b.cache, e.Name()))
		}
	}
}

// module is a compiled kernel file.
type module struct {
	object string
	names  []string
}

func (b *builder) link(program string, sources []string, identity string) error {
	work, err := os.MkdirTemp(b.cache, "work")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)

	modules := make([]module, len(sources)+1)
	errs := make([]error, len(modules))
	var wait sync.WaitGroup
	turn := make(chan struct{}, max(1, runtime.NumCPU()))
	for i := range modules {
		wait.Go(func() {
			turn <- struct{}{}
			defer func() { <-turn }()
			if i < len(sources) {
				modules[i], errs[i] = b.compile(sources[i], i, work, identity)
			} else {
				modules[i], errs[i] = b.runner(work, identity)
			}
		})
	}
	wait.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	owner := make(map[string]string)
	for i, s := range sources {
		for _, name := range modules[i].names {
			if other, ok := owner[name]; ok {
				return fmt.Errorf("kernel %s is in %s and in %s: names must be unique", name, filepath.Base(other), filepath.Base(s))
			}
			owner[name] = s
		}
	}

	// The .bss of a file's object, its shared memory, lies between two marks because the linker keeps their order.
	mark := func(i int) (string, error) {
		path := filepath.Join(work, fmt.Sprintf("mark%d.s", i))
		text := fmt.Sprintf(".bss\n.balign 1024\n.globl bzd_mark_%d\nbzd_mark_%d: .zero 1024\n.section .note.GNU-stack,\"\",%%progbits\n", i, i)
		return path, os.WriteFile(path, []byte(text), 0o644)
	}
	table := "#include \"emu.h\"\n"
	list, marks := "", ""
	args := []string{"-no-pie", "-o", program + ".new"}
	for i := range len(sources) + 1 {
		path, err := mark(i)
		if err != nil {
			return err
		}
		args = append(args, path)
		table += fmt.Sprintf("extern \"C\" unsigned char bzd_mark_%d[];\n", i)
		if i == 0 {
			marks += "bzd_mark_0 + 1024, "
		} else {
			marks += fmt.Sprintf("bzd_mark_%d, ", i)
		}
		if i < len(sources) {
			args = append(args, modules[i].object)
			name := symbol(sources[i])
			table += fmt.Sprintf("extern const emu::Module %s;\n", name)
			list += "&" + name + ", "
		}
	}
	table += fmt.Sprintf("extern const emu::Module *const bzd_modules[];\nconst emu::Module *const bzd_modules[] = {%s nullptr};\n", list)
	table += fmt.Sprintf("extern const int bzd_module_count;\nconst int bzd_module_count = %d;\n", len(sources))
	table += fmt.Sprintf("extern unsigned char *const bzd_shared_marks[];\nunsigned char *const bzd_shared_marks[] = {%s};\n", marks)
	path := filepath.Join(work, "table.cpp")
	if err := os.WriteFile(path, []byte(table), 0o644); err != nil {
		return err
	}
	args = slices.Concat(flags(), []string{"-I" + b.here}, args, []string{modules[len(sources)].object, path})
	if err := b.run(args...); err != nil {
		return err
	}
	return os.Rename(program+".new", program)
}

func (b *builder) run(args ...string) error {
	cmd := exec.CommandContext(b.ctx, b.compiler, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("g++ %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

// preprocess returns the source after the preprocessor.
func (b *builder) preprocess(source string, more ...string) ([]byte, error) {
	args := slices.Concat(flags(), more, []string{"-I" + b.kernels, "-I" + b.here, "-E", "-x", "c++", source})
	cmd := exec.CommandContext(b.ctx, b.compiler, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("g++ %s: %w\n%s", strings.Join(args, " "), err, stderr.Bytes())
	}
	return out, nil
}

func symbol(source string) string {
	return "bzd_module_" + regexp.MustCompile(`\W`).ReplaceAllString(strings.TrimSuffix(filepath.Base(source), ".cu"), "_")
}

func object(cache, identity string, parts ...[]byte) string {
	digest := sha256.New()
	digest.Write([]byte(identity))
	for _, p := range parts {
		fmt.Fprintln(digest, len(p))
		digest.Write(p)
	}
	return filepath.Join(cache, "obj-"+hex.EncodeToString(digest.Sum(nil)[:12])+".o")
}

// compile makes the object of a kernel file, unless the cache has it.
func (b *builder) compile(source string, i int, work, identity string) (module, error) {
	text, err := b.preprocess(source, "-DBZD_SCAN")
	if err != nil {
		return module{}, err
	}
	kernels, err := scan(string(text))
	if err != nil {
		return module{}, fmt.Errorf("%s: %w", source, err)
	}
	m := module{object: object(b.cache, identity, text)}
	entries := ""
	for _, k := range kernels {
		m.names = append(m.names, k.name)
		entries += fmt.Sprintf("    BZD_ENTRY(%s, %s),\n", k.name, k.threads)
	}
	if _, err := os.Stat(m.object); err == nil {
		return m, nil
	}
	// The whole file lies in an anonymous namespace, so that functions and variables of different files do not meet.
	unit := fmt.Sprintf("#include \"emu.h\"\nnamespace {\n#include \"%s\"\nconst emu::Registered bzd_list[] = {\n%s    {nullptr, nullptr, nullptr, 0}};\n}\nextern const emu::Module %s;\nconst emu::Module %[3]s = {bzd_list, %[4]d};\n",
		source, entries, symbol(source), len(kernels))
	path := filepath.Join(work, fmt.Sprintf("unit%d.cpp", i))
	if err := os.WriteFile(path, []byte(unit), 0o644); err != nil {
		return m, err
	}
	out := filepath.Join(work, fmt.Sprintf("unit%d.o", i))
	if err := b.run(slices.Concat(flags(), kernelFlags, []string{"-I" + b.kernels, "-I" + b.here, "-c", "-o", out, path})...); err != nil {
		return m, err
	}
	return m, os.Rename(out, m.object)
}

func (b *builder) runner(work, identity string) (module, error) {
	var parts [][]byte
	for _, name := range b.own() {
		text, err := os.ReadFile(name)
		if err != nil {
			return module{}, err
		}
		parts = append(parts, text)
	}
	m := module{object: object(b.cache, identity, parts...)}
	if _, err := os.Stat(m.object); err == nil {
		return m, nil
	}
	out := filepath.Join(work, "runner.o")
	if err := b.run(slices.Concat(flags(), []string{"-O3", "-c", "-o", out, filepath.Join(b.here, "runner", "runner.cpp")})...); err != nil {
		return m, err
	}
	return m, os.Rename(out, m.object)
}

// declared is a kernel of a file, with the C++ expression for its most threads.
type declared struct{ name, threads string }

var errKernel = fmt.Errorf("a __global__ function is not of the form: extern \"C\" __global__ void KERNEL_BOUNDS(threads, blocks) name(")

// scan finds the kernels in preprocessed text.
func scan(text string) ([]declared, error) {
	text = regexp.MustCompile(`(?m)^#.*$`).ReplaceAllString(text, "")
	var found []declared
	name := regexp.MustCompile(`^\s*(\w+)\s*\(`)
	for {
		_, rest, ok := strings.Cut(text, "__bzd_kernel__")
		if !ok {
			return found, nil
		}
		rest, ok = strings.CutPrefix(strings.TrimSpace(rest), "void")
		if !ok {
			return nil, errKernel
		}
		k := declared{threads: "1024"}
		if after, ok := strings.CutPrefix(strings.TrimSpace(rest), "__bzd_bounds__"); ok {
			threads, after, ok := firstArgument(strings.TrimSpace(after))
			if !ok {
				return nil, errKernel
			}
			k.threads, rest = threads, after
		}
		m := name.FindStringSubmatch(rest)
		if m == nil {
			return nil, errKernel
		}
		k.name = m[1]
		found = append(found, k)
		text = rest
	}
}

// firstArgument splits "(a, b …) rest" into a and rest.
func firstArgument(s string) (first, rest string, ok bool) {
	depth, end := 0, -1
	for i, c := range s {
		switch c {
		case '(':
			depth++
		case ')':
			depth--
		}
		if end < 0 && (depth == 1 && c == ',' || depth == 0) {
			end = i
		}
		if depth == 0 {
			return s[1:end], s[i+1:], end > 0
		}
	}
	return "", "", false
}
