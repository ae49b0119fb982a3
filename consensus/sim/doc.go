// Package sim runs a whole network of agreement machines in virtual time, seeded: latency, loss, partitions, skewed
// clocks, crashes at any Ready, validators that are offline, and adversaries as types.
//
// [Run] plays one [Config] and returns a [Result]: the transcript, every output, and everything anybody ever signed;
// [Result.Check] says in words which promise was broken. The same configuration gives the same transcript, byte for byte.
// What is derived is a small stand-in for the real functions: stake-weighted medians of three miners' gains.
//
// The package is for tests. It imports its own domain and internal/protocol; no clock, no global randomness.
package sim
