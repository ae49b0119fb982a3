// Package safetensors reads and writes the safetensors format, byte for byte as the reference library does, and trusts
// nothing in a file.
//
// A file is an 8-byte little-endian header length, a JSON header that names each tensor with its dtype, shape and byte
// range, and the tensors' bytes one after another. docs/spec/checkpoint.md has the byte table.
//
// [Open] and [New] check the whole header before anything is used: sizes are bounded before they are allocated, the
// byte ranges must cover the file exactly, without holes or overlaps, and no key may appear twice. What is wrong comes
// back as a [*FormatError] that names file, tensor and field. [File] then hands out single tensors. [Write] produces
// one possible sequence of bytes for a set of tensors, whatever order they came in.
//
// Only F32 and BF16 convert to float32; the other dtypes can be listed and viewed as bytes. The package knows no models
// and imports no other package of this module but its JSON reader.
package safetensors
