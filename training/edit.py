"""What sample.py can do to a run's sampler: guidance, thresholding, and images to agree with.

Flags become transformations of the denoiser (samplers/transforms.py), put in their order; other runs' parameters
become further variables; images become arrays of the condition.
"""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from data.dataset import Arrays, Dataset
from data.pixels import decode, to_model_space
from losses.flow_matching import FlowMatching
from models.classifier import NoisyClassifier
from models.denoiser import Denoiser
from models.flows.flow import Flow
from models.model import NULL_LABEL, Variables
from paths.couplings import Independent
from samplers.autoguidance import Autoguidance
from samplers.classifier_guidance import ClassifierGuidance
from samplers.ddnm import DDNM
from samplers.diffusion import Diffusion
from samplers.flow import AscentInpainting, Interpolation
from samplers.guidance import ClassifierFree
from samplers.operators import Blur, Downsample, Mask, Operator
from samplers.pigdm import PiGDM
from samplers.sampler import Sampler
from samplers.thresholding import DynamicThreshold
from samplers.transforms import Clip, Transform
from training.errors import UserError
from training.experiment import Experiment
from training.inputs import classes_in_turn, example_batch, given_images
from training.run import Run


@dataclass(frozen=True, kw_only=True)
class Edit:
    """The flags."""

    guidance: float | None = None  # classifier-free guidance: 1 is none, above it stronger
    guidance_interval: tuple[float, float] = (0.0, 1.0)  # times at which to guide, 0 data and 1 noise
    guidance_rescale: float = 0.0  # how far the contrast of what is guided is brought back, 0 to 1
    threshold: bool = False  # dynamic thresholding, in place of clipping
    weak: Path | None = None  # run of a weaker model, for autoguidance
    weak_scale: float = 2.0  # of autoguidance: 1 is none
    classifier: Path | None = None  # run of a noise-aware classifier, to be guided by it
    classifier_scale: float = 1.0  # of the classifier's guidance: 0 is none
    inpaint: tuple[Path, Path] | None = None  # mask and image: pixels that are white in the mask are kept
    deblur: tuple[float, Path] | None = None  # a blur's standard deviation in pixels, and the blurred image
    super_resolve: tuple[int, Path] | None = None  # a factor, and the image that is so many times smaller
    method: Literal["ddnm", "pigdm"] | None = None  # ddnm for --inpaint, else pigdm
    image_noise: float = 0.01  # standard deviation of the noise in the given image, on [-1, 1]; of pigdm
    interpolate: tuple[Path, Path] | None = None  # two images to pass between, in a flow's latents


@dataclass(frozen=True)
class Edited:
    """Flags that were found to fit a run; nothing has been computed yet."""

    sampler: Sampler  # the run's own, with the transformations put in
    classes: int  # from which a label may be chosen; 0: none
    given: dict[str, np.ndarray]  # arrays of the condition, [1, …]: known, mask
    shown: np.ndarray | None  # the given image [1, H, W, C] as the data's picture shows it
    others: dict[str, tuple[Run, Experiment]]  # weak, classifier
    null_class: bool = False  # whether the model was trained to answer without a class
    told: bool = False  # whether it was trained on classes alone, and a given image's must be said

    def condition(
        self, model: Any, data: Dataset, n: int, label: int | None, prompt: Arrays | None = None
    ) -> dict[str, Any] | None:
        """Labels, all in turn or one for all, and what else each of n samples is drawn from.

        `prompt`, arrays [1, …], stands in the place of what the data would have them begin with.
        """
        own = {name: np.repeat(value, n, axis=0) for name, value in prompt.items()} if prompt else data.condition(n)
        own |= given_images(model, data, n)
        if self.told and label is None:
            raise UserError("the flow was trained on classes: say with --label of which class the given image is")
        if label is not None:
            condition: dict[str, Any] = {**own, "label": np.full((n,), label, np.int32)}
        elif self.given and self.null_class:  # an image is of one class, and nobody said which
            condition = {"label": np.full((n,), NULL_LABEL, np.int32)}
        elif self.classes and not getattr(model, "num_classes", 0):
            condition = {"label": jnp.arange(n, dtype=jnp.int32) % self.classes}
        else:
            condition = {**own, **classes_in_turn(model, n)}
        if "start" in self.given:
            condition["fraction"] = np.linspace(0.0, 1.0, n, dtype=np.float32)
        condition |= {name: np.broadcast_to(value, (n, *value.shape[1:])) for name, value in self.given.items()}
        return condition or None

    def variables(self, variables: Variables, mesh: jax.sharding.Mesh) -> Variables:
        """The run's variables, and beside them the other runs' averaged ones."""
        loaded = {
            name: run.averaged(experiment.resolved_model(), example_batch(experiment), mesh)[0]
            for name, (run, experiment) in self.others.items()
        }
        return {**variables, **loaded}


def edited(edit: Edit, sampler: Sampler, folder: Path, experiment: Experiment) -> Edited:
    """The flags on `sampler`, of the run in `folder`.

    Raises:
      UserError: they do not fit the run, each other or the given files.
    """
    model = experiment.resolved_model()
    classes = getattr(model, "num_classes", 0)
    asked = edit != Edit()
    if not asked:
        return Edited(sampler, classes, {}, None, {})
    images = ("inpaint", "deblur", "super_resolve", "interpolate")
    if experiment.data.pictured != experiment.data and any(getattr(edit, name) is not None for name in images):
        raise UserError(f"{folder} draws codes or latents: images can be given to runs on images themselves")
    if isinstance(model, Flow):
        return _edited_flow(edit, sampler, folder, experiment, classes)
    if edit.interpolate is not None:
        raise UserError(f"{folder} has no latents to pass between: --interpolate is of flows")
    if not isinstance(sampler, Diffusion) or not isinstance(model, Denoiser):
        raise UserError(
            f"{folder} is drawn by {type(sampler).__name__}: guidance, thresholds and given images need a run that is "
            "drawn by Diffusion"
        )
    for scale, of in (("weak_scale", "weak"), ("classifier_scale", "classifier")):
        if getattr(edit, of) is None and getattr(edit, scale) != getattr(Edit(), scale):
            raise UserError(f"--{scale.replace('_', '-')} is a setting of --{of} RUN: give it too")
    first: list[Transform] = [t for t in sampler.transforms if isinstance(t, ClassifierFree)]
    rest = [t for t in sampler.transforms if not isinstance(t, ClassifierFree)]
    others: dict[str, tuple[Run, Experiment]] = {}
    try:
        if edit.guidance is not None:
            first = [_classifier_free(edit, edit.guidance, folder, experiment, classes)]
        elif (edit.guidance_interval, edit.guidance_rescale) != ((0.0, 1.0), 0.0) and edit.weak is None:
            raise UserError("--guidance-interval and --guidance-rescale are settings of --guidance SCALE: give it too")
        if edit.guidance_rescale and edit.guidance is None:
            raise UserError("--guidance-rescale is a setting of --guidance SCALE: give it too")
        if edit.weak is not None:
            others["weak"] = _other(edit.weak, Denoiser, folder, experiment)
            weak: Any = others["weak"][1].resolved_model()
            first.append(Autoguidance(scale=edit.weak_scale, weak=weak, interval=edit.guidance_interval))
        if edit.classifier is not None:
            others["classifier"] = _other(edit.classifier, NoisyClassifier, folder, experiment)
            classifier: Any = others["classifier"][1].resolved_model()
            first.append(ClassifierGuidance(scale=edit.classifier_scale, classifier=classifier))
            classes = classes or classifier.num_classes
        operator, given, shown = _measurement(edit, folder, experiment.data.shape)
        last: list[Transform] = []
        if operator is not None:
            method = edit.method or ("ddnm" if edit.inpaint else "pigdm")
            if method == "ddnm":
                last = [DDNM(operator=operator)]
            else:
                first.append(PiGDM(operator=operator, noise=edit.image_noise))
        elif edit.method is not None:
            raise UserError("--method is how a given image is kept: give --inpaint, --deblur or --super-resolve too")
        by_gradient = [t for t in first if isinstance(t, ClassifierGuidance | PiGDM)]
        if edit.image_noise != Edit().image_noise and not any(isinstance(t, PiGDM) for t in first):
            raise UserError("--image-noise is a setting of --method pigdm and a given image: give both too")
        if by_gradient and not _knows_its_score(experiment):
            raise UserError(
                f"{folder} was trained on noise coupled to data: its x̂₀ gives no score, and neither --classifier nor "
                "pigdm is right with it (--method ddnm is)"
            )
        if edit.threshold:
            rest = [*(t for t in rest if not isinstance(t, Clip)), DynamicThreshold()]
    except ValueError as error:  # a setting that its transformation refuses
        raise UserError(str(error)) from error
    return Edited(
        replace(sampler, transforms=(*first, *rest, *last)), classes, given, shown, others, _null_class(experiment)
    )


def _edited_flow(edit: Edit, sampler: Sampler, folder: Path, experiment: Experiment, classes: int) -> Edited:
    """What a flow can do: fill in pixels by gradient ascent, and pass between two images."""
    shape = experiment.data.shape
    if sampler != experiment.sampler:
        raise UserError("a given image is not drawn from the prior: --temperature has no meaning with it")
    for field in fields(Edit):
        if field.name not in ("inpaint", "interpolate") and getattr(edit, field.name) != field.default:
            flag = field.name.replace("_", "-")
            raise UserError(f"{folder} is a flow: it can --inpaint and --interpolate, and --{flag} is of diffusion")
    if edit.inpaint is not None and edit.interpolate is not None:
        raise UserError("--inpaint and --interpolate: one at a time")
    if edit.interpolate is not None:
        if len(shape) != 3 or shape[2] not in (1, 3, 4):
            raise UserError(f"{folder} draws samples of shape {shape}, no images that a PNG could be given for")
        start, end = (_read(file, shape, folder) for file in edit.interpolate)
        return Edited(Interpolation(), classes, {"start": start, "end": end}, None, {}, told=bool(classes))
    _, given, shown = _measurement(edit, folder, shape)
    return Edited(AscentInpainting(), classes, given, shown, {}, told=bool(classes))


def _null_class(experiment: Experiment) -> bool:
    """Whether the model has classes and was trained to answer without one too."""
    return bool(getattr(experiment.model, "num_classes", 0) and getattr(experiment.loss, "label_dropout", 0.0))


def _knows_its_score(experiment: Experiment) -> bool:
    """Whether (αx̂₀ − x)/σ² is the score: independent noise, and no more of it between the ends."""
    loss = experiment.loss
    return not isinstance(loss, FlowMatching) or (isinstance(loss.coupling, Independent) and not loss.spread)


def _classifier_free(edit: Edit, scale: float, folder: Path, experiment: Experiment, classes: int) -> ClassifierFree:
    if not classes:
        raise UserError(
            f"--guidance {scale:g}: {folder} is not conditioned on classes (train with --model.net.num-classes)"
        )
    if not _null_class(experiment):
        raise UserError(
            f"--guidance {scale:g}: {folder} was trained on labels alone and has no null class to guide away from; "
            "--loss.label-dropout 0.1 trains one"
        )
    return ClassifierFree(scale=scale, interval=edit.guidance_interval, rescale=edit.guidance_rescale)


def _other(path: Path, kind: type, folder: Path, experiment: Experiment) -> tuple[Run, Experiment]:
    """Another run, whose model must be of that kind, on the same path and for data of the same shape."""
    run = Run(path)
    other = run.experiment()
    if not isinstance(other.model, kind):
        raise UserError(f"{path} is a run of {type(other.model).__name__}, where one of {kind.__name__} is needed")
    theirs: Any = other.model
    ours: Any = experiment.model
    if other.data.shape != experiment.data.shape:
        raise UserError(f"{path} is of data {other.data.shape}, but {folder} of {experiment.data.shape}")
    if theirs.path != ours.path:
        raise UserError(f"{path} was trained on the path {theirs.path}, but {folder} on {ours.path}")
    if theirs.num_classes and ours.num_classes not in (0, theirs.num_classes):
        raise UserError(f"{path} knows {theirs.num_classes} classes, but {folder} {ours.num_classes}")
    return run, other


def _measurement(
    edit: Edit, folder: Path, shape: tuple[int, ...]
) -> tuple[Operator | None, dict[str, np.ndarray], np.ndarray | None]:
    """The operator, the condition's arrays and the image to be shown."""
    asked = [name for name in ("inpaint", "deblur", "super_resolve") if getattr(edit, name) is not None]
    if len(asked) > 1:
        flags = " and ".join("--" + name.replace("_", "-") for name in asked)
        raise UserError(f"{flags}: one image at a time can be given")
    if asked and (len(shape) != 3 or shape[2] not in (1, 3, 4)):
        raise UserError(f"{folder} draws samples of shape {shape}, no images that a PNG could be given for")
    if edit.inpaint is not None:
        mask_file, image_file = edit.inpaint
        mask = _read(mask_file, (*shape[:2], 1), folder)
        image = _read(image_file, shape, folder)
        mask = (mask > 0.0).astype(np.float32)
        return Mask(), {"known": image, "mask": mask}, np.where(mask > 0.5, image, np.float32(0.0))
    if edit.deblur is not None:
        std, file = edit.deblur
        operator = Blur(std=std)
        image = _read(file, shape, folder)
        return operator, {"known": image}, image
    if edit.super_resolve is not None:
        factor, file = edit.super_resolve
        operator = Downsample(factor=factor)
        for side in shape[:2]:
            operator.matrix(side)  # says whether the blocks divide it
        image = _read(file, (shape[0] // factor, shape[1] // factor, shape[2]), folder, f" / {factor}")
        return operator, {"known": image}, image.repeat(factor, axis=1).repeat(factor, axis=2)
    return None, {}, None


def _read(file: Path, shape: tuple[int, ...], folder: Path, reduced: str = "") -> np.ndarray:
    """An image file as [1, H, W, C] in [−1, 1].

    Raises:
      UserError: there is none, or it has another size.
    """
    if not file.is_file():
        raise UserError(f"there is no image {file}")
    try:
        pixels = decode(file.read_bytes(), shape[2])
    except Exception as error:  # Pillow raises many kinds, one of them for a picture of too many pixels
        raise UserError(f"{file} is not an image that can be read") from error
    if pixels.shape != shape:
        height, width = pixels.shape[:2]
        raise UserError(
            f"{file} is {width}x{height} (width x height), but {folder} needs {shape[1]}x{shape[0]}"
            + (f": its images' size{reduced}" if reduced else "")
        )
    return to_model_space(pixels)[None]
