"""Every published network, declared: its start, the change of the model, the loss, the callbacks, how long.

To add an experiment, add an entry to ``NETWORKS``. ``helpers.benchmark.run`` runs any of them, and every
published number is a row it wrote. A recipe whose settings change gets a new name, so that rows and recipes
always belong together.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

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

FIRST = {"batch_size": 128, "lr": 0.1, "schedule": "one_cycle", "warmup": 0.2}
AGAIN = FIRST | {"lr": 0.05, "warmup": 0.1}  # a warm restart (Loshchilov and Hutter 2017)
STUDENT = {"batch_size": 128, "lr": 0.1}
MUON = {"optimizer": "muon", "momentum": 0.6, "batch_size": 500, "schedule": "one_cycle", "warmup": 0.1}
QUICK, FIRST_MUON, STEPS = MUON | {"lr": 0.2}, MUON | {"lr": 0.1, "cutout": 8}, MUON | {"batch_size": 250}

OWN = {"exports": TORCH}  # in PyTorch alone
TAUGHT = {"teacher": "teacher", "recorded": True}  # an epoch is then all pictures and their mirror images
FROM = {"start": "teacher", "gpu": 15, **TAUGHT}
PRUNED, LOW_RANK, COMBINED = (10, 2.1, 3.0), (3.3, 0.7, 2.3), (40, 2.8, 10.3)  # as usually claimed


def on(lr: float, epochs: int, fit: Mapping[str, object] = STEPS, **settings: object) -> Recipe:
    """Return the recipe of a network made from the teacher and taught by it, by Muon."""
    return Recipe(**FROM | {"epochs": epochs, "fit": {**fit, "lr": lr}} | settings)


freshly = partial(on, fit=STEPS | {"cutout": 8}, recorded=False)  # asks the teacher as each picture is shown
slowly = partial(on, fit={"batch_size": 128, "warmup": 0.05})  # by small steps of SGD


def smaller(start: str, epochs: int, zeros: float, **settings: object) -> Recipe:
    """Return the recipe of a taught small network that is thinned or pruned, and taught on."""
    step = {"callbacks": gradual(zeros, end=0.5), "claimed": COMBINED}
    return Recipe(start=start, epochs=epochs, fit=MUON | {"lr": 0.06}, **TAUGHT, **step, **settings)


def assisted(start: str, epochs: int, zeros: float, **settings: object) -> Recipe:
    """Return the recipe of a network taught on by a better small one, which sees each picture as it does."""
    return replace(
        smaller(start, epochs, zeros, **settings), teacher="fast_convnet_2m_zeros70", recorded=False
    )


def learner(start: str, **settings: object) -> Recipe:
    """Return the recipe of a small network of its own shape."""
    change = {"change": whitened} if start.startswith("fast_convnet") else {}
    return Recipe(start=start, **{"epochs": 30, "gpu": 30, "fit": QUICK, **change, **settings})


# -- the networks -----------------------------------------------------------------------------------------

TEACHERS = {  # two steps to the teacher, and the teacher, from which everything else is made
    "teacher1": Recipe(start="vgg19", epochs=15, fit=FIRST, reference="teacher1", **OWN),
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
        fit={**AGAIN, "cutout": 8, "compile": True},
        seeds=(2,),
        file="vgg19",
        label="the network they are made from",
    ),
}
PAIRS = {"start": "micro_convnet", "epochs": 12, "seeds": (0, 1, 2), **OWN}
STUDENTS = {
    "tiny_convnet_taught": learner(
        "tiny_convnet",
        **TAUGHT,
        epochs=22,
        file="vgg19_tiny_convnet",
        label="distilled TinyConvNet",
        claimed=(20, 1.4, 8.1),
    ),
    "fast_convnet_taught": learner(
        "fast_convnet",
        **TAUGHT,
        epochs=22,
        file="vgg19_fast_convnet",
        label="distilled fast_convnet",
        claimed=(20, 1.4, 8.1),
    ),
    "fast_convnet_2m_taught": learner(  # as many pictures as the 30 epochs of ..._alone
        "fast_convnet_2m",
        **TAUGHT,
        epochs=15,
        file="vgg19_fast_convnet_2m",
        label="distilled fast_convnet_2m",
        claimed=(20, 1.4, 8.1),
    ),
    **{
        f"{start}_alone": learner(start)
        for start in ("tiny_convnet", "micro_convnet", "fast_convnet", "fast_convnet_1m", "fast_convnet_2m")
    },
    "micro12_alone": Recipe(fit=STUDENT, **PAIRS),
    "micro12_smoothed": Recipe(fit=STUDENT | {"label_smoothing": 0.1}, **PAIRS),
    "micro12_answered": Recipe(fit=STUDENT, **PAIRS | TAUGHT | {"epochs": 6}),  # as many steps
    "micro12_shuffled": Recipe(fit=STUDENT, told=Shuffled, **PAIRS | TAUGHT | {"epochs": 6}),
}
# fresh answers: the teacher is asked about each picture as it is shown (Beyer 2022, section 3)
FRESH = {"recorded": False, "fit": {"batch_size": 128, "warmup": 0.05, "cutout": 8}}
COMPRESSED = {
    "zeros95": slowly(0.01, 2, callbacks=gradual(0.95, end=0.3), file="vgg19_zeros95"),
    "zeros95_patient": slowly(
        0.01,
        3,
        start="zeros95",
        callbacks=gradual(0.95),
        label="pruned, 95% zeros",
        claimed=PRUNED,
        **FRESH,
    ),
    "whole_fresh": slowly(0.01, 2, **FRESH | OWN),  # the control of the three below
    **{
        f"zeros{percent}_fresh": slowly(0.01, 2, callbacks=gradual(percent / 100, end=0.3), **FRESH | OWN)
        for percent in (90, 95, 98)
    },
    # twice as long, with answers given once
    "zeros98": slowly(0.01, 2, callbacks=gradual(0.98, end=0.3), **OWN),
    **{  # from one to the next, with fresh answers
        name: slowly(
            0.01,
            epochs,
            start=start,
            callbacks=gradual(zeros, end=0.3),
            label=f"pruned, {zeros:.0%} zeros" if "patient" in name else "",
            claimed=PRUNED,
            **FRESH,
        )
        for name, start, zeros, epochs in (
            ("zeros98_patient", "zeros95", 0.98, 3),
            ("zeros99", "zeros98_patient", 0.99, 2),
            ("zeros99_patient", "zeros99", 0.99, 3),
        )
    },
    "at_once95": slowly(0.01, 2, change=at_once(0.95), callbacks=gradual(0.95), **OWN),
    "control": slowly(0.01, 2, **OWN),
    "channels12": freshly(0.03, 12, change=by_sensitivity(0.025), label="fewer channels"),
    "channels17": on(0.03, 4, change=by_sensitivity(0.03)),
    "channels17_zeros75": on(
        0.015,
        3,
        start="channels17",
        callbacks=gradual(0.75, end=0.5),
        label="fewer channels, 75% zeros",
        claimed=COMBINED,
    ),
    "rank7": on(0.015, 2, change=rank(7, 4)),
    "spatial7": freshly(0.015, 5, change=rank(7, 4, scheme="auto", pictures=None)),
    "spatial7_longer": freshly(0.02, 8, start="spatial7", label="low rank", claimed=LOW_RANK),
    "spatial7_patient": freshly(0.02, 8, start="spatial7_longer"),
    "one_call": on(0.015, 8, change=rank(7, 4), callbacks=gradual(0.6, end=0.5)),  # all three in one call
    "one_call_longer": on(
        0.02,
        7,
        start="one_call",
        callbacks=gradual(0.6),
        label="low rank, 60% zeros",
        claimed=COMBINED,
    ),
    "one_call_patient": freshly(0.02, 12, start="one_call_longer", callbacks=gradual(0.6)),
}

SMALLER = {  # the best student, made smaller in its turn; the first is the control
    "fast_convnet_2m_longer": smaller("fast_convnet_2m_taught", 6, 0),
    "fast_convnet_2m_zeros70": smaller(
        "fast_convnet_2m_taught",
        6,
        0.7,
        file="vgg19_fast_convnet_2m_zeros70",
        label="distilled fast_convnet_2m, 70% zeros",
    ),
    "fast_convnet_2m_thin": smaller("fast_convnet_2m_taught", 8, 0.5, change=by_sensitivity(0.007)),
    "fast_convnet_2m_thin_zeros75": smaller(
        "fast_convnet_2m_thin",
        7,
        0.75,
        exports=EVERYWHERE,
        file="vgg19_fast_convnet_2m_thin_zeros75",
        label="distilled fast_convnet_2m, fewer channels, 75% zeros",
    ),
    "fast_convnet_2m_thinner": smaller("fast_convnet_2m_thin", 10, 0.6, change=by_sensitivity(0.015)),
    # an assistant teaches (Mirzadeh 2020), and answers each picture as it is shown (Beyer 2022)
    "fast_convnet_2m_thin_zeros75_assisted": assisted("fast_convnet_2m_thin_zeros75", 12, 0.75),
    "fast_convnet_2m_thinner_assisted": assisted("fast_convnet_2m_thinner", 14, 0.3),
    "fast_convnet_assisted": assisted("fast_convnet_taught", 20, 0),
    "tiny_convnet_assisted": assisted("tiny_convnet_taught", 14, 0),
    "fast_convnet_2m_thinnest": assisted("fast_convnet_2m_thinner", 20, 0.4, change=by_sensitivity(0.01)),
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

SOON = {"gpu": 0, "pictures": 6_400, "exports": DEPLOYED[1:]}  # in ONNX Runtime alone
ORDERS = {  # the same two steps in either order
    "factorized4": slowly(0.005, 1, change=rank(4), **SOON | OWN),
    "factorized4_zeros60": slowly(0.005, 1, start="factorized4", callbacks=gradual(0.6), **SOON),
    "zeros60": slowly(0.005, 1, callbacks=gradual(0.6), **SOON | OWN),
    "zeros60_factorized4": slowly(0.005, 1, start="zeros60", change=rank(4), **SOON),
}
PEERS = {  # our methods and those of well-known libraries, from the same network, trained on alike
    "channels_by_torch_pruning": slowly(0.005, 1, change=peers.as_few_macs(by_sensitivity(0.01)), **SOON),
    "channels_by_scan": slowly(0.005, 1, change=by_sensitivity(0.01), **SOON),
    "rank_by_tensorly": slowly(0.005, 1, change=peers.tucker(4), **SOON),
    "rank_by_svd": slowly(0.005, 1, change=rank(4, count="parameters"), **SOON),
}

OF50 = {"teacher": "resnet50_base", "reference": "resnet50_base"}
LARGER = {  # as a GPU makes them in a few minutes
    "baseline": Recipe(
        start="vgg19",
        epochs=16,
        gpu=100,
        fit=FIRST_MUON | {"lr": 0.15, "batch_size": 1_000},
        reference="baseline",
    ),
    "resnet50_base": Recipe(
        start="resnet50", epochs=5, gpu=20, fit=FIRST_MUON, reference="resnet50_base", **OWN
    ),
    "resnet50_zeros85": on(
        0.05, 2, start="resnet50_base", callbacks=gradual(0.85, end=0.5), recorded=False, gpu=10, **OF50
    ),
    "resnet50_student": learner("tiny_convnet", **OF50),
}

AT64 = {"prepare": at_pixels(64), "exports": DEPLOYED}
AT64_FIT = MUON | {"lr": 0.1, "batch_size": 250}
DEPTHWISE = {"precision": "fp32"}  # on a CPU bfloat16 is slow with groups of one channel


def at64(start: str, fit: Mapping[str, object] = {}, **settings: object) -> Recipe:
    """Return the recipe of a network made from one of torchvision's at 64 x 64 pixels, and taught by it."""
    given = {"fit": AT64_FIT | {"lr": 0.02} | fit, "epochs": 3, "gpu": 10, **AT64}
    return Recipe(start=start, **given | {"teacher": start, "reference": start} | settings)


OUTSIDE = {  # torchvision's networks, which nobody here wrote, as lesson 07 goes about it
    "resnet18": Recipe(
        start="torchvision/resnet18", epochs=6, gpu=20, fit=AT64_FIT, reference="resnet18", **AT64
    ),
    "resnet18_longer": at64("resnet18", **OWN),
    "resnet18_channels": at64("resnet18", change=uniform(0.5)),
    "resnet18_rank4": at64("resnet18", change=rank(4)),
    "mobilenet": Recipe(
        start="torchvision/mobilenet_v3_small",
        epochs=12,
        gpu=20,
        fit=AT64_FIT | DEPTHWISE,
        reference="mobilenet",
        **AT64 | {"exports": DEPLOYED[:2]},  # int8 changes more than one answer in twenty, and is refused
    ),
    "mobilenet_longer": at64("mobilenet", DEPTHWISE, **OWN),
    "mobilenet_channels": at64("mobilenet", DEPTHWISE, change=uniform(0.25)),
}
GROUPS = (TEACHERS, STUDENTS, COMPRESSED, SMALLER, CURVE, ORDERS, PEERS, LARGER, OUTSIDE)
NETWORKS.update({name: recipe for group in GROUPS for name, recipe in group.items()})
