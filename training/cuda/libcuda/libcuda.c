// Finds the NVIDIA driver at run time. See README.md.
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include "libcuda.h"

// The two codes that the driver itself does not give for these reasons.
enum { ABSENT = 34 /* CUDA_ERROR_STUB_LIBRARY */, MISSING = 302 /* CUDA_ERROR_SHARED_OBJECT_SYMBOL_NOT_FOUND */ };

static int absent(void) { return ABSENT; }
static int missing(void) { return MISSING; }

static const char *const names[] = {
#define SYMBOL(name, index) #name,
#include "symbols.h"
#undef SYMBOL
};

// The table that the trampolines jump through.
__attribute__((visibility("hidden"))) int (*bzd_cuda_table[])(void) = {
#define SYMBOL(name, index) absent,
#include "symbols.h"
#undef SYMBOL
};

// Where distributions, containers and WSL put the driver if it is not on the loader's path.
static const char *const places[] = {
	"libcuda.so.1",
	"/usr/lib/wsl/lib/libcuda.so.1",
	"/usr/local/nvidia/lib64/libcuda.so.1",
	"/run/opengl-driver/lib/libcuda.so.1",
};

static pthread_once_t once = PTHREAD_ONCE_INIT;
static char reason[256];
static int status = ABSENT;

static void load(void) {
	void *lib = NULL;
	for (unsigned i = 0; lib == NULL && i < sizeof places / sizeof *places; i++) {
		lib = dlopen(places[i], RTLD_NOW | RTLD_GLOBAL);
		const char *e = lib == NULL ? dlerror() : NULL;
		if (e != NULL && i == 0) // the others only add noise
			snprintf(reason, sizeof reason, "%s", e);
	}
	if (lib == NULL)
		return;
	for (unsigned i = 0; i < sizeof names / sizeof *names; i++) {
		void *f = dlsym(lib, names[i]);
		bzd_cuda_table[i] = f != NULL ? (int (*)(void))f : missing;
	}
	int (*init)(unsigned) = (int (*)(unsigned))dlsym(lib, "cuInit");
	reason[0] = 0;
	status = init != NULL ? init(0) : MISSING;
}

int bzd_cuda_init(const char **why) {
	pthread_once(&once, load);
	*why = reason;
	return status;
}

int cuInit(unsigned flags) {
	(void)flags;
	return 0;
}
