//go:build !amd64 && !arm64

package cpu

func native() []ISA { return nil }

func nativeKernels(ISA) kernels { panic("cpu: no native kernels") }
