"""What recipes are made of: changes of the model, callbacks for the step, preparations of the pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers import channels, low_rank, models, pruning
from helpers.data import Data, Split
from helpers.distillation import shuffle_wrong
from helpers.evaluation import predict
from helpers.training import Callback


@dataclass(frozen=True)
class Lab:
    """What a change may look at besides the network.

    Attributes:
        data: the pictures.
        channel_scan: finds, or measures, how sensitive each layer's channels are in the network at the start.
        narrow: whether the network is a trial's, a quarter as wide: ranks then need not be multiples of 8.
    """

    data: Data
    channel_scan: Callable[[], pd.DataFrame]
    narrow: bool = False


Change = Callable[[nn.Module, Lab], nn.Module]
Prepare = Callable[
    [Data, nn.Module, int], Data
]  # given the network that the recipe starts from, and the seed


# -- the model -------------------------------------------------------------------------------------------


def by_sensitivity(tolerance: float) -> Change:
    """Fewer channels: from each layer as many as it alone may lose at ``tolerance`` of the accuracy."""

    def change(model: nn.Module, lab: Lab) -> nn.Module:
        ratios = channels.ratios_by_sensitivity(lab.channel_scan(), tolerance)
        return channels.prune_channels(model, lab.data.test.images[:1].float(), ratios)

    return change


def rank(times: float, times_macs: float | None = None, **options: object) -> Change:
    """Low rank: ``times`` fewer parameters and ``times_macs`` fewer MACs, chosen by what some pictures do."""

    def change(model: nn.Module, lab: Lab) -> nn.Module:
        few = lab.data.train.take(slice(0, 300))
        settings = {"count": "both", "round_to": 1 if lab.narrow else 8, "pictures": few} | options
        both = (1 / times, 1 / (times_macs or times))
        return low_rank.factorize(model, budget=both if settings["count"] == "both" else both[0], **settings)

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


def whitened(model: nn.Module, lab: Lab) -> nn.Module:
    """A fast_convnet whose first layer is computed from the pictures."""
    return models.whiten(model, lab.data.train)


def uniform(ratio: float) -> Change:
    """The same share of channels gone from every layer."""
    return lambda model, lab: channels.prune_channels(model, lab.data.test.images[:1].float(), ratio)


# -- the loss --------------------------------------------------------------------------------------------


class Shuffled(nn.Module):
    """A teacher whose wrong classes change places by chance each time it is asked: see ``shuffle_wrong``."""

    def __init__(self, teacher: nn.Module) -> None:
        super().__init__()
        self.teacher = teacher

    def forward(self, images: Tensor) -> Tensor:
        """Return its logits, B x classes: the largest stays, the others are shuffled."""
        return shuffle_wrong(self.teacher(images))


# -- the step --------------------------------------------------------------------------------------------


def gradual(sparsity: float, end: float = 0.7) -> Callable[[nn.Module], Sequence[Callback]]:
    """Prune while training, from the zeros that are there to ``sparsity`` at ``end`` of the run."""

    def callbacks(model: nn.Module) -> Sequence[Callback]:
        weights = pruning.prunable(model).values()
        there = sum(int((weight == 0).sum()) for weight in weights) / sum(
            weight.numel() for weight in weights
        )
        schedule = pruning.PolynomialSchedule(sparsity, min(there, sparsity), end=end)
        return [pruning.GradualPruner(schedule)]

    return callbacks


# -- the pictures ----------------------------------------------------------------------------------------


def held_out(count: int) -> Prepare:
    """Only the first validation pictures: enough for a choice, and soon measured."""
    return lambda data, model, seed: replace(data, validation=data.validation.take(slice(0, count)))


def at_pixels(pixels: int) -> Prepare:
    """Pictures of another size: each new pixel the mean of those it covers (Tan and Le 2021, section 4).

    Larger ones are interpolated (bilinear).
    """

    def resize(split: Split) -> Split:
        mode = "area" if pixels < split.images.shape[-1] else "bilinear"
        parts = [F.interpolate(some.float(), pixels, mode=mode) for some in split.images.split(5_000)]
        return replace(split, images=torch.cat([part.round().to(torch.uint8) for part in parts]))

    def prepare(data: Data, model: nn.Module, seed: int) -> Data:
        return replace(
            data, **{name: resize(getattr(data, name)) for name in ("train", "validation", "test")}
        )

    return prepare


def least_sure(hard: float, others: float) -> Prepare:
    """The share of training pictures of which the network is least sure, and a random share from the rest.

    Chosen by its largest probability, never by the label: the loss would leave the wrongly labelled ones in
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
