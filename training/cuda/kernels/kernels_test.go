package kernels

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The embedded PTX is what `make ptx` made of these very sources.
func TestPTXIsUpToDate(t *testing.T) {
	list, err := files.ReadFile("ptx/SOURCES.sha256")
	if err != nil {
		t.Fatal(err)
	}
	listed := map[string]bool{}
	for scan := bufio.NewScanner(bytes.NewReader(list)); scan.Scan(); {
		want, name, ok := strings.Cut(scan.Text(), "  ")
		if !ok {
			t.Fatalf("ptx/SOURCES.sha256 has the line %q", scan.Text())
		}
		listed[name] = true
		b, err := os.ReadFile(name)
		if err != nil {
			t.Errorf("%v: run make ptx", err)
			continue
		}
		if sum := sha256.Sum256(b); hex.EncodeToString(sum[:]) != want {
			t.Errorf("%s has changed: run make ptx", name)
		}
	}
	for _, pattern := range []string{"*.cu", "*.cuh", "ptx/*.ptx"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range found {
			if !listed[filepath.ToSlash(name)] {
				t.Errorf("%s is not in ptx/SOURCES.sha256: run make ptx", name)
			}
		}
	}
}

func TestModules(t *testing.T) {
	owner := map[string]string{}
	for _, m := range Modules() {
		sm90 := strings.HasSuffix(m.Name, "_sm90")
		if want := map[bool]string{false: "sm_80", true: "sm_90a"}[sm90]; m.Arch != want {
			t.Errorf("%s is for %s, want %s", m.Name, m.Arch, want)
		}
		version := map[bool]string{false: "8.0", true: "8.3"}[sm90] // CUDA 12.0 and 12.3
		header := ".version " + version + "\n.target " + m.Arch + "\n.address_size 64\n"
		if !bytes.HasPrefix(m.PTX, []byte(header)) {
			t.Errorf("%s begins with %.60q, want %q: a later version needs a newer driver than package driver demands", m.Name, m.PTX, header)
		}
		if len(m.Kernels) == 0 {
			t.Errorf("%s has no kernel", m.Name)
		}
		for _, k := range m.Kernels {
			if other := owner[m.Arch+k]; other != "" {
				t.Errorf("kernel %s is in %s and in %s", k, other, m.Name)
			}
			owner[m.Arch+k] = m.Name
			major, minor := 8, 6
			if sm90 {
				major, minor = 9, 0
			}
			if found, ok := Find(k, major, minor); !ok || found.Name != m.Name {
				t.Errorf("Find(%s, %d, %d) = %q, %v", k, major, minor, found.Name, ok)
			}
		}
		// 9.0 alone runs sm_90a; 8.0 and everything later runs the rest.
		for _, c := range []struct {
			major, minor int
			yes          bool
		}{{7, 5, false}, {8, 0, !sm90}, {8, 9, !sm90}, {9, 0, true}, {10, 0, !sm90}, {12, 0, !sm90}} {
			if m.Runs(c.major, c.minor) != c.yes {
				t.Errorf("%s on %d.%d: %v", m.Name, c.major, c.minor, !c.yes)
			}
		}
	}
	if len(owner) == 0 {
		t.Error("no kernels are embedded")
	}
	if _, ok := Find("no such kernel", 9, 0); ok {
		t.Error("found a kernel that there is not")
	}
}
