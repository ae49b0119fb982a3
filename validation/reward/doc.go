// Package reward turns certified rows into pay. Its rule is R11: no statistic counts identities.
//
// [Aggregate] reduces what validators reported on the shards of one group to one [Score] per miner, by stake-weighted
// medians. [Pay] turns the scores of all groups into integer weights that sum to [Total] exactly, or are all zero if no
// miner proved a gain. Both are pure functions of their input and do not depend on its order.
//
// R11 has six steps per group, in order. Here are step 2 (a gain whose lower confidence bound is not above zero is worth
// nothing), step 5 in its power (pay in proportion to gain^p) and step 6 (normalise, times the group's genesis share;
// the share of a group that pays nobody goes to the others in proportion). The others need the decoded deltas and take
// their place in the list of steps in pay.go: near-duplicates before step 2, the norm clip and the momentum base before
// the gains are measured, the marginal factor after the power.
//
// The package imports the standard library and internal/protocol; it uses integers only, and no clock, disk, goroutine
// or randomness.
package reward
