// Package checkpoint reads and writes model checkpoints: directories in Hugging Face layout that have one CID.
//
// A checkpoint holds config.json, tokenizer files, an opaque protocol.cbor, safetensors files, and
// model.safetensors.index.json, which says what tensor lies in what file. `transformers` loads it as it stands.
// docs/spec/checkpoint.md is the exact format.
//
// [Write] makes a checkpoint out of [Contents], all of it or nothing, and returns its CID: the root of a UnixFS
// directory, the same on every machine. [Open] checks a directory and maps its tensors; it also opens a plain Hugging
// Face model of one or more files, for import. [OpenStrict] also refuses files that belong to no checkpoint, because
// they would change the CID. [RootCID] computes the CID; [Blocks] hands out the blocks of the same DAG for publishing.
// [Copy] exports a checkpoint.
//
// The package knows nothing about models: a tensor is a name, a dtype, a shape and values, and the caller says which
// file it goes to ([Shards] cuts what has no file of its own). Trainable tensors are F32, the hub BF16, by the caller's
// choice. It must never import another domain package. It reads no clock and starts no goroutine.
package checkpoint
