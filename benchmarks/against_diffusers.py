"""A step of diffusers' schedulers over a step of ours: the part `diffusers` of benchmarks/samplers.py.

Both make the same calls of the same network, on the same steps of DDPM where the scheduler can be told so; that both
compute the same is checked for ddim, that both end in finite values for all. PyTorch runs eagerly, as diffusers does,
our loop is compiled: what is measured is what a step costs besides the network. Beside a large one it is nothing.
"""

import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import Small, drawing, interleaved, quartiles
from models.denoiser import Denoiser
from paths.grids import Uniform
from paths.schedules import DDPMLinear
from samplers.catalogue import solvers


def small_in_torch(params: Any) -> Callable[[Any, Any], Any]:
    """`Small` with the same parameters, called as diffusers calls a network: t = 0 … 999 where ours says 1 … 1000."""
    import torch

    first, second = (
        tuple(torch.from_numpy(np.array(params[f"Dense_{i}"][key])) for key in ("bias", "kernel")) for i in range(2)
    )

    def network(x: Any, t: Any) -> Any:
        h = torch.cat([x, ((t + 1) / 1000.0).float().expand(len(x), 1)], dim=1)
        h = torch.nn.functional.silu(torch.addmm(first[0], h, first[1]))
        return torch.addmm(second[0], h, second[1])

    return network


def schedulers() -> dict[str, Any]:
    """diffusers' scheduler of each of our solvers, on the same times where it can be told so."""
    import diffusers as d

    same: Any = {"timestep_spacing": "trailing"}
    return {
        "ddim": d.DDIMScheduler(clip_sample=False, **same),
        "ddpm": d.DDPMScheduler(clip_sample=False, **same),
        "plms": d.PNDMScheduler(skip_prk_steps=True, **same),
        "ipndm": d.IPNDMScheduler(),
        "deis": d.DEISMultistepScheduler(solver_order=3, **same),
        "dpmpp_2m": d.DPMSolverMultistepScheduler(**same),
        "dpmpp_3m": d.DPMSolverMultistepScheduler(solver_order=3, **same),
        "sde_dpmpp_2m": d.DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", **same),
        "unipc": d.UniPCMultistepScheduler(**same),
        "euler": d.EulerDiscreteScheduler(**same),
        "heun": d.HeunDiscreteScheduler(**same),
    }


def against_diffusers(rounds: int) -> bool:
    try:
        import diffusers
        import torch
    except ImportError:
        sys.exit("the diffusers part needs the extra: pip install -e '.[bench]'")
    torch.set_num_threads(1)  # its fastest on a network this small
    n, size, steps = 16, 64, 50
    model = Denoiser(net=Small(), path=DDPMLinear(), predicts="eps")
    knots = Uniform().knots(model.path, steps)
    print(f"diffusers {diffusers.__version__} on torch {torch.__version__}: µs a step, {n} samples, {steps} steps")
    factors, agree = [], True
    for name, scheduler in schedulers().items():
        draw, arguments = drawing(solvers()[name](), model, knots, n, size)
        params, _, x = arguments
        network = small_in_torch(params["params"])
        scheduler.set_timesteps(steps)
        start = torch.from_numpy(np.array(x)) * scheduler.init_noise_sigma

        def ours() -> Any:
            return draw(*arguments).block_until_ready()

        def reset() -> None:
            scheduler.set_timesteps(steps)

        @torch.inference_mode()
        def theirs() -> Any:
            x = start
            for t in scheduler.timesteps:
                eps = network(scheduler.scale_model_input(x, t), t)
                x = scheduler.step(eps, t, x).prev_sample
            return x.numpy()

        agree &= bool(np.isfinite(theirs()).all() and np.isfinite(ours()).all())
        if name == "ddim":
            reset()
            off = float(np.abs(theirs() - ours()).max() / np.abs(ours()).max())
            forward = jax.jit(lambda x, t: model.net.apply({"params": params["params"]}, x, t))
            inputs = (x, jnp.full((n,), 500.0)), (start, torch.tensor(500))
            with torch.inference_mode():
                alone = interleaved([lambda: forward(*inputs[0]).block_until_ready(), lambda: network(*inputs[1])], 300)
            mine, other = 1e3 * np.median(alone, axis=0)
            print(f"  the network alone: {mine:.3f} ms jitted here, {other:.3f} ms in torch; target below 0.2")
            print(f"  the samples of ddim differ by {off:.1e} of the largest; target 1e-4")
            agree &= max(mine, other) <= 0.2 and off <= 1e-4
        seconds = interleaved([ours, theirs], rounds, before=reset)
        mine, other = 1e6 * np.median(seconds, axis=0) / steps
        ratios = seconds[:, 1] / seconds[:, 0]
        factors.append(float(np.median(ratios)))
        print(f"  {name:13}{mine:6.0f}   {type(scheduler).__name__:28}{other:6.0f}   ×{quartiles(ratios)}", flush=True)
    print(f"  smallest ×{min(factors):.1f}; target ×5\n")
    return agree and min(factors) >= 5
