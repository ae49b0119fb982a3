// Package archtest keeps the architecture, as an ordinary Go test: who may import whom, which packages are pure, where
// clocks and randomness may come from, and the few rules of form that keep the tree readable.
//
// [Rules] lists every rule with its reason and what to do instead; [Load] parses a tree, [Check] applies the rules. The
// test runs them on this repository; a self test shows on small synthetic trees that each rule fires. The lists of
// composition roots, domains and pure packages stand at the top of layout.go: a new place for packages is added there
// and in the design, together.
//
// Rules look at syntax only, so every build tag is covered at once. They apply to files that are not tests, with one
// exception that says so. One test looks at machine code instead: that no sum of the exact packages is fused on ARM64.
//
// The package imports the standard library only.
package archtest
