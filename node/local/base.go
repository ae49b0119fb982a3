package local

import (
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed" // the base model
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"math/rand/v2"
	"strings"

	"encoding/binary"

	"github.com/blockzero-net/bzd/content/checkpoint/safetensors"
	"github.com/blockzero-net/bzd/training"
	"github.com/blockzero-net/bzd/training/backend"
	"github.com/blockzero-net/bzd/training/data"
	"github.com/blockzero-net/bzd/training/model"
	"github.com/blockzero-net/bzd/training/optim"
)

//go:embed base/base.safetensors
var baseWeights []byte

//go:embed base/recipe.json
var baseRecipe []byte

// Recipe is how a base model was made: together with the dataset it determines every bit of the weights.
type Recipe struct {
	Command string `json:"command"` // reproduces the weights
	Go      string `json:"go"`      // version whose GOROOT the text came from
	Dataset string `json:"dataset"` // CID of the general text
	Domain  string `json:"domain"`  // its name
	Seed    string `json:"seed"`
	Digest  string `json:"sha256"` // of the weights file

	Steps        int     `json:"steps"`
	Batch        int     `json:"batch"` // sequences per step
	Seq          int     `json:"sequence"`
	LearningRate float64 `json:"learning_rate"`
	Warmup       int     `json:"warmup"`
	Balance      float64 `json:"balance"` // coefficient of the load-balance loss

	Config json.RawMessage `json:"config"` // config.json of the model
}

// DefaultRecipe trains the demo model on about two million tokens, the learning rate falling to zero at the end.
func DefaultRecipe() Recipe {
	c := model.Config{Vocab: 256, Dim: 96, Layers: 4, Heads: 4, KVHeads: 2, HeadDim: 32, Experts: 8, TopK: 2, Width: 192,
		Positions: 128, Normalize: true, RopeTheta: 10000, NormEps: 1e-6, AuxCoef: 0.01}
	return Recipe{
		Command: "bzd genesis train", Domain: data.Prose, Seed: "bzd genesis 1",
		Steps: 1953, Batch: 8, Seq: 128, LearningRate: 3e-3, Warmup: 40, Balance: 0.01, Config: c.JSON(),
	}
}

func (r Recipe) plan() training.Plan {
	return training.Plan{Steps: r.Steps, Batch: r.Batch, Seq: r.Seq, Balance: r.Balance,
		Schedule: optim.Schedule{Peak: r.LearningRate, Warmup: r.Warmup}}
}

// EmbeddedRecipe is the recipe of the base model that this binary carries.
func EmbeddedRecipe() (Recipe, error) {
	var r Recipe
	if err := json.Unmarshal(baseRecipe, &r); err != nil {
		return Recipe{}, fmt.Errorf("embedded recipe: %w", err)
	}
	return r, nil
}

// EmbeddedBase loads the base model that this binary carries, after comparing its digest with the recipe's.
func EmbeddedBase(b backend.Backend) (*model.Model, error) {
	r, err := EmbeddedRecipe()
	if err != nil {
		return nil, err
	}
	if sum := digest(baseWeights); sum != r.Digest {
		return nil, fmt.Errorf("embedded base model has digest %s, its recipe says %s; run `make genesis`", sum, r.Digest)
	}
	c, err := model.ParseConfig(r.Config)
	if err != nil {
		return nil, err
	}
	f, err := safetensors.New("embedded base.safetensors", bytes.NewReader(baseWeights), int64(len(baseWeights)))
	if err != nil {
		return nil, err
	}
	return model.New(b, c, func(s model.Spec, dst []float32) error { return readTensor(f, s, dst) })
}

// SameBase reports whether weights are the embedded ones.
func SameBase(weights []byte) (bool, error) {
	r, err := EmbeddedRecipe()
	return digest(weights) == r.Digest && bytes.Equal(weights, baseWeights), err
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// seedOf derives a seed for one purpose from a text seed.
func seedOf(purpose, text string, more ...string) [32]byte {
	return sha256.Sum256([]byte(strings.Join(append([]string{"bzd/" + purpose, text}, more...), "\x00")))
}

// initial fills a tensor of a new model: norms are one, matrices uniform with standard deviation ½/√in (embedding ¼), the
// two projections that write to the residual stream smaller by √(2·layers). The values come from PCG seeded by the
// tensor's name, 24 bits each.
func initial(c model.Config, seed string) model.Source {
	return func(s model.Spec, dst []float32) error {
		if len(s.Shape) == 1 {
			for i := range dst {
				dst[i] = 1
			}
			return nil
		}
		std := 0.5 / math.Sqrt(float64(s.Shape[1]))
		switch {
		case s.Name == "model.embed_tokens.weight":
			std = 0.25
		case strings.HasSuffix(s.Name, "o_proj.weight"), strings.HasSuffix(s.Name, "down_proj.weight"):
			std /= math.Sqrt(float64(2 * c.Layers))
		}
		scale := float32(std * math.Sqrt(12))
		k := seedOf("init", seed, s.Name)
		g := rand.NewPCG(binary.LittleEndian.Uint64(k[:]), binary.LittleEndian.Uint64(k[8:]))
		for i := range dst {
			dst[i] = (float32(float32(g.Uint64()>>40)/(1<<24)) - 0.5) * scale
		}
		return nil
	}
}

// TrainBase trains a base model on general text from nothing and returns its weights, rounded to bf16, as a safetensors
// file. statePath, if not empty, is where an interrupted run is saved and found again; the
// caller removes that file when the weights are safe.
func TrainBase(ctx context.Context, b backend.Backend, r Recipe, text *data.Dataset, statePath string, report func(training.Progress)) ([]byte, error) {
	c, err := model.ParseConfig(r.Config)
	if err != nil {
		return nil, err
	}
	m, err := model.New(b, c, initial(c, r.Seed))
	if err != nil {
		return nil, err
	}
	all := m.TrainAll()
	o, err := optim.New(b, optim.Defaults(), all.Params())
	if err != nil {
		return nil, err
	}
	src, err := newSource(text, seedOf("order", r.Seed), r.Seq+1, r.Seq, Tokenizer{})
	if err != nil {
		return nil, err
	}
	job, err := training.NewJob(m, all, o, r.plan(), src, nil)
	if err != nil {
		return nil, err
	}
	r.Command, r.Go, r.Digest = "", "", "" // what they say does not change the run
	r.Dataset = text.CID().String()
	id, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	if err := runSaved(ctx, job, sha256.Sum256(id), statePath, nil, false, report); err != nil {
		return nil, err
	}
	var tensors []safetensors.Tensor
	for _, s := range m.Specs() {
		v := m.Read(s.Name)
		for i := range v {
			v[i] = safetensors.RoundBF16(v[i])
		}
		tensors = append(tensors, tensorOf(s, safetensors.BF16, v))
	}
	var out bytes.Buffer
	if err := safetensors.Write(&out, tensors); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// saveEvery is after how many steps a run with a state file saves itself, unless told otherwise.
const saveEvery = 200

// runSaved runs a job, continuing from its state file if there is one, saving when it is due (nil: now and then) and when
// ctx ends, with keep also when it is done.
func runSaved(ctx context.Context, job *training.Job, id [32]byte, path string, due func(training.Progress) bool, keep bool, report func(training.Progress)) error {
	if due == nil {
		due = func(p training.Progress) bool { return p.Step%saveEvery == 0 }
	}
	if path == "" {
		return job.Run(ctx, report)
	}
	s, err := training.ReadState(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return fmt.Errorf("%w (delete the file to start over)", err)
	default:
		if err := job.Restore(id, s); err != nil {
			return fmt.Errorf("%s: %w (delete the file to start over)", path, err)
		}
	}
	var failed error
	stop, cancel := context.WithCancel(ctx)
	defer cancel()
	err = job.Run(stop, func(p training.Progress) {
		if report != nil {
			report(p)
		}
		if p.Step < p.Steps && due(p) || keep && p.Step == p.Steps {
			if failed = training.WriteState(path, job.State(id)); failed != nil {
				cancel()
			}
		}
	})
	if failed != nil {
		return failed
	}
	if err != nil && ctx.Err() != nil {
		return errors.Join(err, training.WriteState(path, job.State(id)))
	}
	return err
}

// WriteBase writes the two files that this package embeds.
func WriteBase(weights, recipe io.Writer, r Recipe, text *data.Dataset, goVersion string, b []byte) error {
	r.Dataset, r.Go, r.Digest = text.CID().String(), goVersion, digest(b)
	j, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if _, err := weights.Write(b); err != nil {
		return err
	}
	_, err = recipe.Write(append(j, '\n'))
	return err
}
