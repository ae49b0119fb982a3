package checkpoint

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"github.com/blockzero-net/bzd/content/checkpoint/internal/strictjson"
)

// index is the content of model.safetensors.index.json.
type index struct {
	totalSize int64             // bytes of all tensors; -1 where the file does not say, or not as an integer
	files     map[string]string // tensor to file name
}

// encode returns the file's one spelling: keys sorted, two spaces of indent, a line end at the end, as
// json.dumps(index, indent=2, sort_keys=True) writes it. Names must have passed their checks, which leave nothing to
// escape.
func (x index) encode() []byte {
	var b bytes.Buffer
	b.WriteString("{\n  \"metadata\": {\n    \"total_size\": " + strconv.FormatInt(x.totalSize, 10) + "\n  },\n  \"weight_map\": {")
	for i, name := range slices.Sorted(maps.Keys(x.files)) {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString("\n    \"" + name + "\": \"" + x.files[name] + "\"")
	}
	b.WriteString("\n  }\n}\n")
	return b.Bytes()
}

// parseIndex reads an index. Every file name it returns is a single safe path element. path stands for the file in
// errors.
func parseIndex(path string, data []byte) (index, error) {
	x := index{totalSize: -1}
	var tensor, field string
	refuse := func(err error) error {
		var format *FormatError
		if errors.As(err, &format) {
			return err
		}
		var dup *strictjson.DuplicateKeyError
		if errors.As(err, &dup) {
			if field == "weight_map" {
				tensor = dup.Key
			} else {
				field = dup.Key
			}
		}
		return &FormatError{File: path, Tensor: tensor, Field: field, Reason: err.Error()}
	}
	dec, err := strictjson.New(data)
	if err != nil {
		return x, refuse(err)
	}
	seen := make(map[string]struct{})
	err = dec.Object(func(key string) error {
		field = key
		var err error
		switch key {
		case "metadata":
			err = dec.Object(func(key string) error {
				field = "metadata." + key
				v, err := dec.Scalar()
				if n, ok := v.(json.Number); ok && key == "total_size" {
					if size, err := strconv.ParseInt(string(n), 10, 64); err == nil {
						x.totalSize = size
					}
				}
				return err
			})
		case "weight_map":
			x.files = make(map[string]string)
			err = dec.Object(func(name string) error {
				tensor = name
				if len(x.files) == MaxTensors {
					return fmt.Errorf("more than %d tensors", MaxTensors)
				}
				file, err := dec.String()
				if err != nil {
					return err
				}
				if err := checkFileName(file); err != nil {
					return err
				}
				if seen[file] = struct{}{}; len(seen) > MaxFiles {
					return fmt.Errorf("more than %d files", MaxFiles)
				}
				x.files[name] = file
				tensor = ""
				return nil
			})
		default:
			err = errors.New("unknown field")
		}
		if err != nil {
			return refuse(err)
		}
		field = ""
		return nil
	})
	if err == nil {
		err = dec.End()
	}
	if err == nil && len(x.files) == 0 {
		field, err = "weight_map", errors.New("missing or empty")
	}
	if err != nil {
		return x, refuse(err)
	}
	return x, nil
}
