package sim

import "testing"

func TestWANx(t *testing.T) {
	for _, direct := range []bool{true, false} {
		f, err := WAN{Validators: 64, Miners: 64, Packed: true, Direct: direct, Silent: 300, Loss: 50, Runs: 2, Seed: 1}.Measure(nil)
		t.Logf("%+v %v", f, err)
	}
}
