package checkpoint

import (
	"fmt"
	"slices"
	"strings"

	"github.com/blockzero-net/bzd/content/checkpoint/safetensors"
)

const (
	// ConfigName is the model's configuration, the one document that every checkpoint has.
	ConfigName = "config.json"
	// IndexName maps tensors to files. Write generates it.
	IndexName = "model.safetensors.index.json"
	// SingleName is the only tensor file of a Hugging Face model without an index.
	SingleName = "model.safetensors"

	// MaxDocument is the longest document.
	MaxDocument = 64 << 20
	// MaxIndex is the longest index.
	MaxIndex = 256 << 20
	// MaxTensors is the most tensors of a checkpoint.
	MaxTensors = 1 << 20
	// MaxFiles is the most tensor files of a checkpoint. With names of maxFileName bytes the directory stays one block
	// below 256 KiB, where UnixFS implementations begin to shard it and CIDs begin to differ.
	MaxFiles = 1024
	// MaxShard is the most tensor bytes that Shards puts into one file, unless a single tensor is longer.
	MaxShard = 1 << 30

	tensorSuffix = ".safetensors"
	maxFileName  = 128
)

// documentNames are the files besides tensors and index that a checkpoint may hold, sorted. The list is closed: what
// else lies in a directory is a stray file.
var documentNames = []string{
	"LICENSE",
	"README.md",
	"added_tokens.json",
	"chat_template.jinja",
	ConfigName,
	"generation_config.json",
	"merges.txt",
	"protocol.cbor",
	"special_tokens_map.json",
	"tokenizer.json",
	"tokenizer.model",
	"tokenizer_config.json",
	"vocab.json",
}

// DocumentNames lists the documents that a checkpoint may hold.
func DocumentNames() []string { return slices.Clone(documentNames) }

func isDocument(name string) bool {
	_, ok := slices.BinarySearch(documentNames, name)
	return ok
}

// checkFileName says why a tensor file must not be called name. A name is one path element on every system: letters,
// digits, '.', '_' and '-', beginning with a letter or digit.
func checkFileName(name string) error {
	if len(name) > maxFileName {
		return fmt.Errorf("file name of %d bytes, want at most %d", len(name), maxFileName)
	}
	base, ok := strings.CutSuffix(name, tensorSuffix)
	if !ok || base == "" {
		return fmt.Errorf("file name %q, want one that ends in %s", name, tensorSuffix)
	}
	for i, c := range []byte(base) {
		letter := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
		if !letter && (i == 0 || c != '.' && c != '_' && c != '-') {
			return fmt.Errorf("file name %q holds %q, want letters, digits, '.', '_' and '-', no path", name, c)
		}
	}
	return nil
}

// Shards sorts tensors by name and cuts them into files prefix-00001.safetensors and so on, each with at most limit
// bytes of tensors, or one longer tensor. The cut depends on names and sizes only. limit <= 0 means [MaxShard].
func Shards(prefix string, limit int64, tensors []Tensor) []File {
	if limit <= 0 {
		limit = MaxShard
	}
	sorted := slices.Clone(tensors)
	slices.SortFunc(sorted, func(a, b Tensor) int { return strings.Compare(a.Name, b.Name) })
	var (
		files []File
		room  int64
	)
	for _, t := range sorted {
		if len(files) == 0 || t.Bytes() > room {
			files = append(files, File{Name: fmt.Sprintf("%s-%05d%s", prefix, len(files)+1, tensorSuffix)})
			room = limit
		}
		last := &files[len(files)-1]
		last.Tensors = append(last.Tensors, t)
		room -= t.Bytes()
	}
	return files
}

// The types and errors of the tensor files, under this package's name for callers that need no other.
type (
	// DType is an element type; see the constants below.
	DType = safetensors.DType
	// Tensor is a tensor to be written.
	Tensor = safetensors.Tensor
	// FormatError says what is wrong with a file of a checkpoint: its path, tensor and field.
	FormatError = safetensors.FormatError
	// NotFiniteError names a NaN or infinite weight.
	NotFiniteError = safetensors.NotFiniteError
)

// The dtypes that can be written.
const (
	F32  = safetensors.F32
	BF16 = safetensors.BF16
)

var (
	// ErrFormat is what every [*FormatError] is.
	ErrFormat = safetensors.ErrFormat
	// ErrNotFinite is what every [*NotFiniteError] is.
	ErrNotFinite = safetensors.ErrNotFinite
	// ErrNotExact: a value of a BF16 tensor is not a BF16 number.
	ErrNotExact = safetensors.ErrNotExact
	// ErrNoTensor: the checkpoint holds no tensor of that name.
	ErrNoTensor = safetensors.ErrNoTensor
)
