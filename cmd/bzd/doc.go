// Command bzd is the node of a permissionless network that trains one mixture-of-experts language model.
//
// This directory holds flags, signals, exit codes and what the user reads; the work is done by package node/local and
// below. Every command is a function of a context, its arguments and an [environment]; main only binds those to the
// process. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
package main
