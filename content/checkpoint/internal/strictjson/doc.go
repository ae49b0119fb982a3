// Package strictjson reads the JSON of checkpoint files token by token, so that what a file says has one meaning.
//
// encoding/json forgives what a checkpoint must not contain: a key given twice (the last one wins), invalid UTF-8
// (replaced), numbers with fractions where a byte offset belongs, unknown fields. [Decoder] refuses all of it. It never
// skips over a value and never recurses by itself: nesting goes exactly as deep as the calling code asks for, however
// deep the input is.
package strictjson
