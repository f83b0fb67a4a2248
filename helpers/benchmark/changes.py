"""What recipes are made of: changes of the model, callbacks for the step, preparations of the pictures."""

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
Prepare = Callable[[Data, nn.Module, int], Data]  # given the network at the start, and the seed


def configured(function: Callable) -> Callable:
    """Let ``function``'s settings be given first: ``rank(7)`` is then called with what a run brings."""
    return lambda *settings, **named: lambda *brought: function(*brought, *settings, **named)


# -- the model -------------------------------------------------------------------------------------------


@configured
def by_sensitivity(model: nn.Module, lab: Lab, tolerance: float) -> nn.Module:
    """Fewer channels: from each layer as many as it alone may lose at ``tolerance`` of the accuracy."""
    ratios = channels.ratios_by_sensitivity(lab.channel_scan(), tolerance)
    return channels.prune_channels(model, lab.data.test.images[:1].float(), ratios)


@configured
def rank(
    model: nn.Module, lab: Lab, times: float, times_macs: float | None = None, **options: object
) -> nn.Module:
    """Low rank: ``times`` fewer parameters and ``times_macs`` fewer MACs, chosen by what some pictures do."""
    few = lab.data.train.take(slice(0, 300))
    settings = {"count": "both", "round_to": 1 if lab.narrow else 8, "pictures": few} | options
    both = (1 / times, 1 / (times_macs or times))
    return low_rank.factorize(model, budget=both if settings["count"] == "both" else both[0], **settings)


@configured
def ranks_of_weights(model: nn.Module, lab: Lab, times: float) -> nn.Module:
    """Low rank with the ranks that the weights alone ask for, and factors that suit the pictures."""
    plan = low_rank.analyze(model, budget=1 / times, count="both")
    ranks = dict(plan[plan["worthwhile"]].set_index("layer")["rank"])
    return low_rank.factorize(model, ranks=ranks, pictures=lab.data.train.take(slice(0, 300)))


@configured
def at_once(model: nn.Module, lab: Lab, sparsity: float) -> nn.Module:
    """The smallest weights set to zero before the first step."""
    pruning.prune_once(model, sparsity)
    return model


def whitened(model: nn.Module, lab: Lab) -> nn.Module:
    """A fast_convnet whose first layer is computed from the pictures."""
    return models.whiten(model, lab.data.train)


@configured
def uniform(model: nn.Module, lab: Lab, ratio: float) -> nn.Module:
    """The same share of channels gone from every layer."""
    return channels.prune_channels(model, lab.data.test.images[:1].float(), ratio)


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


@configured
def gradual(model: nn.Module, sparsity: float, end: float = 0.7) -> Sequence[Callback]:
    """Prune while training, from the zeros that are there to ``sparsity`` at ``end`` of the run."""
    zeros, weights = pruning.sparsity_table(model)[["zeros", "parameters"]].sum()
    schedule = pruning.PolynomialSchedule(sparsity, min(zeros / weights, sparsity), end=end)
    return [pruning.GradualPruner(schedule)]


# -- the pictures ----------------------------------------------------------------------------------------


@configured
def held_out(data: Data, model: nn.Module, seed: int, count: int) -> Data:
    """Only the first validation pictures: enough for a choice, and soon measured."""
    return replace(data, validation=data.validation.take(slice(0, count)))


@configured
def at_pixels(data: Data, model: nn.Module, seed: int, pixels: int) -> Data:
    """Pictures of another size: each new pixel the mean of those it covers (Tan and Le 2021, section 4).

    Larger ones are interpolated (bilinear).
    """

    def resize(split: Split) -> Split:
        mode = "area" if pixels < split.images.shape[-1] else "bilinear"
        parts = [F.interpolate(some.float(), pixels, mode=mode) for some in split.images.split(5_000)]
        return replace(split, images=torch.cat([part.round().to(torch.uint8) for part in parts]))

    return replace(data, **{name: resize(getattr(data, name)) for name in ("train", "validation", "test")})


@configured
def least_sure(data: Data, model: nn.Module, seed: int, hard: float, others: float) -> Data:
    """The share of training pictures of which the network is least sure, and a random share from the rest.

    Chosen by its largest probability, never by the label: the loss would leave the wrongly labelled ones in
    (on the order of learning: Toneva 2019).
    """
    order = predict(model, data.train, precision="auto").softmax(1).amax(1).argsort(stable=True)
    count, more = round(hard * len(order)), round(others * len(order))
    draw = torch.randperm(len(order) - count, generator=torch.Generator().manual_seed(seed))[:more]
    chosen = torch.cat([order[:count], order[count:][draw]]).sort().values
    return replace(data, train=data.train.take(chosen))
