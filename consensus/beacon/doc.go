// Package beacon is the network's public randomness and its timelock: drand's quicknet scheme, on drand's own library.
//
// A beacon signs the number of each round with BLS on BLS12-381 ("bls-unchained-g1-rfc9380": signatures on G1, the public
// key on G2, the message SHA-256(round as 8 bytes, big endian)). Nobody can compute a round's signature before the beacon
// publishes it, everybody can check it with the [Public] key, and its hash is the round's [Randomness]. A seed that
// [Lock] sealed to a round opens with [Unlock] and that round's signature, with nobody's help.
//
// [Clock] says when which round is published, a [Source] fetches signatures, and a [Cache] waits for a round, verifies
// what a source brings and remembers it: take signatures from a Cache. [Key] is the secret of a one-key beacon, for the
// development chain. Whoever holds it reads every locked seed at once; quicknet's own key is shared among many operators
// and no [Key] exists for it.
//
// docs/spec/beacon.md gives the bytes. The package imports nothing of bzd. It reads no clock of its own: the time comes
// from a function in [CacheConfig].
package beacon
