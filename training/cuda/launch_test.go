package cuda_test

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/blockzero-net/bzd/training/cuda"
	"github.com/blockzero-net/bzd/training/cuda/cudatest"
	"github.com/blockzero-net/bzd/training/cuda/kernels"
	"github.com/blockzero-net/bzd/training/model"
)

var parameter = regexp.MustCompile(`\.param (?:\.align \d+ )?\.(\w+) \w+(\[128\])?`)

// declared lists the types of a kernel's parameters, as its PTX has them.
func declared(t *testing.T, name string, info cuda.Info) (types []string) {
	m, ok := kernels.Find(name, info.Major, info.Minor)
	if !ok {
		t.Fatalf("no kernel %s", name)
	}
	_, list, _ := strings.Cut(string(m.PTX), ".entry "+name+"(")
	list, _, _ = strings.Cut(list, ")")
	for _, p := range parameter.FindAllStringSubmatch(list, -1) {
		types = append(types, p[1]+p[2])
	}
	return types
}

// given lists the types of arguments likewise.
func given(args []any) (types []string) {
	for _, a := range args {
		switch a.(type) {
		case cuda.Ptr, int64, uint64:
			types = append(types, "u64")
		case int32, uint32:
			types = append(types, "u32")
		case float32:
			types = append(types, "f32")
		case cuda.TensorMap:
			types = append(types, "b8[128]")
		default:
			types = append(types, fmt.Sprintf("%T", a))
		}
	}
	return types
}

// TestArguments: what the host passes is what the PTX of kernels declares, on cards old and new.
func TestArguments(t *testing.T) {
	wide := planned
	wide.Layers, wide.Positions = 2, 16
	for _, major := range []int{8, 9} {
		for _, mode := range []cuda.Mode{cuda.Exact, cuda.Fast} {
			for what, c := range map[string]model.Config{"narrow": hostModel, "wide": wide} {
				t.Run(fmt.Sprintf("%d.0 %v %s", major, mode, what), func(t *testing.T) {
					o := cudatest.Options{Info: hostInfo}
					o.Info.Major, o.Info.SMs, o.Info.SharedPerCTA = major, 132, map[int]int{8: 166912, 9: 232448}[major]
					seen := map[string]bool{}
					o.OnLaunch = func(kernel string, args []any, memory func(cuda.Ptr) []byte) {
						finite(kernel, args, memory)
						if want, got := declared(t, kernel, o.Info), given(args); !seen[kernel] && !slices.Equal(want, got) {
							t.Errorf("%s takes %v, gets %v", kernel, want, got)
						}
						seen[kernel] = true
					}
					d := cudatest.New(o)
					b, err := cuda.New(d, cuda.Options{Mode: mode, Untried: true})
					if err != nil {
						t.Fatal(err)
					}
					if err := trainOn(b, c); err != nil {
						t.Fatal(err)
					}
					if err := d.Violations(); err != nil {
						t.Error(err)
					}
					if fused := seen["gemm_nn_grouped_swiglu_grad_sm90"]; fused != (major == 9 && mode == cuda.Fast) {
						t.Errorf("fused kernels of sm_90a used: %v", fused)
					}
					t.Log(len(seen), "kernels")
				})
			}
		}
	}
}
