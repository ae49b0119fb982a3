// Package chaintest is the conformance suite of chain.Client: every implementation calls [RunAll] from its tests with a
// factory of fresh chains. It uses a [Chain]'s client for what the contract says and its other fields to move the chain on
// and to look at it from outside. It is linked into tests alone.
package chaintest
