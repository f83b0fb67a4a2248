"""Every published network, declared: where it starts, how the model changes, which loss, which callbacks, how long.

To add an experiment, add an entry to ``NETWORKS``. ``helpers.benchmark.run`` runs any of them, and every published number is a row
it wrote. A recipe whose settings change gets a new name, so that a row and its recipe always belong together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import pandas as pd
import torch
from torch import nn
from torch.nn import functional as F

from helpers import channels, low_rank, pruning, quantization
from helpers.benchmark import peers
from helpers.data import Data, Split
from helpers.evaluation import predict
from helpers.training import Callback


@dataclass(frozen=True)
class Lab:
    """What a change may look at besides the network.

    Attributes:
        data: the pictures.
        channel_scan: makes, or finds, what ``pruning.sensitivity(unit="channel")`` says of the network that the recipe starts from.
    """

    data: Data
    channel_scan: Callable[[], pd.DataFrame]


Change = Callable[[nn.Module, Lab], nn.Module]
TORCH, DEPLOYED = ("torch",), ("torch", "onnx", "onnx int8")
EVERYWHERE = (*DEPLOYED, "litert", "litert int8", "executorch", "coreml", "coreml int8", "torchserve")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One network.

    Attributes:
        start: an architecture of ``models.build``, or another recipe's name.
        change: the model: what is done to it before it is trained.
        teacher: the loss: the recipe whose network teaches; None: labels alone.
        temperature: of the soft targets.
        alpha: weight of the soft targets.
        callbacks: the step: what ``fit`` is given for this network.
        finish: what is done after training.
        epochs: passes over the training pictures; 0: not trained.
        fit: further arguments of ``fit``.
        pictures: training pictures, drawn stratified; None: all.
        prepare: what is done to the pictures, given the network that the recipe starts from and the seed.
        seeds: a run for each; the first one's network is what other recipes start from.
        exports: the file formats that are written and measured.
        split: what it is measured on: "validation" where a choice hangs on the result.
        reference: the recipe whose network it is compared with.
        file: its name in data/checkpoints, if it is shipped there.
        label: what README's table calls it; empty: it is not there.
        claimed: what is usually claimed: times smaller, points of accuracy lost, times faster.
    """

    start: str
    change: Change = field(default=lambda model, lab: model)
    teacher: str | None = None
    temperature: float = 4.0
    alpha: float = 0.9
    callbacks: Callable[[nn.Module], Sequence[Callback]] = field(default=lambda model: ())
    finish: Callable[[nn.Module], nn.Module] = field(default=lambda model: model)
    epochs: int = 0
    fit: Mapping[str, object] = field(default_factory=dict)
    pictures: int | None = None
    prepare: Callable[[Data, nn.Module, int], Data] = field(default=lambda data, model, seed: data)
    seeds: tuple[int, ...] = (0,)
    exports: tuple[str, ...] = DEPLOYED
    split: str = "test"
    reference: str = "teacher2"
    file: str | None = None
    label: str = ""
    claimed: tuple[float, float, float] | None = None

    @property
    def parents(self) -> tuple[str, ...]:
        """The other recipes whose networks this one is made from, taught by or compared with."""
        named = (self.start, self.teacher, self.reference)
        return tuple(dict.fromkeys(name for name in named if name in NETWORKS and NETWORKS[name] is not self))


# -- the model: changes ----------------------------------------------------------------------------------------------


def by_sensitivity(tolerance: float) -> Change:
    """Fewer channels: from each layer as many as it alone may lose at a cost of ``tolerance`` of the accuracy."""

    def change(model: nn.Module, lab: Lab) -> nn.Module:
        ratios = channels.ratios_by_sensitivity(lab.channel_scan(), tolerance)
        return channels.prune_channels(model, torch.zeros(1, 3, 32, 32), ratios)

    return change


def rank(times: float, times_macs: float | None = None, **options: object) -> Change:
    """Low rank: ``times`` fewer parameters and ``times_macs`` fewer MACs, chosen by what some pictures do."""

    def change(model: nn.Module, lab: Lab) -> nn.Module:
        settings = {"count": "both", "round_to": 8, "pictures": lab.data.train.take(slice(0, 300))} | options
        return low_rank.factorize(model, budget=(1 / times, 1 / (times_macs or times)), **settings)

    return change


def ranks_of_weights(times: float) -> Change:
    """Low rank with the ranks that the weights alone ask for, and factors that suit the pictures."""

    def change(model: nn.Module, lab: Lab) -> nn.Module:
        plan = low_rank.analyze(model, budget=1 / times, count="both")
        ranks = dict(plan[plan["worthwhile"]].set_index("layer")["rank"])
        return low_rank.factorize(model, ranks=ranks, pictures=lab.data.train.take(slice(0, 300)))

    return change


def at_once(sparsity: float) -> Change:
    """The smallest weights set to zero before the first step."""

    def change(model: nn.Module, lab: Lab) -> nn.Module:
        pruning.prune_once(model, sparsity)
        return model

    return change


def rounded(bits: int) -> Change:
    """The weights on a grid of so many bits."""
    return lambda model, lab: quantization.round_weights(model, bits)


def then(*changes: Change) -> Change:
    """One change after the other."""

    def change(model: nn.Module, lab: Lab) -> nn.Module:
        for one in changes:
            model = one(model, lab)
        return model

    return change


# -- the step: callbacks ---------------------------------------------------------------------------------------------


def gradual(
    sparsity: float, end: float = 0.7, start: float | None = None
) -> Callable[[nn.Module], Sequence[Callback]]:
    """Prune while training, from the zeros that are there (or from ``start``) to ``sparsity`` at ``end`` of the run."""

    def callbacks(model: nn.Module) -> Sequence[Callback]:
        weights = pruning.prunable(model).values()
        there = sum(int((weight == 0).sum()) for weight in weights) / sum(
            weight.numel() for weight in weights
        )
        initial = min(there, sparsity) if start is None else start
        return [pruning.GradualPruner(pruning.PolynomialSchedule(sparsity, initial, end=end))]

    return callbacks


# -- the pictures ----------------------------------------------------------------------------------------------------


def at_pixels(pixels: int) -> Callable[[Data, nn.Module, int], Data]:
    """Smaller pictures, each new pixel the mean of those it covers (progressive resizing; Tan and Le 2021, section 4)."""

    def smaller(split: Split) -> Split:
        resized = F.interpolate(split.images.float(), pixels, mode="area").round().to(torch.uint8)
        return replace(split, images=resized)

    def prepare(data: Data, model: nn.Module, seed: int) -> Data:
        return replace(
            data, **{name: smaller(getattr(data, name)) for name in ("train", "validation", "test")}
        )

    return prepare


def least_sure(hard: float, others: float) -> Callable[[Data, nn.Module, int], Data]:
    """The share of training pictures of which the network is least sure, and a random share of all from the rest.

    Chosen by its largest probability, never by the label: leaving out by the loss would leave the wrongly labelled ones in
    (on the order of learning: Toneva 2019).
    """

    def prepare(data: Data, model: nn.Module, seed: int) -> Data:
        order = predict(model, data.train, precision="auto").softmax(1).amax(1).argsort(stable=True)
        count, more = round(hard * len(order)), round(others * len(order))
        draw = torch.randperm(len(order) - count, generator=torch.Generator().manual_seed(seed))[:more]
        return replace(
            data, train=data.train.take(torch.cat([order[:count], order[count:][draw]]).sort().values)
        )

    return prepare


# -- the networks ----------------------------------------------------------------------------------------------------

FIRST = {"batch_size": 128, "lr": 0.1, "schedule": "one_cycle", "warmup": 0.2}
AGAIN = {
    "batch_size": 128,
    "lr": 0.05,
    "schedule": "one_cycle",
    "warmup": 0.1,
}  # a warm restart (Loshchilov and Hutter 2017)
PRUNED, LOW_RANK, COMBINED = (10, 2.1, 3.0), (3.3, 0.7, 2.3), (40, 2.8, 10.3)


def further(lr: float) -> dict[str, object]:
    """Return how a network that is trained already is trained on."""
    return {"batch_size": 128, "lr": lr, "warmup": 0.05}


TEACHERS = {
    "teacher1": Recipe(start="vgg19", epochs=15, fit=FIRST, exports=TORCH, reference="teacher1"),
    "teacher2": Recipe(
        start="teacher1", epochs=22, fit=AGAIN, seeds=(1,), prepare=least_sure(24 / 45, 8 / 45), exports=EVERYWHERE,
    ),
    "teacher": Recipe(
        start="teacher2", epochs=28, fit={**AGAIN, "cutout": 8, "compile": True}, seeds=(2,), exports=TORCH,
        reference="teacher", file="vgg19",
    ),
    "resnet50_16": Recipe(start="resnet50", epochs=8, fit=FIRST, prepare=at_pixels(16), exports=TORCH, reference="resnet50"),
    "resnet50_32": Recipe(
        start="resnet50_16", epochs=1, fit=AGAIN, pictures=32_000, exports=TORCH, reference="resnet50"
    ),
    "resnet50_24": Recipe(
        start="resnet50_32", epochs=4, fit=AGAIN, prepare=at_pixels(24), exports=TORCH, reference="resnet50"
    ),
    "resnet50": Recipe(start="resnet50_24", epochs=3, fit=AGAIN, exports=TORCH, reference="resnet50"),
}  # fmt: skip

STUDENT = {"batch_size": 128, "lr": 0.1}
STUDENTS = {
    "tiny45": Recipe(start="tiny_convnet", teacher="rank6", epochs=45, fit={**STUDENT, "warmup": 0.05}),
    "tiny": Recipe(
        start="tiny45", teacher="rank6", epochs=30, fit=further(0.05), label="distilled TinyConvNet", claimed=(20, 1.4, 8.1)
    ),
    "micro": Recipe(
        start="micro_convnet", teacher="rank6", epochs=45, fit={**STUDENT, "warmup": 0.05}, file="vgg19_micro_convnet",
        label="distilled MicroConvNet",
    ),
    "micro_alone": Recipe(start="micro_convnet", epochs=45, fit={**STUDENT, "warmup": 0.05}),
    **{
        f"micro12_{arm}": Recipe(
            start="micro_convnet", teacher=teacher, epochs=12, fit={**STUDENT, **more}, seeds=(0, 1, 2), exports=TORCH
        )
        for arm, teacher, more in (("alone", None, {}), ("smoothed", None, {"label_smoothing": 0.1}), ("taught", "rank6", {}))
    },
    **{
        f"tiny4000_{arm}": Recipe(
            start="tiny_convnet", teacher=teacher, epochs=8, fit={"batch_size": 64}, pictures=4_000, seeds=(0, 1, 2),
            exports=TORCH,
        )
        for arm, teacher in (("alone", None), ("taught", "teacher1"))
    },
    **{
        f"grid_t{temperature}_a{alpha}": Recipe(
            start="tiny_convnet", teacher="teacher1", temperature=temperature, alpha=alpha, epochs=3, fit={"batch_size": 64},
            pictures=2_000, exports=TORCH, split="validation",
        )
        for temperature in (1, 4, 16) for alpha in (0.1, 0.5, 0.9)
    },
}  # fmt: skip

COMPRESSED = {
    "dense": Recipe(start="teacher2", teacher="teacher2", epochs=3, fit=further(0.01), exports=TORCH),
    "pruned95_short": Recipe(start="teacher2", callbacks=gradual(0.95), epochs=1, fit=further(0.01), exports=TORCH),
    **{
        f"pruned{percent}": Recipe(
            start="teacher2", teacher="teacher2", callbacks=gradual(percent / 100, end=0.5), epochs=3, fit=further(0.01),
            file="vgg19_pruned95" if percent == 95 else None, label=f"pruned, {percent}% zeros", claimed=PRUNED,
        )
        for percent in (90, 95, 98)
    },
    "pruned95_at_once": Recipe(
        start="teacher2", change=at_once(0.95), teacher="teacher2", callbacks=gradual(0.95), epochs=3, fit=further(0.01),
        exports=TORCH,
    ),
    "channels20": Recipe(
        start="teacher2", change=by_sensitivity(0.2), epochs=10, fit=further(0.05), file="vgg19_channels20", label="fewer channels",
    ),
    "rank5": Recipe(start="teacher2", change=rank(5), epochs=3, fit=further(0.02), exports=TORCH),
    "rank5.5": Recipe(
        start="teacher2", change=rank(5.5, 3.1), teacher="teacher2", epochs=4, fit=further(0.005), exports=TORCH
    ),
    "rank6_short": Recipe(
        start="teacher2", change=rank(6, 3.3), teacher="teacher2", epochs=2, fit=further(0.005), exports=TORCH
    ),
    "rank6": Recipe(
        start="teacher2", change=rank(6, 3.3), teacher="teacher2", epochs=4, fit=further(0.005), file="vgg19_rank6",
        label="low rank", claimed=LOW_RANK,
    ),
    "lossless": Recipe(
        start="rank6", teacher="teacher2", callbacks=gradual(0.6), epochs=4, fit=further(0.005), file="vgg19_lossless",
        label="combined, nearly lossless", claimed=COMBINED,
    ),
    "combined75": Recipe(start="channels20", teacher="teacher2", callbacks=gradual(0.75), epochs=6, fit=further(0.02)),
    "combined": Recipe(
        start="combined75", teacher="teacher2", callbacks=gradual(0.8), epochs=2, fit=further(0.005), exports=EVERYWHERE,
        file="vgg19_combined", label="combined, smallest", claimed=COMBINED,
    ),
}  # fmt: skip

WAYS = {  # how ranks and factors are chosen, for the curve of lesson 03
    "weights": lambda times: rank(times, round_to=1, pictures=None),
    "schemes": lambda times: rank(times, round_to=1, pictures=None, scheme="auto"),
    "pictures": lambda times: rank(times, round_to=1),
    "ranks_of_weights": ranks_of_weights,
}
CURVE = {
    f"curve_{way}_{times:g}": Recipe(
        start="teacher", change=change(times), exports=TORCH, split="validation", reference="teacher"
    )
    for way, change in WAYS.items()
    for times in (1.5, 2, 3, 4, 5, 7, 10, 15, 20, 30)
}  # fmt: skip

TRAINED = {"teacher": "teacher2", "epochs": 1, "fit": further(0.005), "pictures": 12_800}
FOUR = rank(4)
ORDERS = {  # the same three steps in another order; the last rounding is the export's
    "order_factorize": Recipe(start="teacher2", change=FOUR, **TRAINED, exports=TORCH),
    "order_factorize_prune": Recipe(start="order_factorize", callbacks=gradual(0.6), **TRAINED),
    "order_prune": Recipe(start="teacher2", callbacks=gradual(0.6), **TRAINED, exports=TORCH),
    "order_prune_factorize": Recipe(start="order_prune", change=FOUR, **TRAINED),
    "order_round_factorize": Recipe(
        start="teacher2", change=then(rounded(8), FOUR), **TRAINED, exports=TORCH
    ),
    "order_round_factorize_prune": Recipe(start="order_round_factorize", callbacks=gradual(0.6), **TRAINED),
}
BESIDE = {"start": "teacher2", **TRAINED, "pictures": 6_400}
PEERS = {  # our methods and those of well-known libraries, from the same network, trained on alike
    "zeros_torch": Recipe(change=peers.torch_prune(0.9), finish=peers.settled, **BESIDE),
    "zeros_ours": Recipe(callbacks=gradual(0.9), **BESIDE),
    "channels_torch_pruning": Recipe(change=peers.as_few_macs(by_sensitivity(0.05)), **BESIDE),
    "channels_ours": Recipe(change=by_sensitivity(0.05), **BESIDE),
    "rank_tensorly": Recipe(change=peers.tucker(4), **BESIDE),
    "rank_ours": Recipe(change=rank(4, count="parameters"), **BESIDE),
}
NETWORKS: dict[str, Recipe] = {**TEACHERS, **STUDENTS, **COMPRESSED, **CURVE, **ORDERS, **PEERS}
