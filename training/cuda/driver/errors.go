package driver

import (
	"errors"
	"fmt"

	"github.com/blockzero-net/bzd/training/cuda"
)

// What the embedded PTX needs.
const (
	MinDriver   = 12000 // CUDA version as the driver reports it, CUDA 12.0
	MinDriver90 = 12030 // on cards of compute capability 9.0, which have kernels of their own
	MinMajor    = 8     // compute capability: Ampere
)

// Usable says why a card cannot be used, or nil.
func Usable(i cuda.Info) error {
	need, release := MinDriver, 525
	if i.Major == 9 && i.Minor == 0 {
		need, release = MinDriver90, 545
	}
	if i.DriverVersion < need {
		return fmt.Errorf("%w: it is for CUDA %s, and CUDA %s is needed: install NVIDIA driver %d or later",
			cuda.ErrDriverTooOld, Version(i.DriverVersion), Version(need), release)
	}
	if i.Major < MinMajor {
		return fmt.Errorf("%w: %s has compute capability %d.%d, and %d.0 is needed (GeForce RTX 30, A100 or later)",
			cuda.ErrNoDevice, i.Name, i.Major, i.Minor, MinMajor)
	}
	return nil
}

// Version writes a version as NVIDIA numbers it, such as 12080, in words: 12.8.
func Version(v int) string { return fmt.Sprintf("%d.%d", v/1000, v%1000/10) }

// A cause is what a CUresult means.
type cause struct {
	code     int
	name     string // without CUDA_ERROR_
	sentinel error
	hint     string
}

const (
	dmesg    = "check dmesg for Xid messages of the NVIDIA driver"
	restart  = "start bzd again; if it happens again, " + dmesg
	ours     = "this is a bug of bzd: please report it with the command and the card's name"
	wrongPTX = "the kernels were not compiled for this card; " + ours
)

// causes are the codes with something to say about them; others are ErrLaunch.
var causes = []cause{
	{1, "INVALID_VALUE", cuda.ErrLaunch, ours},
	{2, "OUT_OF_MEMORY", cuda.ErrOutOfMemory, "end other programs on the card (nvidia-smi lists them) or ask for less, with a smaller batch"},
	{3, "NOT_INITIALIZED", cuda.ErrDeviceLost, "the driver was not started; " + ours},
	{4, "DEINITIALIZED", cuda.ErrDeviceLost, "the process is ending"},
	{34, "STUB_LIBRARY", cuda.ErrNoDriver, "no libcuda.so.1 on this machine: install the NVIDIA driver; in a container, run it with the NVIDIA runtime (--gpus all)"},
	{36, "CALL_REQUIRES_NEWER_DRIVER", cuda.ErrDriverTooOld, "install NVIDIA driver 545 or later"},
	{46, "DEVICE_UNAVAILABLE", cuda.ErrInUse, "another process holds the card in exclusive mode: end it (nvidia-smi lists it), or nvidia-smi -c DEFAULT"},
	{100, "NO_DEVICE", cuda.ErrNoDevice, "the driver sees no card: does nvidia-smi -L list one? is CUDA_VISIBLE_DEVICES empty or wrong?"},
	{101, "INVALID_DEVICE", cuda.ErrNoDevice, "no card of that number: nvidia-smi -L lists them"},
	{102, "DEVICE_NOT_LICENSED", cuda.ErrNoDevice, "the virtual GPU has no licence"},
	{200, "INVALID_IMAGE", cuda.ErrLaunch, wrongPTX},
	{201, "INVALID_CONTEXT", cuda.ErrLaunch, ours},
	{209, "NO_BINARY_FOR_GPU", cuda.ErrLaunch, wrongPTX},
	{214, "ECC_UNCORRECTABLE", cuda.ErrDeviceLost, "an uncorrectable ECC memory error: what was on the card is lost. nvidia-smi -q -d ECC counts them; reset or reboot, and replace the card if it comes again"},
	{218, "INVALID_PTX", cuda.ErrLaunch, wrongPTX},
	{220, "NVLINK_UNCORRECTABLE", cuda.ErrDeviceLost, "an uncorrectable NVLink error; " + dmesg},
	{221, "JIT_COMPILER_NOT_FOUND", cuda.ErrNoDriver, "the driver's PTX compiler, libnvidia-ptxjitcompiler.so.1, is missing: install the whole driver; in a container, NVIDIA_DRIVER_CAPABILITIES must have compute"},
	{222, "UNSUPPORTED_PTX_VERSION", cuda.ErrDriverTooOld, "it cannot read the kernels: install NVIDIA driver 545 or later"},
	{223, "JIT_COMPILATION_DISABLED", cuda.ErrNoDriver, "its PTX compiler is off: unset CUDA_DISABLE_PTX_JIT"},
	{302, "SHARED_OBJECT_SYMBOL_NOT_FOUND", cuda.ErrDriverTooOld, "it lacks a function: install NVIDIA driver 545 or later"},
	{304, "OPERATING_SYSTEM", cuda.ErrDeviceLost, "the operating system refused the driver: may this user open /dev/nvidia*? Else " + dmesg},
	{400, "INVALID_HANDLE", cuda.ErrLaunch, ours},
	{500, "NOT_FOUND", cuda.ErrLaunch, "no kernel of that name; " + ours},
	{700, "ILLEGAL_ADDRESS", cuda.ErrLaunch, "a kernel left its memory; " + ours},
	{701, "LAUNCH_OUT_OF_RESOURCES", cuda.ErrLaunch, "a kernel needs more registers or shared memory than the card has; " + ours},
	{702, "LAUNCH_TIMEOUT", cuda.ErrLaunch, "the card also drives a screen, and the watchdog ended a long kernel: use a card without a screen, or a smaller batch"},
	{709, "CONTEXT_IS_DESTROYED", cuda.ErrDeviceLost, "the card was reset; " + restart},
	{714, "HARDWARE_STACK_ERROR", cuda.ErrLaunch, ours},
	{715, "ILLEGAL_INSTRUCTION", cuda.ErrLaunch, ours},
	{716, "MISALIGNED_ADDRESS", cuda.ErrLaunch, ours},
	{717, "INVALID_ADDRESS_SPACE", cuda.ErrLaunch, ours},
	{718, "INVALID_PC", cuda.ErrLaunch, ours},
	{719, "LAUNCH_FAILED", cuda.ErrLaunch, "an exception on the card; " + dmesg},
	{721, "CONTAINED", cuda.ErrDeviceLost, "a contained memory error ended the work; " + restart},
	{800, "NOT_PERMITTED", cuda.ErrNoDevice, "not permitted: may this user open /dev/nvidia*? In a container, are the devices passed in?"},
	{801, "NOT_SUPPORTED", cuda.ErrNoDevice, "the card or its virtualisation lacks what was asked"},
	{802, "SYSTEM_NOT_READY", cuda.ErrNoDevice, "the system is not ready: on machines with NVSwitch, start nvidia-fabricmanager"},
	{803, "SYSTEM_DRIVER_MISMATCH", cuda.ErrDriverTooOld, "the kernel module and libcuda are of different versions: reboot after updating the driver"},
	{804, "COMPAT_NOT_SUPPORTED_ON_DEVICE", cuda.ErrDriverTooOld, "CUDA's compatibility package does not work with this card: install a newer driver instead"},
	{805, "MPS_CONNECTION_FAILED", cuda.ErrInUse, "the multi-process server does not answer: is nvidia-cuda-mps-control running?"},
	{807, "MPS_SERVER_NOT_READY", cuda.ErrInUse, "the multi-process server is recovering: try again"},
	{808, "MPS_MAX_CLIENTS_REACHED", cuda.ErrInUse, "the multi-process server has no place left"},
	{809, "MPS_MAX_CONNECTIONS_REACHED", cuda.ErrInUse, "the multi-process server has no place left"},
	{999, "UNKNOWN", cuda.ErrDeviceLost, dmesg + "; after a suspend, reload the module nvidia_uvm or reboot"},
}

// failure is the error for a CUresult other than 0; doing says what was asked, if that is not plain, and more adds what the
// driver said.
func failure(doing string, code int, more string) error {
	c := cause{code, fmt.Sprintf("CUresult %d", code), cuda.ErrLaunch, dmesg}
	for _, known := range causes {
		if known.code == code {
			c = known
			c.name = "CUDA_ERROR_" + c.name
		}
	}
	if more != "" {
		more = ": " + more
	}
	err := fmt.Errorf("%w: %s (%s%s)", c.sentinel, c.hint, c.name, more)
	if doing != "" {
		err = fmt.Errorf("%s: %w", doing, err)
	}
	return err
}

// sticky reports whether nothing can be done with the device after err.
func sticky(err error) bool {
	return errors.Is(err, cuda.ErrDeviceLost) || errors.Is(err, cuda.ErrLaunch)
}
