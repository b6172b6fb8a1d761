"""Makes tests/metric_learning_arrays.npz, what PyTorch codes answer on small inputs, in float64.

`python benchmarks/metric_learning_arrays.py`, with `pip install pytorch-metric-learning`. Each case holds its inputs,
the mean loss and that loss's gradients, so that the tests need no PyTorch. Their reduction is said where it is not the
mean over all that is compared.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytorch_metric_learning
import torch
from pytorch_metric_learning import losses
from pytorch_metric_learning.distances import DotProductSimilarity, LpDistance
from pytorch_metric_learning.miners import BatchHardMiner
from pytorch_metric_learning.reducers import AvgNonZeroReducer, DoNothingReducer, MeanReducer

Tensors = dict[str, torch.Tensor]
MIXED = (0, 1, 0, 2, 1, 0, 2, 3, 1)  # classes of three, of two and of one
TWOS = (0, 1, 2, 0, 1, 2, 3)  # of two and of one
PAIRS = (0, 1, 2, 0, 1, 2)  # the second half are the positives of the first
MARGIN, TEMPERATURE = 0.9, 0.2


def case(
    name: str, label: tuple[int, ...], inputs: Tensors, call: Callable[..., torch.Tensor]
) -> dict[str, np.ndarray]:
    inputs = {key: value.clone().requires_grad_() for key, value in inputs.items()}
    loss = call(**inputs, label=torch.tensor(label))
    loss.backward()
    found = {"label": np.asarray(label, np.int32), "loss": loss.detach().numpy()}
    found |= {f"input/{key}": value.detach().numpy() for key, value in inputs.items()}
    found |= {f"gradient/{key}": value.grad.numpy() for key, value in inputs.items()}
    return {f"{name}/{key}": value for key, value in found.items()}


def contrastive(h: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Half the squares of what the package has for each ordered pair, which are r and max(0, m − r)."""
    found = losses.ContrastiveLoss(pos_margin=0.0, neg_margin=MARGIN, reducer=DoNothingReducer())(h, label)
    return torch.mean(0.5 * torch.cat([found["pos_loss"]["losses"], found["neg_loss"]["losses"]]) ** 2)


def n_pairs(h: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Either half of the batch as the anchors, the other as their positives."""
    first, none = torch.arange(len(h) // 2), torch.zeros(0, dtype=torch.long)
    second = first + len(first)
    loss = losses.NPairsLoss(distance=DotProductSimilarity(normalize_embeddings=False))
    return 0.5 * (loss(h, label, (first, second, none, none)) + loss(h, label, (second, first, none, none)))


def far_from_their_like(rng: np.random.RandomState, classes: int, size: int) -> torch.Tensor:
    """Two embeddings a class. The first ones' products with one another are below −100, so are the second ones'.

    What (7) of losses/metric.py has beyond N-pair's own terms, the anchors of other classes, is then e⁻¹⁰⁰ of a sum.
    """
    simplex = 20.0 * (np.eye(classes) - 1.0 / classes)
    zero, free = np.zeros_like(simplex), rng.randn(2, classes, size)
    return torch.tensor(np.vstack([np.hstack([simplex, zero, free[0]]), np.hstack([zero, simplex, free[1]])]))


def triplet(h: torch.Tensor, label: torch.Tensor, **settings: object) -> torch.Tensor:
    mean = {"distance": LpDistance(power=2), "reducer": MeanReducer(), "margin": MARGIN}
    return losses.TripletMarginLoss(**(mean | settings))(h, label)


def hard(h: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Raw Euclidean distances, as 1703.07737 has them."""
    raw = LpDistance(normalize_embeddings=False)
    loss = losses.TripletMarginLoss(margin=MARGIN, distance=raw, reducer=MeanReducer())
    return loss(h, label, BatchHardMiner(distance=raw)(h, label))


def comparisons() -> dict[str, np.ndarray]:
    rng = np.random.RandomState(0)
    mixed, twos = ({"h": torch.tensor(rng.randn(len(label), 4))} for label in (MIXED, TWOS))
    tempered = {"temperature": TEMPERATURE}
    dots = losses.NTXentLoss(temperature=1.0, distance=DotProductSimilarity(normalize_embeddings=False))
    pairs = {"h": far_from_their_like(rng, len(PAIRS) // 2, 2)}
    # The mean over those that are not 0, where `active` says so.
    active = {"reducer": AvgNonZeroReducer()}
    return {
        **case("contrastive", MIXED, mixed, contrastive),
        **case("triplet_all", MIXED, mixed, triplet),
        **case("triplet_active", MIXED, mixed, lambda h, label: triplet(h, label, **active)),
        **case("triplet_soft", MIXED, mixed, lambda h, label: triplet(h, label, margin=0.0, smooth_loss=True)),
        **case("triplet_hard", MIXED, mixed, hard),
        **case("info_nce", MIXED, mixed, lambda h, label: losses.NTXentLoss(**tempered)(h, label)),
        **case("supervised", MIXED, mixed, lambda h, label: losses.SupConLoss(**tempered)(h, label)),
        **case("n_pair_dots", TWOS, twos, lambda h, label: dots(h, label)),
        **case("n_pair", PAIRS, pairs, n_pairs),
    }


def margins() -> dict[str, np.ndarray]:
    """Logits with margin, loss and gradients of softmaxes over classes; one embedding is past each last angle."""
    rng = np.random.RandomState(1)
    label, size = (0, 3, 1, 4, 2, 3, 0), 4
    found: dict[str, np.ndarray] = {}
    kinds = {
        "l_softmax": (losses.LargeMarginSoftmaxLoss, {"margin": 3}, 1),
        "a_softmax": (losses.SphereFaceLoss, {"margin": 4}, 1),
        "cosface": (losses.CosFaceLoss, {"margin": 0.35, "scale": 16}, 1),
        "arcface": (losses.ArcFaceLoss, {"margin": np.degrees(0.5), "scale": 16}, 1),
        "subcentre": (losses.SubCenterArcFaceLoss, {"margin": np.degrees(0.5), "scale": 16, "sub_centers": 3}, 3),
    }
    for name, (cls, settings, centres) in kinds.items():
        loss = cls(num_classes=5, embedding_size=size, **settings)
        w = rng.randn(5, centres, size)
        h = rng.randn(len(label), size)
        h[0] = -2.0 * w[label[0]].mean(axis=0) + 0.1 * rng.randn(size)
        loss.W.data = torch.tensor(w.reshape(-1, size).T.copy())
        embeddings = torch.tensor(h, requires_grad=True)
        value = loss(embeddings, torch.tensor(label))
        value.backward()
        with torch.no_grad():
            cos = loss.get_cosine(embeddings)
            own = torch.arange(len(label)), torch.tensor(label)
            cos[own] = loss.modify_cosine_of_target_classes(cos[own])
            logits = loss.scale_logits(cos, embeddings)
        shape = w.shape if centres > 1 else (5, size)
        arrays = {"label": np.asarray(label, np.int32), "loss": value.detach().numpy(), "logits": logits.numpy()}
        arrays |= {"input/h": h, "input/w": w.reshape(shape), "gradient/h": embeddings.grad.numpy()}
        arrays |= {"gradient/w": loss.W.grad.numpy().T.reshape(shape)}
        found |= {f"{name}/{key}": array for key, array in arrays.items()}
    return found


def main() -> None:
    arrays = {"version": np.asarray(f"{pytorch_metric_learning.__version__}, torch {torch.__version__}")}
    arrays |= {"margin": np.asarray(MARGIN), "temperature": np.asarray(TEMPERATURE)}
    arrays |= comparisons() | margins()
    path = Path(__file__).resolve().parent.parent / "tests" / "metric_learning_arrays.npz"
    np.savez_compressed(path, **arrays)
    print(f"wrote {len(arrays)} arrays of {arrays['version']} to {path.name}, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
