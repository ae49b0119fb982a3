package tokenizer

import (
	"errors"
	"fmt"
)

// VocabSize is the number of tokens.
const VocabSize = 256

// ErrToken means an id is not that of a token.
var ErrToken = errors.New("not a token id")

// Encode returns one id per byte of text.
func Encode(text []byte) []int32 {
	ids := make([]int32, len(text))
	for i, b := range text {
		ids[i] = int32(b)
	}
	return ids
}

// Decode inverts [Encode]. An id outside [0, 256) is an [ErrToken].
func Decode(ids []int32) ([]byte, error) {
	text := make([]byte, len(ids))
	for i, id := range ids {
		if id < 0 || id >= VocabSize {
			return nil, fmt.Errorf("tokenizer: %w: %d at position %d, want 0 to %d", ErrToken, id, i, VocabSize-1)
		}
		text[i] = byte(id)
	}
	return text, nil
}
