// Package training is the miner's step loop: batches from sources, gradients from a model, steps of an optimizer.
//
// A [Job] is a run of a fixed number of steps. It is a function of its seeds: the same plan, sources and starting
// weights give the same bits on every machine, stopped and resumed or not. [Job.State] and [Job.Restore] carry it over a
// restart; [WriteState] and [ReadState] put the state into a file that is either whole or refused.
//
// Below it lie training/model (the transformer), training/optim (AdamW), training/data (text), training/tokenizer,
// training/delta (what a miner submits), training/backend and training/cpu (kernels). The package imports those, never
// content, validation or consensus.
package training
