// Package sim runs a whole network of agreement machines in virtual time, seeded: latency between regions, loss, partitions,
// skewed clocks, crashes at any Ready, validators that are offline, lines and processors that take their time, gossip, and
// adversaries as types.
//
// [Run] plays one [Config] and returns a [Result]: the transcript, every output, what everybody sent, and everything anybody
// ever signed; [Result.Check] says which promise was broken, by name. The same configuration gives the same transcript, byte
// for byte. [WAN] is the measurement that `bzd bench agreement` prints, [Tape] what one validator heard in one, for timing the
// machine alone. What is derived is a small stand-in for the real functions: stake-weighted medians of the miners' gains.
//
// Times of configurations are milliseconds, as the machine's; inside they are microseconds. The package imports its own
// domain and internal/protocol; no clock, no global randomness, no floating point.
package sim
