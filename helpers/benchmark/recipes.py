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
    rounded,
    then,
    uniform,
    whitened,
)
from helpers.benchmark.recipe import DEPLOYED, EVERYWHERE, NETWORKS, TORCH, Recipe

# -- how networks are trained -----------------------------------------------------------------------------

FIRST = {"batch_size": 128, "lr": 0.1, "schedule": "one_cycle", "warmup": 0.2}
AGAIN = FIRST | {"lr": 0.05, "warmup": 0.1}  # a warm restart (Loshchilov and Hutter 2017)
STUDENT = {"batch_size": 128, "lr": 0.1}
PATIENT = STUDENT | {"warmup": 0.05}


def further(lr: float) -> dict[str, object]:
    """Return how a network that has been trained is trained on."""
    return {"batch_size": 128, "lr": lr, "warmup": 0.05}


def after(lr: float, epochs: int, **settings: object) -> Recipe:
    """Return the recipe of a network that is made from the teacher and trained on."""
    return Recipe(**{"start": "teacher2", "epochs": epochs, "fit": further(lr), **settings})


# -- the networks -----------------------------------------------------------------------------------------

OWN, ONNX = {"exports": TORCH}, {"exports": DEPLOYED[1:]}  # in PyTorch alone; in ONNX Runtime alone
TAUGHT = {"teacher": "teacher2"}  # by what they are made from
PRUNED, LOW_RANK, COMBINED = (10, 2.1, 3.0), (3.3, 0.7, 2.3), (40, 2.8, 10.3)  # as usually claimed

TEACHERS = {
    "teacher1": Recipe(start="vgg19", epochs=15, fit=FIRST, reference="teacher1", **OWN),
    "teacher2": after(
        0.05,
        22,
        start="teacher1",
        fit=AGAIN,
        seeds=(1,),
        prepare=least_sure(24 / 45, 8 / 45),
        label="the network they are made from",
        exports=EVERYWHERE,
    ),
    "teacher": after(
        0.05,
        28,
        fit={**AGAIN, "cutout": 8, "compile": True},
        seeds=(2,),
        reference="teacher",
        file="vgg19",
    ),
}
STUDENTS = {
    "tiny45": Recipe(start="tiny_convnet", teacher="rank6", epochs=45, fit=PATIENT, **ONNX),
    "tiny": Recipe(
        start="tiny45",
        teacher="rank6",
        epochs=30,
        fit=further(0.05),
        **ONNX,
        label="distilled TinyConvNet",
        claimed=(20, 1.4, 8.1),
    ),
    "micro": Recipe(
        start="micro_convnet",
        teacher="rank6",
        epochs=45,
        fit=PATIENT,
        **ONNX,
        file="vgg19_micro_convnet",
        label="distilled MicroConvNet",
    ),
    "micro_alone": Recipe(start="micro_convnet", epochs=45, fit=PATIENT, **ONNX),
}
RECORDED = {"teacher": "teacher", "recorded": True, "reference": "teacher"}
PAIRS = {"epochs": 12, "seeds": (0, 1, 2), **OWN}
SHORT = {"epochs": 8, "fit": {"batch_size": 64}, "pictures": 4_000, "seeds": (0, 1, 2), **OWN}
ARMS = {
    "micro12_alone": Recipe(start="micro_convnet", fit=STUDENT, **PAIRS),
    "micro12_smoothed": Recipe(start="micro_convnet", fit=STUDENT | {"label_smoothing": 0.1}, **PAIRS),
    "micro12_taught": Recipe(start="micro_convnet", fit=STUDENT, teacher="rank6", **PAIRS),
    "micro12_shuffled": Recipe(start="micro_convnet", fit=STUDENT, teacher="rank6", told=Shuffled, **PAIRS),
    "micro12_recorded": Recipe(  # as many steps: an epoch of recorded answers is twice as long
        start="micro_convnet", fit=PATIENT, **PAIRS | RECORDED | {"epochs": 6}
    ),
    "micro12_answered": Recipe(start="micro_convnet", fit=STUDENT, **PAIRS | RECORDED | {"epochs": 6}),
    "micro24_taught": Recipe(start="micro12_recorded", epochs=6, fit=further(0.05), **RECORDED),
    "tiny4000_alone": Recipe(start="tiny_convnet", **SHORT),
    "tiny4000_taught": Recipe(start="tiny_convnet", teacher="teacher1", **SHORT),
}
GRID = {
    f"grid_t{temperature}_a{alpha}": Recipe(
        start="tiny_convnet",
        teacher="teacher1",
        temperature=temperature,
        alpha=alpha,
        **{**SHORT, "epochs": 3, "pictures": 2_000, "seeds": (0,)},
        split="validation",
    )
    for temperature in (1, 4, 16)
    for alpha in (0.1, 0.5, 0.9)
}
COMPRESSED = {
    "dense": after(0.01, 3, **TAUGHT, **OWN),
    "pruned95_short": after(0.01, 1, callbacks=gradual(0.95), **OWN),
    "pruned90": after(
        0.01,
        3,
        **TAUGHT,
        callbacks=gradual(0.9, end=0.5),
        **OWN,
        label="pruned, 90% zeros",
        shown=TORCH,
        claimed=PRUNED,
    ),
    "pruned95": after(
        0.01,
        3,
        **TAUGHT,
        callbacks=gradual(0.95, end=0.5),
        label="pruned, 95% zeros",
        shown=("torch", "onnx int8"),
        claimed=PRUNED,
    ),
    "pruned98": after(
        0.01,
        3,
        **TAUGHT,
        callbacks=gradual(0.98, end=0.5),
        **OWN,
        label="pruned, 98% zeros",
        shown=TORCH,
        claimed=PRUNED,
    ),
    "pruned95_at_once": after(0.01, 3, **TAUGHT, change=at_once(0.95), callbacks=gradual(0.95), **OWN),
    "channels20": after(0.05, 10, change=by_sensitivity(0.2), label="fewer channels"),
    "rank5": after(0.02, 3, change=rank(5), **OWN),
    "rank5.5": after(0.005, 4, **TAUGHT, change=rank(5.5, 3.1), **OWN),
    "rank6_short": after(0.005, 2, **TAUGHT, change=rank(6, 3.3), **OWN),
    "rank6": after(
        0.005, 4, **TAUGHT, change=rank(6, 3.3), file="vgg19_rank6", label="low rank", claimed=LOW_RANK
    ),
    "lossless": after(
        0.005,
        4,
        start="rank6",
        **TAUGHT,
        callbacks=gradual(0.6),
        **ONNX,
        file="vgg19_lossless",
        label="combined, nearly lossless",
        claimed=COMBINED,
    ),
    "combined75": after(0.02, 6, start="channels20", **TAUGHT, callbacks=gradual(0.75), **ONNX),
    "combined": after(
        0.005,
        2,
        start="combined75",
        **TAUGHT,
        callbacks=gradual(0.8),
        exports=EVERYWHERE[1:],
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
        reference="teacher",
        **OWN,
    )
    for way, change in WAYS.items()
    for times in (2, 4, 7)
}

BRIEF = {**TAUGHT, "pictures": 12_800}
ORDERS = {  # the same three steps in another order; the last rounding is the export's
    "order_factorize": after(0.005, 1, change=rank(4), **BRIEF, **OWN),
    "order_factorize_prune": after(
        0.005, 1, start="order_factorize", callbacks=gradual(0.6), **BRIEF, **ONNX
    ),
    "order_prune": after(0.005, 1, callbacks=gradual(0.6), **BRIEF, **OWN),
    "order_prune_factorize": after(0.005, 1, start="order_prune", change=rank(4), **BRIEF, **ONNX),
    "order_round_factorize": after(0.005, 1, change=then(rounded(8), rank(4)), **BRIEF, **OWN),
    "order_round_factorize_prune": after(
        0.005, 1, start="order_round_factorize", callbacks=gradual(0.6), **BRIEF, **ONNX
    ),
}
BRIEFER = {**TAUGHT, "pictures": 6_400, **ONNX}
PEERS = {  # our methods and those of well-known libraries, from the same network, trained on alike
    "zeros_torch": after(0.005, 1, change=peers.torch_prune(0.9), finish=peers.settled, **BRIEFER),
    "zeros_ours": after(0.005, 1, callbacks=gradual(0.9), **BRIEFER),
    "channels_torch_pruning": after(0.005, 1, change=peers.as_few_macs(by_sensitivity(0.05)), **BRIEFER),
    "channels_ours": after(0.005, 1, change=by_sensitivity(0.05), **BRIEFER),
    "rank_tensorly": after(0.005, 1, change=peers.tucker(4), **BRIEFER),
    "rank_ours": after(0.005, 1, change=rank(4, count="parameters"), **BRIEFER),
}

MUON = {"optimizer": "muon", "momentum": 0.6, "batch_size": 500, "schedule": "one_cycle", "warmup": 0.1}
QUICK, FIRST_MUON = MUON | {"lr": 0.2}, MUON | {"lr": 0.1, "cutout": 8}
FROM = {"start": "teacher", "gpu": 15, **RECORDED}
SOON = FROM | {"gpu": 0, "pictures": 6_400, **ONNX}


def on(lr: float, **settings: object) -> Recipe:
    """Return the recipe of a network made from the teacher, taught by its recorded answers."""
    return Recipe(**{**FROM, "epochs": 4, "fit": MUON | {"lr": lr, "batch_size": 250}, **settings})


def learner(start: str, **settings: object) -> Recipe:
    """Return the recipe of a small network of its own shape, three seeds of it."""
    change = {"change": whitened} if start.startswith("fast_convnet") else {}
    given = {"reference": "teacher", "epochs": 12, "gpu": 30, "seeds": (0, 1, 2), **change}
    return Recipe(start=start, **{**given, "fit": QUICK, **settings})


SMALL = ("fast_convnet", "micro_convnet", "tiny_convnet")
OF50 = {"teacher": "resnet50_base", "reference": "resnet50_base", "recorded": False}
SWEEP = {  # everything on the one shipped teacher, what is worth most first; and what a GPU made without it
    "one_call": on(  # all three in one call of fit
        0.015, change=rank(7, 4), callbacks=gradual(0.6, end=0.5), epochs=8
    ),
    "one_call_longer": on(0.02, start="one_call", callbacks=gradual(0.6), epochs=7, file="vgg19_one_call"),
    "channels17": on(0.03, change=by_sensitivity(0.03)),
    "channels17_zeros75": on(
        0.015,
        start="channels17",
        callbacks=gradual(0.75, end=0.5),
        epochs=3,
        file="vgg19_channels17_zeros75",
    ),
    "rank7": on(0.015, change=rank(7, 4), epochs=2),
    "factorized4": after(0.005, 1, change=rank(4), **SOON | OWN),  # two orders of the same steps
    "factorized4_zeros60": after(0.005, 1, **SOON | {"start": "factorized4"}, callbacks=gradual(0.6)),
    "zeros60": after(0.005, 1, **SOON | OWN, callbacks=gradual(0.6)),
    "zeros60_factorized4": after(0.005, 1, **SOON | {"start": "zeros60"}, change=rank(4)),
    "channels_by_torch_pruning": after(0.005, 1, change=peers.as_few_macs(by_sensitivity(0.01)), **SOON),
    "channels_by_scan": after(0.005, 1, change=by_sensitivity(0.01), **SOON),
    "rank_by_tensorly": after(0.005, 1, change=peers.tucker(4), **SOON),
    "rank_by_svd": after(0.005, 1, change=rank(4, count="parameters"), **SOON),
    **{f"{start}_taught": learner(start, **RECORDED, epochs=22) for start in SMALL},
    "zeros95": after(0.01, 2, callbacks=gradual(0.95, end=0.3), **FROM),
    "control": after(0.01, 2, **FROM, **OWN),
    "at_once95": after(0.01, 2, change=at_once(0.95), callbacks=gradual(0.95), **FROM, **OWN),
    **{
        f"zeros{part}": after(0.01, 2, callbacks=gradual(part / 100, end=0.3), **FROM, **OWN)
        for part in (90, 98)
    },
    "baseline": Recipe(
        start="vgg19",
        epochs=16,
        gpu=100,
        fit=FIRST_MUON | {"lr": 0.15, "batch_size": 1_000},
        reference="baseline",
    ),
    **{f"{start}_alone": learner(start) for start in (*SMALL, "fast_convnet_1m", "fast_convnet_2m")},
    "resnet50_base": Recipe(
        start="resnet50", epochs=5, gpu=20, fit=FIRST_MUON, reference="resnet50_base", **OWN
    ),
    "resnet50_zeros85": on(
        0.05, **OF50 | {"start": "resnet50_base"}, callbacks=gradual(0.85, end=0.5), epochs=2, gpu=10
    ),
    "resnet50_student": learner("tiny_convnet", **OF50, seeds=(0,)),
}

AT64 = {"fit": MUON | {"lr": 0.1, "batch_size": 250}, "prepare": at_pixels(64), "exports": DEPLOYED}


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
GROUPS = (TEACHERS, STUDENTS, ARMS, GRID, COMPRESSED, CURVE, ORDERS, PEERS, SWEEP, OUTSIDE)
NETWORKS.update({name: recipe for group in GROUPS for name, recipe in group.items()})
