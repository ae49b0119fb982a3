package optim

import (
	"fmt"
	"math"

	"github.com/blockzero-net/bzd/training/exact"
)

// Shape is what the learning rate does after the warm-up.
type Shape string

// Shapes.
const (
	Linear   Shape = ""         // falls in a straight line and would reach zero after the last step
	Constant Shape = "constant" // stays
	Cosine   Shape = "cosine"   // falls by half a cosine and would reach zero after the last step
)

// Set reads a shape from a flag: linear, constant or cosine.
func (s *Shape) Set(text string) error {
	switch text {
	case "linear":
		*s = Linear
	case string(Constant), string(Cosine):
		*s = Shape(text)
	default:
		return fmt.Errorf("want linear, constant or cosine")
	}
	return nil
}

func (s Shape) String() string {
	if s == Linear {
		return "linear"
	}
	return string(s)
}

// Schedule gives the learning rate of step i of n, counted from 0.
type Schedule struct {
	Peak   float64
	Warmup int // steps of linear rise
	Shape  Shape
}

// LR rises linearly over the warm-up and then follows the shape.
func (s Schedule) LR(i, n int) float64 {
	if i < s.Warmup {
		return s.Peak * float64(i+1) / float64(s.Warmup+1)
	}
	switch s.Shape {
	case Constant:
		return s.Peak
	case Cosine:
		angle := float64(math.Pi*float64(i-s.Warmup)) / float64(n-s.Warmup)
		return s.Peak * float64(0.5+float64(0.5*exact.Cos(angle)))
	}
	return s.Peak * float64(n-i) / float64(n-s.Warmup)
}
