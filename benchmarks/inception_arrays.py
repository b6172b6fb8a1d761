"""Makes tests/inception_arrays.npz, what PyTorch's FID Inception answers: `python benchmarks/inception_arrays.py`.

Needs torch, torchvision and pytorch-fid, and nothing from a network: the weights are random. The file holds

    state            the entries of the state dict in their order, a line each: name, shape
    images, output   two small images [N, H, W, C] in [−1, 1], and their features
    zip, legacy      files of torch.save, as bytes, in the format since PyTorch 1.6 and in the one before
    tensor/NAME      what the first of them holds; halves as float32

The weights are drawn in the state dict's order, from one stream of RandomState(0), so that the test can draw them
again: `weights` here and there. What is not looked at (the classifier, the counters) is not drawn.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_fid.inception as reference
import torch
import torchvision


def weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Such that activations stay of order 1, and that no part of a norm is without effect."""
    stream, found = np.random.RandomState(0), {}
    for name, shape in shapes.items():
        if name.startswith("fc.") or name.endswith(".num_batches_tracked"):
            continue
        kind = name.rsplit(".", 1)[1]
        if kind == "weight" and len(shape) == 4:
            value = stream.randn(*shape) * np.sqrt(2.0 / np.prod(shape[1:]))
        elif kind in ("weight", "running_var"):
            value = stream.uniform(0.5, 1.5, shape)
        else:
            value = 0.1 * stream.randn(*shape)
        found[name] = value.astype(np.float32)
    return found


def network() -> Any:
    """pytorch-fid's variant of torchvision's network, without the weights that it would fetch."""
    fetch = reference.load_state_dict_from_url
    # Its own random ones in their place: all that the constructor does with them is to load them.
    blank = torchvision.models.inception_v3(num_classes=1008, aux_logits=False, weights=None, init_weights=False)
    reference.load_state_dict_from_url = lambda *_, **__: blank.state_dict()
    found = reference.fid_inception_v3()
    reference.load_state_dict_from_url = fetch
    return found


def features(inception: Any, images: np.ndarray) -> np.ndarray:
    """By pytorch-fid's own resizing and its own order of blocks."""
    make = reference.fid_inception_v3
    reference.fid_inception_v3 = lambda: inception
    module = reference.InceptionV3().eval()
    reference.fid_inception_v3 = make
    with torch.no_grad():
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
        return module((pixels + 1) / 2)[0][:, :, 0, 0].numpy()


def saved(tensors: dict[str, torch.Tensor], **how: Any) -> np.ndarray:
    file = io.BytesIO()
    torch.save(tensors, file, **how)
    return np.frombuffer(file.getvalue(), np.uint8)


def main() -> None:
    inception = network()
    state = inception.state_dict()
    drawn = weights({name: tuple(value.shape) for name, value in state.items()})
    inception.load_state_dict({**state, **{name: torch.from_numpy(value) for name, value in drawn.items()}})
    images = np.random.RandomState(1).uniform(-1, 1, (2, 12, 9, 3)).astype(np.float32)
    lines = [" ".join([name, *map(str, value.shape)]) for name, value in state.items()]
    arrays = {"state": np.asarray("\n".join(lines)), "images": images, "output": features(inception, images)}

    torch.manual_seed(0)
    whole = torch.randn(4, 3)
    tensors = {
        "whole": whole,
        "transposed": whole.T,  # the same storage with other strides
        "rows": whole[1:3],  # … and from another place on
        "double": torch.randn(2, dtype=torch.float64),
        "half": torch.randn(3).half(),
        "bfloat16": torch.randn(3).bfloat16(),
        "long": torch.arange(-2, 3),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(7, dtype=torch.int32),
        "empty": torch.zeros(0, 5),
    }
    arrays |= {"zip": saved(tensors), "legacy": saved(tensors, _use_new_zipfile_serialization=False)}
    plain = {
        name: value.float() if value.dtype in (torch.half, torch.bfloat16) else value for name, value in tensors.items()
    }
    arrays |= {f"tensor/{name}": value.numpy() for name, value in plain.items()}

    path = Path(__file__).resolve().parent.parent / "tests" / "inception_arrays.npz"
    np.savez_compressed(path, **arrays)
    versions = f"PyTorch {torch.__version__}, torchvision {torchvision.__version__}"
    print(f"wrote {len(arrays)} arrays of {versions} to {path.name}, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
