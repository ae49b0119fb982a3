package local_test

import (
	"strings"
	"testing"

	"github.com/blockzero-net/bzd/node/local"
)

// TestLoadToTrain: what is loaded for one run alone trains to the same delta, in pieces and with recomputation too.
func TestLoadToTrain(t *testing.T) {
	w := tinyWorld(t)
	for _, change := range []func(*local.TrainOptions){
		func(*local.TrainOptions) {},
		func(o *local.TrainOptions) { o.Recompute = true },
		func(o *local.TrainOptions) { o.Micro, o.Recompute = 1, true },
	} {
		o := brief(ledger, "frozen")
		change(&o)
		want := w.train(t, o)
		p, err := local.LoadToTrain(w.b, w.dir, ledger)
		if err != nil {
			t.Fatal(err)
		}
		got, _, err := local.Train(t.Context(), w.n, p, o, nil)
		if err != nil {
			t.Fatal(err)
		}
		if !sameDelta(t, got, want) {
			t.Errorf("%+v: another delta than from the whole checkpoint", o)
		}
	}
	if _, err := local.LoadToTrain(w.b, w.dir, "nobody"); err == nil || !strings.Contains(err.Error(), "nobody") {
		t.Errorf("a group that is not there: %v", err)
	}
}

func TestOutline(t *testing.T) {
	w := tinyWorld(t)
	c, refs, err := local.Outline(w.dir, ledger)
	if err != nil {
		t.Fatal(err)
	}
	if c != w.p.Model.Config || len(refs) == 0 {
		t.Errorf("%+v with experts %v, the model is %+v", c, refs, w.p.Model.Config)
	}
	if _, err := w.p.Model.TrainGroup(refs); err != nil {
		t.Error(err)
	}
}
