// Package driver binds the NVIDIA driver: [Open] gives one card as a cuda.Driver, [List] says which cards there are.
//
// It is built with the tag cuda (make cuda), on gorgonia.org/cu for what that package has and on the driver API for the
// rest. Without the tag both functions answer cuda.ErrNoDriver. A binary with the tag starts on machines without a driver
// as well: see ../libcuda.
//
// A card is used through its primary context. Calls may come from any goroutine: each makes the context current on the
// thread that it runs on. Every failure is a CUresult, which [Usable] and the calls turn into the errors of package cuda
// with a hint for whoever looks after the machine.
//
// The package imports training/cuda and gorgonia.org/cu, nothing else of bzd.
package driver
