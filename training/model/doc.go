// Package model is the decoder-only mixture-of-experts transformer in the layout of Hugging Face's qwen3_moe: RMSNorm,
// rotary embedding, grouped-query attention with per-head QK norm, a top-k softmax router, SwiGLU experts.
//
// [Config] is config.json. [Model] holds the weights on a backend and is safe for concurrent use while nobody trains it.
// A [Pass] holds the activations of one batch: Forward gives losses, Backward the gradients of what a [Trainable]
// names. With the hub frozen only the named experts and router rows have gradient buffers; input gradients flow through
// the rest and stop above the lowest layer that needs none.
//
// The package imports training/backend and training/exact; it reads no files and knows no network.
package model
