// Tiles of the attention kernels to choose among; attention.py compiles and times them. D BM BN warps stages blocks.
#define FLASH_SWEEP
#include "../../training/cuda/kernels/flash.cu"

#define F(D, BM, BN, W, S, B) FORWARD(fwd_##D##_##BM##_##BN##_##W##_##S##_##B, D, BM, BN, W, S, B)
#define K(D, BM, BN, W, S, B) DKDV(dkdv_##D##_##BM##_##BN##_##W##_##S##_##B, D, BM, BN, W, S, B)
#define Q(D, BM, BN, W, S, B) QUERY(dq_##D##_##BM##_##BN##_##W##_##S##_##B, D, BM, BN, W, S, B)

F(128, 128, 64, 4, 1, 2)
F(128, 128, 32, 4, 1, 2)
F(128, 128, 32, 4, 2, 2)
F(128, 64, 64, 4, 1, 2)
F(128, 64, 64, 4, 1, 3)
F(64, 128, 64, 4, 1, 2)
F(64, 128, 128, 4, 1, 2)
F(64, 64, 64, 4, 1, 4)

K(128, 64, 64, 4, 1, 2)
K(128, 32, 64, 4, 1, 2)
K(128, 32, 64, 4, 2, 2)
K(128, 32, 128, 8, 2, 1)
K(64, 64, 128, 8, 2, 1)
K(64, 64, 128, 8, 1, 1)
K(64, 64, 64, 4, 1, 2)
K(64, 64, 64, 4, 2, 2)
K(64, 32, 64, 4, 2, 3)

Q(128, 64, 64, 4, 1, 2)
Q(128, 128, 32, 4, 2, 2)
Q(128, 128, 32, 4, 1, 2)
Q(128, 64, 32, 4, 2, 2)
Q(128, 64, 32, 4, 1, 3)
Q(64, 64, 64, 4, 1, 3)
Q(64, 128, 32, 4, 2, 2)
Q(64, 128, 64, 4, 1, 2)
Q(64, 64, 32, 4, 2, 3)
