// Package node is the running node: it puts the parts together.
package node
