"""The layers of a post-filter, forward, with what the way back needs."""

import numpy as np

from tinc_codec.kernels import kernel
from tinc_codec.model.fused import affine

# With reassociation, last bits were seen to depend on where buffers lie, and the bytes with them.
FAST = {"nnan", "ninf", "nsz", "contract"}


@kernel(fastmath=FAST)
def forward(parameters, table, x, slope, z, n):  # type: ignore[no-untyped-def]
    """Evaluate the network on n samples; the output is z[0].

    x, slope [layer, row, sample]: inputs of each layer, those of the first given, and the slopes
    of the ReLUs that made them.
    """
    layers = len(table)
    for layer in range(layers):
        at, bias, n_out, n_in = table[layer]
        affine(parameters, at, bias, n_out, n_in, x[layer], z, n)
        if layer < layers - 1:
            for o in range(n_out):
                for s in range(n):
                    value = z[o, s]
                    positive = value > 0
                    x[layer + 1, o, s] = value if positive else np.float32(0)
                    slope[layer + 1, o, s] = np.float32(1) if positive else np.float32(0)
