"""Every published network, declared: its start, the change of the model, the loss, the callbacks, how long.

To add an experiment, add an entry to ``NETWORKS``. ``helpers.benchmark.run`` runs any of them, and every
published number is a row it wrote. A recipe whose settings change gets a new name, so that rows and recipes
always belong together.
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
    least_sure,
    rank,
    ranks_of_weights,
    uniform,
    whitened,
)
from helpers.benchmark.recipe import DEPLOYED, EVERYWHERE, NETWORKS, TORCH, Recipe

# -- how networks are trained -----------------------------------------------------------------------------

SGD = {"batch_size": 128, "lr": 0.1, "warmup": 0.05}
CYCLE = {"batch_size": 128, "lr": 0.1, "schedule": "one_cycle", "warmup": 0.2}
AGAIN = CYCLE | {"lr": 0.05, "warmup": 0.1}  # a warm restart (Loshchilov and Hutter 2017)
MUON = {"optimizer": "muon", "momentum": 0.6, "batch_size": 500, "schedule": "one_cycle", "warmup": 0.1}
ON = MUON | {"batch_size": 250}  # a network that has been trained is trained on, at a smaller rate
QUICK, LARGE = MUON | {"lr": 0.2}, MUON | {"lr": 0.1, "cutout": 8}


def after(lr: float, epochs: int, **settings: object) -> Recipe:
    """Return the recipe of a network that is made from the teacher and taught by its recorded answers."""
    given = {"start": "teacher", "epochs": epochs, "gpu": 15, "fit": ON | {"lr": lr}, **TAUGHT}
    return Recipe(**{**given, **settings})


def learner(start: str, **settings: object) -> Recipe:
    """Return the recipe of a small network of its own shape, by Muon."""
    change = {"change": whitened} if start.startswith("fast_convnet") else {}
    return Recipe(start=start, **{"epochs": 12, "gpu": 30, "fit": QUICK, **change, **settings})


# -- the networks -----------------------------------------------------------------------------------------

OWN = {"exports": TORCH}  # in PyTorch alone
TAUGHT = {"teacher": "teacher", "recorded": True}  # an epoch is then all pictures and their mirror images
PRUNED, LOW_RANK, COMBINED = (10, 2.1, 3.0), (3.3, 0.7, 2.3), (40, 2.8, 10.3)  # as usually claimed

TEACHERS = {  # two steps to the teacher, and the teacher, from which everything else is made
    "teacher1": Recipe(start="vgg19", epochs=15, fit=CYCLE, reference="teacher1", **OWN),
    "teacher2": Recipe(
        start="teacher1",
        epochs=22,
        fit=AGAIN,
        seeds=(1,),
        prepare=least_sure(24 / 45, 8 / 45),
        reference="teacher2",
        **OWN,
    ),
    "teacher": Recipe(
        start="teacher2",
        epochs=28,
        fit=AGAIN | {"cutout": 8, "compile": True},
        seeds=(2,),
        file="vgg19",
        label="the network they are made from",
        exports=EVERYWHERE,
    ),
}
PAIRS = {"start": "micro_convnet", "epochs": 12, "seeds": (0, 1, 2), **OWN}
STUDENTS = {
    "tiny": Recipe(
        start="tiny_convnet",
        epochs=22,
        fit=QUICK,
        **TAUGHT,
        label="distilled TinyConvNet",
        claimed=(20, 1.4, 8.1),
    ),
    "micro": Recipe(
        start="micro12_taught",
        epochs=6,
        fit=SGD | {"lr": 0.05},
        **TAUGHT,
        file="vgg19_micro_convnet",
        label="distilled MicroConvNet",
    ),
    "micro_alone": Recipe(start="micro_convnet", epochs=45, fit=SGD, exports=DEPLOYED[1:]),
    "micro12_alone": Recipe(fit=SGD, **PAIRS),
    "micro12_smoothed": Recipe(fit=SGD | {"label_smoothing": 0.1}, **PAIRS),
    "micro12_shuffled": Recipe(fit=SGD, told=Shuffled, **PAIRS | TAUGHT | {"epochs": 6}),
    "micro12_taught": Recipe(fit=SGD, **PAIRS | TAUGHT | {"epochs": 6}),  # as many steps
    **{
        f"{start}_alone": learner(start)
        for start in ("tiny_convnet", "micro_convnet", "fast_convnet", "fast_convnet_1m", "fast_convnet_2m")
    },
}
SLOWLY = {"fit": SGD | {"lr": 0.01}}  # a whole VGG-19, by small steps
ZEROS = {"shown": TORCH, "claimed": PRUNED, **SLOWLY}
COMPRESSED = {
    "control": after(0, 1, **SLOWLY, **OWN),
    "zeros90": after(0, 1, callbacks=gradual(0.9, end=0.3), label="pruned, 90% zeros", **ZEROS, **OWN),
    "zeros95": after(
        0,
        1,
        callbacks=gradual(0.95, end=0.3),
        label="pruned, 95% zeros",
        **ZEROS | {"shown": ("torch", "onnx int8")},
    ),
    "zeros98": after(0, 1, callbacks=gradual(0.98, end=0.3), label="pruned, 98% zeros", **ZEROS, **OWN),
    "at_once95": after(0, 1, change=at_once(0.95), callbacks=gradual(0.95), **SLOWLY, **OWN),
    "channels17": after(0.03, 4, change=by_sensitivity(0.03), label="fewer channels"),
    "rank7": after(0.015, 2, change=rank(7, 4), file="vgg19_rank7", label="low rank", claimed=LOW_RANK),
    "lossless": after(  # all three in one call of fit
        0.015,
        8,
        change=rank(7, 4),
        callbacks=gradual(0.6, end=0.5),
        file="vgg19_lossless",
        label="combined, nearly lossless",
        claimed=COMBINED,
    ),
    "lossless_longer": after(0.02, 7, start="lossless", callbacks=gradual(0.6)),
    "combined": after(
        0.015,
        3,
        start="channels17",
        callbacks=gradual(0.75, end=0.5),
        exports=EVERYWHERE,
        file="vgg19_combined",
        label="combined, smallest",
        claimed=COMBINED,
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
        start="teacher",
        change=change(times),
        prepare=held_out(1_000),
        split="validation",
        **OWN,
    )
    for way, change in WAYS.items()
    for times in (2, 4, 7)
}

BRIEF = {"gpu": 0, "pictures": 6_400, "fit": SGD | {"lr": 0.005}, "exports": DEPLOYED[1:]}
ORDERS = {  # the same three steps in another order; the last rounding is the export's
    "order_factorize": after(0, 1, change=rank(4), **BRIEF | OWN),
    "order_factorize_prune": after(0, 1, start="order_factorize", callbacks=gradual(0.6), **BRIEF),
    "order_prune": after(0, 1, callbacks=gradual(0.6), **BRIEF | OWN),
    "order_prune_factorize": after(0, 1, start="order_prune", change=rank(4), **BRIEF),
}
BRIEFER = BRIEF | {"pictures": 3_200, "exports": ("onnx",)}
PEERS = {  # our methods and those of well-known libraries, from the same network, trained on alike
    "channels_torch_pruning": after(0, 1, change=peers.as_few_macs(by_sensitivity(0.01)), **BRIEFER),
    "channels_ours": after(0, 1, change=by_sensitivity(0.01), **BRIEFER),
    "rank_tensorly": after(0, 1, change=peers.tucker(4), **BRIEFER),
    "rank_ours": after(0, 1, change=rank(4, count="parameters"), **BRIEFER),
}

OF50 = {"teacher": "resnet50_base", "reference": "resnet50_base"}
LARGER = {  # as a GPU makes them in a few minutes
    "baseline": Recipe(
        start="vgg19",
        epochs=16,
        gpu=100,
        fit=LARGE | {"lr": 0.15, "batch_size": 1_000},
        reference="baseline",
    ),
    "resnet50_base": Recipe(start="resnet50", epochs=5, gpu=20, fit=LARGE, reference="resnet50_base", **OWN),
    "resnet50_zeros85": after(
        0.05, 2, start="resnet50_base", callbacks=gradual(0.85, end=0.5), recorded=False, gpu=10, **OF50
    ),
    "resnet50_student": learner("tiny_convnet", **OF50),
}

AT64 = {"fit": ON | {"lr": 0.1}, "prepare": at_pixels(64), "exports": DEPLOYED}


def at64(start: str, **settings: object) -> Recipe:
    """Return the recipe of a network made from one of torchvision's at 64 x 64 pixels, and taught by it."""
    given = AT64 | {"fit": AT64["fit"] | {"lr": 0.02}, "epochs": 3, "gpu": 10}
    return Recipe(start=start, **given | {"teacher": start, "reference": start} | settings)


BEGUN = {"gpu": 20, **AT64}
OUTSIDE = {  # torchvision's networks, which nobody here wrote, as lesson 07 goes about it
    "resnet18": Recipe(start="torchvision/resnet18", epochs=5, reference="resnet18", **BEGUN),
    "resnet18_longer": at64("resnet18", **OWN),
    "resnet18_channels": at64("resnet18", change=uniform(0.5)),
    "resnet18_rank4": at64("resnet18", change=rank(4)),
    "mobilenet": Recipe(start="torchvision/mobilenet_v3_small", epochs=6, reference="mobilenet", **BEGUN),
    "mobilenet_longer": at64("mobilenet", **OWN),
    "mobilenet_channels": at64("mobilenet", change=uniform(0.25)),
    "mobilenet_taught": Recipe(
        start="torchvision/mobilenet_v3_small", teacher="resnet18", epochs=6, reference="resnet18", **BEGUN
    ),
}
GROUPS = (TEACHERS, STUDENTS, COMPRESSED, CURVE, ORDERS, PEERS, LARGER, OUTSIDE)
NETWORKS.update({name: recipe for group in GROUPS for name, recipe in group.items()})
