// One jump through the table per function. All argument registers reach the driver as the caller left them.
#if defined(__x86_64__)
#define SYMBOL(name, index) \
	.globl name; .type name, %function; .p2align 3; name: jmp *bzd_cuda_table + 8*index(%rip); .size name, . - name
#elif defined(__aarch64__)
#define SYMBOL(name, index) \
	.globl name; .type name, %function; .p2align 2; name: adrp x16, bzd_cuda_table + 8*index; \
	ldr x16, [x16, #:lo12:bzd_cuda_table + 8*index]; br x16; .size name, . - name
#else
#error "libcuda.a can be built for amd64 and arm64"
#endif

	.text
#include "symbols.h"
	.section .note.GNU-stack, "", %progbits
