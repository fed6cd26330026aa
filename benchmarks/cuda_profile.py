"""A few calls of one operator on the GPU, for a profiler to look at (scripts/gpu_check.sh profile).

ncu --set full -k regex:forward python benchmarks/cuda_profile.py --shape 64,64,128 --batch 16 --dtype float16
"""

from __future__ import annotations

import argparse

import torch

from centermask.nn import deform_conv2d


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="64,64,128", help="channels in, channels out, height = width")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--dtype", default="float16", choices=["float16", "bfloat16", "float32"])
    parser.add_argument("--layout", default="channels_last", choices=["channels_last", "row_major"])
    parser.add_argument("--backward", action="store_true", help="the gradients too")
    parser.add_argument("--calls", type=int, default=6)
    arguments = parser.parse_args()
    channels, filters, size = (int(part) for part in arguments.shape.split(","))
    dtype = getattr(torch, arguments.dtype)
    generator = torch.Generator("cuda").manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device="cuda")

    x = normal(arguments.batch, channels, size, size).to(dtype)
    if arguments.layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    weight = (normal(filters, channels, 3, 3) / (3 * channels**0.5)).to(dtype)
    offset = (2 * normal(arguments.batch, 18, size, size)).to(dtype)
    mask = torch.rand(arguments.batch, 9, size, size, generator=generator, device="cuda").to(dtype)
    inputs = [x, weight, offset, mask]
    if arguments.backward:
        inputs = [tensor.requires_grad_() for tensor in inputs]
    for _ in range(arguments.calls):
        y = deform_conv2d(*inputs, stride=1, padding=1)
        if arguments.backward:
            y.backward(torch.ones_like(y))
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
