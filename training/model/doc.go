// Package model is the decoder-only mixture-of-experts transformer of several families that Hugging Face's transformers
// knows: RMSNorm, rotary embedding, grouped-query attention, a top-k softmax router, SwiGLU experts. What sets a [Family]
// apart (QK norm, biases, a shared expert, names of fields and tensors) is one table, in family.go.
//
// [Config] is config.json, [Config.Specs] the tensors by the names of qwen3_moe, which all of bzd uses, and
// [Config.Stored] the same as they are called and laid out in files. [Model] holds the weights on a backend and is safe
// for concurrent use while nobody trains it. A [Pass] holds the activations of one batch: Forward gives losses, Backward
// the gradients of what a [Trainable] names. With the hub frozen only the named experts and router rows have gradient
// buffers; input gradients flow through the rest and stop above the lowest layer that needs none.
//
// The package imports training/backend and training/exact; it reads no files and knows no network.
package model
