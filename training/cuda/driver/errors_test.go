package driver

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/blockzero-net/bzd/training/cuda"
	"github.com/blockzero-net/bzd/training/cuda/kernels"
)

var sentinels = []error{cuda.ErrNoDriver, cuda.ErrNoDevice, cuda.ErrDriverTooOld, cuda.ErrInUse, cuda.ErrOutOfMemory, cuda.ErrDeviceLost, cuda.ErrLaunch}

// Every CUresult, known or not, becomes an error of exactly one kind, with a hint.
func TestFailure(t *testing.T) {
	for code := 1; code < 1000; code++ {
		err := failure("work", code, "words of the driver")
		kinds := 0
		for _, s := range sentinels {
			if errors.Is(err, s) {
				kinds++
			}
		}
		if kinds != 1 {
			t.Errorf("%d: %d kinds: %v", code, kinds, err)
		}
		if s := err.Error(); !strings.HasPrefix(s, "work: ") || !strings.HasSuffix(s, ": words of the driver)") {
			t.Errorf("%d: %v", code, err)
		}
	}
	for _, c := range []struct {
		code   int
		want   error
		hint   string
		sticky bool
	}{
		{2, cuda.ErrOutOfMemory, "smaller batch", false},
		{34, cuda.ErrNoDriver, "install the NVIDIA driver", false},
		{46, cuda.ErrInUse, "nvidia-smi", false},
		{100, cuda.ErrNoDevice, "CUDA_VISIBLE_DEVICES", false},
		{214, cuda.ErrDeviceLost, "ECC", true},
		{222, cuda.ErrDriverTooOld, "545 or later", false},
		{700, cuda.ErrLaunch, "bug", true},
		{719, cuda.ErrLaunch, "dmesg for Xid", true},
		{800, cuda.ErrNoDevice, "not permitted", false},
		{803, cuda.ErrDriverTooOld, "reboot", false},
		{912, cuda.ErrLaunch, "CUresult 912", true},
		{999, cuda.ErrDeviceLost, "dmesg for Xid", true},
	} {
		err := failure("", c.code, "")
		if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.hint) || sticky(err) != c.sticky {
			t.Errorf("%d: %v", c.code, err)
		}
	}
}

func TestUsable(t *testing.T) {
	for _, c := range []struct {
		version, major, minor int
		want                  error
		says                  string
	}{
		{13000, 9, 0, nil, ""}, {12030, 9, 0, nil, ""}, {12000, 8, 6, nil, ""}, {12080, 12, 0, nil, ""},
		{11080, 8, 9, cuda.ErrDriverTooOld, "for CUDA 11.8, and CUDA 12.0 is needed: install NVIDIA driver 525"},
		{12020, 9, 0, cuda.ErrDriverTooOld, "for CUDA 12.2, and CUDA 12.3 is needed: install NVIDIA driver 545"},
		{12080, 7, 5, cuda.ErrNoDevice, "compute capability 7.5, and 8.0 is needed"},
	} {
		err := Usable(cuda.Info{Name: "a card", Major: c.major, Minor: c.minor, DriverVersion: c.version})
		if !errors.Is(err, c.want) || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

// The PTX asks for no more than the constants say: PTX 8.x came with CUDA 12.x, up to 12.4.
func TestMinimum(t *testing.T) {
	for _, m := range kernels.Modules() {
		need := MinDriver
		if m.Arch == "sm_90a" {
			need = MinDriver90
		}
		if version, _, _ := strings.Cut(string(m.PTX), "\n"); version != fmt.Sprintf(".version 8.%d", need%1000/10) {
			t.Errorf("%s has %s, and CUDA %s is demanded", m.Name, version, Version(need))
		}
		if !m.Runs(MinMajor, 0) && m.Arch != "sm_90a" {
			t.Errorf("%s is for %s, and cards from %d.0 on are taken", m.Name, m.Arch, MinMajor)
		}
	}
}
