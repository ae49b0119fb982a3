// Package blockstoretest is the suite that every block store of the network passes. [RunAll] takes a function that opens
// an empty store. It tests what the boxo interface promises, so boxo's own store in memory passes it too; what only one
// implementation promises is tested there.
package blockstoretest
