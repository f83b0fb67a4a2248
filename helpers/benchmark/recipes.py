"""Every published network, declared: its start, the change of the model, the loss, the callbacks, how long.

To add an experiment, add an entry to ``NETWORKS``. ``helpers.benchmark.run`` runs any of them, and every
published number is a row it wrote. A recipe whose settings change gets a new name, so that rows and recipes
always belong together. What is worth most stands first: a sweep takes them in this order.
"""

from __future__ import annotations

from helpers.benchmark import peers
from helpers.benchmark.changes import (
    Shuffled,
    at_once,
    at_pixels,
    by_sensitivity,
    gradual,
    held_out,
    rank,
    ranks_of_weights,
    rounded,
    then,
    uniform,
    whitened,
)
from helpers.benchmark.recipe import DEPLOYED, EVERYWHERE, NETWORKS, TORCH, Recipe

# -- how networks are trained -----------------------------------------------------------------------------

MUON = {"optimizer": "muon", "momentum": 0.6, "batch_size": 500, "schedule": "one_cycle", "warmup": 0.1}
QUICK = MUON | {"lr": 0.2}
OWN = {"exports": TORCH}  # measured in PyTorch alone
PRUNED, LOW_RANK, COMBINED = (10, 2.1, 3.0), (3.3, 0.7, 2.3), (40, 2.8, 10.3)  # as usually claimed


def after(lr: float, **settings: object) -> Recipe:
    """Return the recipe of a network that is made from the teacher, taught by it, and compared with it."""
    given = {"start": "teacher", "teacher": "teacher", "epochs": 4, "gpu": 15}
    return Recipe(**{**given, "fit": MUON | {"lr": lr, "batch_size": 250}, **settings})


def learner(start: str, **settings: object) -> Recipe:
    """Return the recipe of a small network of its own shape, three seeds of it."""
    change = {"change": whitened} if start.startswith("fast_convnet") else {}
    given = {"epochs": 12, "gpu": 30, "seeds": (0, 1, 2), "fit": QUICK, **OWN, **change}
    return Recipe(start=start, **{**given, **settings})


# -- the networks -----------------------------------------------------------------------------------------

TEACHER = {
    "teacher": Recipe(
        start="vgg19",
        epochs=16,
        gpu=100,
        fit=MUON | {"lr": 0.15, "batch_size": 1_000, "cutout": 8},
        file="vgg19",
        label="the network they are made from",
        exports=EVERYWHERE,
    )
}
COMPRESSED = {
    "zeros95": after(
        0.05,
        callbacks=gradual(0.95, end=0.5),
        file="vgg19_zeros95",
        label="pruned, 95% zeros",
        shown=("torch", "onnx int8"),
        claimed=PRUNED,
    ),
    "rank7": after(0.03, change=rank(7, 4), file="vgg19_rank7", label="low rank", claimed=LOW_RANK),
    "lossless": after(
        0.03,
        start="rank7",
        callbacks=gradual(0.6, end=0.5),
        file="vgg19_lossless",
        label="combined, nearly lossless",
        claimed=COMBINED,
    ),
    "channels20": after(
        0.1, change=by_sensitivity(0.2), gpu=20, epochs=10, label="fewer channels", claimed=PRUNED
    ),
    "combined": after(
        0.05,
        start="channels20",
        callbacks=gradual(0.8, end=0.5),
        gpu=20,
        exports=EVERYWHERE,
        file="vgg19_combined",
        label="combined, smallest",
        claimed=COMBINED,
    ),
    "control": after(0.05, **OWN),
    **{
        f"zeros{part}": after(
            0.05, callbacks=gradual(part / 100, end=0.5), label=f"pruned, {part}% zeros", shown=TORCH, **OWN
        )
        for part in (99, 98, 90)
    },
    **{
        f"zeros{part}_at_once": after(
            0.05, change=at_once(part / 100), callbacks=gradual(part / 100), **OWN
        )
        for part in (95, 99)
    },
    **{f"rank{times}": after(0.03, change=rank(times, times / 1.8)) for times in (12, 24, 5)},
    "channels65": after(0.1, change=uniform(0.65), gpu=20, epochs=10),
    "channels65_scratch": after(0.1, start="vgg19", change=uniform(0.65), gpu=20, epochs=10),
}
HOW = {
    "taught": {"teacher": "teacher"},
    "alone": {},
    "smoothed": {"fit": QUICK | {"label_smoothing": 0.1}},
    "shuffled": {"teacher": "teacher", "told": Shuffled},
}
SHAPES = {"micro": "micro_convnet", "tiny": "tiny_convnet", "fast": "fast_convnet"}
SHIPPED = {
    "micro_taught": {"file": "vgg19_micro_convnet", "label": "distilled MicroConvNet", "exports": DEPLOYED},
    "tiny_taught": {
        "file": "vgg19_tiny_convnet",
        "label": "distilled TinyConvNet",
        "claimed": (20, 1.4, 8.1),
        "exports": DEPLOYED,
    },
    "fast_taught": {"label": "distilled FastConvNet", "exports": DEPLOYED},
}
STUDENTS = {
    **{
        f"{short}_{arm}": learner(start, **how, **SHIPPED.get(f"{short}_{arm}", {}))
        for arm, how in HOW.items()
        for short, start in SHAPES.items()
    },
    **{
        f"fast_{size}_{arm}": learner(f"fast_convnet_{size}", **HOW[arm], seeds=(0,), exports=DEPLOYED)
        for size in ("2m", "1m")
        for arm in ("alone", "taught")
    },
}
OF50 = {"teacher": "resnet50_base", "reference": "resnet50_base"}
RESNET50 = {
    "resnet50_base": Recipe(
        start="resnet50", epochs=5, gpu=20, fit=MUON | {"lr": 0.1, "cutout": 8}, reference="resnet50_base"
    ),
    "resnet50_zeros85": after(
        0.05, **OF50, start="resnet50_base", callbacks=gradual(0.85, end=0.5), epochs=2, gpu=10
    ),
    "resnet50_student": learner("tiny_convnet", **OF50, seeds=(0,), exports=DEPLOYED),
}

AT64 = {"fit": MUON | {"lr": 0.1, "batch_size": 250}, "prepare": at_pixels(64), "exports": DEPLOYED}


def at64(start: str, **settings: object) -> Recipe:
    """Return the recipe of a network made from one of torchvision's at 64 x 64 pixels, and taught by it."""
    given = AT64 | {"epochs": 3, "gpu": 10, "teacher": start, "reference": start}
    return Recipe(start=start, **given | {"fit": AT64["fit"] | {"lr": 0.05}} | settings)


OUTSIDE = {  # torchvision's networks, which nobody here wrote, as lesson 07 goes about it
    "resnet18": Recipe(start="torchvision/resnet18", epochs=5, gpu=20, reference="resnet18", **AT64),
    "resnet18_longer": at64("resnet18", **OWN),
    "resnet18_channels": at64("resnet18", change=uniform(0.5)),
    "resnet18_rank4": at64("resnet18", change=rank(4)),
    "mobilenet": Recipe(
        start="torchvision/mobilenet_v3_small", epochs=6, gpu=20, reference="mobilenet", **AT64
    ),
    "mobilenet_longer": at64("mobilenet", **OWN),
    "mobilenet_channels": at64("mobilenet", change=uniform(0.25)),
    "mobilenet_taught": Recipe(
        start="torchvision/mobilenet_v3_small",
        teacher="resnet18",
        epochs=6,
        gpu=20,
        reference="resnet18",
        **AT64,
    ),
}

WAYS = {  # how ranks and factors are chosen, for the curve of lesson 03
    "weights": lambda times: rank(times, round_to=1, pictures=None),
    "schemes": lambda times: rank(times, round_to=1, pictures=None, scheme="auto"),
    "pictures": lambda times: rank(times, round_to=1),
    "ranks_of_weights": ranks_of_weights,
}
CURVE = {
    f"curve_{way}_{times:g}": Recipe(
        start="teacher", change=change(times), prepare=held_out(1_000), split="validation", **OWN
    )
    for way, change in WAYS.items()
    for times in (2, 4, 7)
}

ONCE = {"epochs": 1, "gpu": 5, "pictures": 12_800}
ORDERS = {  # the same three steps in another order; the last rounding is the export's
    "order_factorize": after(0.03, change=rank(4), **ONCE, **OWN),
    "order_factorize_prune": after(0.03, start="order_factorize", callbacks=gradual(0.6), **ONCE),
    "order_prune": after(0.03, callbacks=gradual(0.6), **ONCE, **OWN),
    "order_prune_factorize": after(0.03, start="order_prune", change=rank(4), **ONCE),
    "order_round_factorize": after(0.03, change=then(rounded(8), rank(4)), **ONCE, **OWN),
    "order_round_factorize_prune": after(
        0.03, start="order_round_factorize", callbacks=gradual(0.6), **ONCE
    ),
}
PEERS = {  # our methods and those of well-known libraries, from the same network, trained on alike
    "zeros_torch": after(0.03, change=peers.torch_prune(0.9), finish=peers.settled, **ONCE),
    "zeros_ours": after(0.03, callbacks=gradual(0.9), **ONCE),
    "channels_torch_pruning": after(0.03, change=peers.as_few_macs(by_sensitivity(0.05)), **ONCE),
    "channels_ours": after(0.03, change=by_sensitivity(0.05), **ONCE),
    "rank_tensorly": after(0.03, change=peers.tucker(4), **ONCE),
    "rank_ours": after(0.03, change=rank(4, count="parameters"), **ONCE),
}

GROUPS = (TEACHER, COMPRESSED, STUDENTS, RESNET50, OUTSIDE, CURVE, ORDERS, PEERS)
NETWORKS.update({name: recipe for group in GROUPS for name, recipe in group.items()})
