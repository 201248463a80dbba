"""What the memory format of the weights is worth: a training step at bf16 in both, side by side, by network.

    python tests/benchmarks/layout.py [--rounds 5] [--batch 64] [--device cpu] [NETWORK ...]

Process seconds on one CPU thread (wall seconds on a GPU), the fastest of the rounds.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from rd3.datasets import dataset_info
from rd3.device import lay_out, usable_device
from rd3.models import build_network
from rd3.seeding import generator

NETWORKS = (
    "resnet18", "resnet18_w16", "wrn_16_2", "mobilenet_v2", "shufflenet_v2_x0_5", "alexnet", "convnet",
    "convnet_in", "convnet_d1", "convnet_d2", "convnet_w32",
)  # fmt: skip


def step_of(network: torch.nn.Module, pixels: torch.Tensor, labels: torch.Tensor) -> Callable[[], float]:
    """A training step without its optimiser; seconds."""
    device = pixels.device
    clock = time.process_time if device.type == "cpu" else time.perf_counter

    def step() -> float:
        start = clock()
        with torch.autocast(device.type, dtype=torch.bfloat16):
            logits = network(pixels)
        F.cross_entropy(logits.float(), labels).backward()
        float(logits.detach().sum())  # waits for a GPU
        return clock() - start

    return step


def main(names: list[str], batch: int, rounds: int, device: torch.device) -> None:
    torch.set_num_threads(1)
    info = dataset_info("cifar10")
    pixels = torch.rand(batch, 3, 32, 32, device=device)
    labels = torch.arange(batch, device=device) % info.num_classes
    for name in names:
        built = build_network(name, info.num_classes, 32, info.normalisation, generator(0, "init")).to(device).train()
        last, ours = copy.deepcopy(built).to(memory_format=torch.channels_last), copy.deepcopy(built)
        lay_out(ours, "bf16")
        networks = {"as built": built, "channels last": last, "lay_out": ours}
        steps = {label: step_of(network, pixels, labels) for label, network in networks.items()}
        for step in steps.values():
            step()
        seconds = {label: min(step() for _ in range(rounds)) for label, step in steps.items()}
        fastest = min(seconds["as built"], seconds["channels last"])
        print(f"{name:20}" + "".join(f"{label} {took:.3f} s  " for label, took in seconds.items()), end="")
        print(f"channels last x {seconds['channels last'] / seconds['as built']:.2f}, ours x ", end="")
        print(f"{seconds['lay_out'] / fastest:.2f} of the faster", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    chosen = parser.parse_args()
    main(chosen.networks, chosen.batch, chosen.rounds, usable_device(chosen.device))
