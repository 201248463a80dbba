"""The effect of the weights' memory format: a training step at bf16 and fp32, by network.

Our weights are as :func:`rd3.device.set_memory_format` leaves them, those of the reference as they are built (NCHW);
the step, without an optimiser, is otherwise the same.  The note has the speed-up by channels last, whether we use it or
not.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F

from benchmarks.bench import Bench, Job, Row, Work, ratio
from benchmarks.students import memory_format, untrained
from rd3.datasets import dataset_info
from rd3.device import autocast, bf16_in_hardware, repeatable_kernels, set_memory_format
from rd3.models import forward_cost

NETWORKS = (
    "resnet18", "resnet18_w16", "wrn_16_2", "mobilenet_v2", "shufflenet_v2_x0_5", "alexnet", "convnet",
    "convnet_in", "convnet_d1", "convnet_d2", "convnet_w32",
)  # fmt: skip
QUICK_NETWORKS = ("resnet18", "resnet18_w16", "convnet_in")
BATCH = 64


def run(bench: Bench) -> list[Row]:
    """Every network, with ``--quick`` few, at every precision of this hardware."""
    precisions = ["bf16", "fp32"] if bf16_in_hardware(bench.device) else ["fp32"]
    return [row_of(bench, name, each) for name in (QUICK_NETWORKS if bench.quick else NETWORKS) for each in precisions]


def row_of(bench: Bench, name: str, precision: str, batch: int = BATCH) -> Row:
    """One network at one precision."""
    info, device = dataset_info("cifar10"), bench.device
    pixels = torch.rand(batch, 3, 32, 32, device=device)
    labels = torch.arange(batch, device=device) % info.num_classes
    plain = untrained(info, name).to(device).train()
    last, ours = copy.deepcopy(plain).to(memory_format=torch.channels_last), copy.deepcopy(plain)
    set_memory_format(ours, precision)
    networks = {"as built": plain, "channels last": last, "ours": ours}
    with repeatable_kernels():
        spent = bench.compare({name: steps_of(one, pixels, labels, precision) for name, one in networks.items()})
    job = Job("layout", f"{name}, {precision}", "step", batch, batch, 3e-9 * batch * forward_cost(name, 10, 32).flops)
    note = f"channels last x {ratio(spent['as built'], spent['channels last']):.2f}"
    form = memory_format(ours)
    return bench.row(job, spent["ours"], spent["as built"], dtype=precision, layout=form, note=note)


def steps_of(network: torch.nn.Module, pixels: torch.Tensor, labels: torch.Tensor, precision: str) -> Work:
    """Forward and backward passes: one on a CPU, where it takes long enough to time, else twenty."""
    count = 1 if pixels.device.type == "cpu" else 20

    def steps() -> int:
        for _step in range(count):
            with autocast(pixels.device, precision):
                logits = network(pixels)
            F.cross_entropy(logits.float(), labels).backward()
        return count

    return steps
