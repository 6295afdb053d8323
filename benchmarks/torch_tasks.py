"""Forward pass, training step and guided sample of the PyTorch twin, as `jax_tasks` has them in JAX."""

import copy
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional

from benchmarks.torch_twin import Twin
from flowley_jax.config import ExperimentConfig


def prepare(
    task: str,
    config: ExperimentConfig,
    inputs: dict[str, np.ndarray],
    *,
    steps: int,
    guidance: float,
    compiled: bool,
) -> Callable[[], Any]:
    """Return the task as a function that returns when its result is ready.

    Args:
      task: "forward", "train" or "sample".
      config: sizes, compute type and settings of training.
      inputs: a batch of records and times `t`.
      steps, guidance: Euler steps and guidance scale of "sample".
      compiled: whether torch.compile compiles the network.
    """
    torch.manual_seed(config.seed)
    device_type = _device_type()
    batch = {name: torch.from_numpy(value).to(device_type) for name, value in inputs.items()}
    video, text, text_len = batch["video_features"], batch["text_features"], batch["text_len"]
    twin = Twin(config.model, (inputs["audio_mean"].shape[1], video.shape[1], text.shape[1]))
    twin = twin.to(device_type).eval()
    forward = torch.compile(twin) if compiled else twin
    if task == "train":
        training = Training(twin, forward, config)
        return _synchronised(lambda: training.step(batch))
    bfloat16 = config.model.dtype == "bfloat16"

    @torch.no_grad()
    def velocity(*args: Tensor) -> Tensor:
        with torch.autocast(device_type, torch.bfloat16, enabled=bfloat16):
            return forward(*args)

    if task == "forward":
        return _synchronised(lambda: velocity(batch["audio_mean"], video, text, text_len, batch["t"]))
    noise = torch.randn_like(batch["audio_mean"])
    return _synchronised(
        lambda: guided_sample(velocity, twin, noise, video, text, text_len, steps=steps, guidance=guidance)
    )


def matmul_rate(dtype: str, size: int) -> float:
    """Return the FLOPs per second of one product of square matrices."""
    a = torch.randn(size, size, dtype=getattr(torch, dtype), device=_device_type())
    product = _synchronised(lambda: a @ a)
    product()
    started = time.perf_counter()
    product()
    return 2 * size**3 / (time.perf_counter() - started)


def device() -> str:
    """Return the name of the device that tasks run on."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def peak_memory() -> int | None:
    """Return the largest number of bytes in use on an accelerator so far; None on CPU."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None


def _device_type() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _synchronised(function: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> Any:
        result = function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return result

    return run


class Training:
    """Training of the twin: AdamW with clipping, immiscible coupling, condition dropout and averaged weights.

    Args:
      twin: the network whose weights are trained.
      forward: the twin itself, or its torch.compile'd form.
      config: settings of the loss, the optimiser and the averages.
    """

    def __init__(self, twin: Twin, forward: Callable[..., Tensor], config: ExperimentConfig):
        optim = config.optim
        self.twin, self.forward, self.config = twin.train(), forward, config
        self.parameters = [p for p in twin.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=optim.learning_rate,
            betas=(optim.beta1, optim.beta2),
            weight_decay=optim.weight_decay,
            fused=True,
        )
        self.averages = [copy.deepcopy(self.parameters) for _ in config.ema.sigma_rels]
        self.device_type = self.parameters[0].device.type

    def step(self, batch: dict[str, Tensor]) -> Tensor:
        """Update the weights once and return the loss, still on the device."""
        with torch.no_grad():
            noisy, target, video, text, t = self._draw_examples(batch)
        bfloat16 = self.config.model.dtype == "bfloat16"
        with torch.autocast(self.device_type, torch.bfloat16, enabled=bfloat16):
            velocity = self.forward(noisy, video, text, batch["text_len"], t)
        loss = flow_loss(velocity.float(), target, direction_weight=self.config.flow.loss.direction_weight)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.config.optim.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            for average in self.averages:
                torch._foreach_lerp_(average, self.parameters, 1e-3)
        return loss.detach()

    def _draw_examples(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        mean, std = batch["audio_mean"], batch["audio_std"]
        latent = mean + std * torch.randn_like(mean)
        data = (latent - self.twin.latent_mean) / self.twin.latent_std
        noise = torch.randn_like(data)
        cost = torch.cdist(data.flatten(1), noise.flatten(1))
        noise = noise[torch.from_numpy(linear_sum_assignment(cost.cpu())[1]).to(noise.device)]
        t = 1 - 1 / (torch.tan(math.pi / 2 * torch.rand(len(data), device=data.device)) + 1)
        drop = torch.rand(2, len(data), 1, 1, device=data.device) < self.config.flow.condition_dropout
        video = torch.where(drop[0], self.twin.empty_visual_feature, batch["video_features"])
        text = torch.where(drop[1], self.twin.empty_text_feature, batch["text_features"])
        time_column = t[:, None, None]
        return time_column * data + (1 - time_column) * noise, data - noise, video, text, t


def flow_loss(velocity: Tensor, target: Tensor, *, direction_weight: float) -> Tensor:
    """Return the mean squared error plus the weighted direction loss."""
    cosine = functional.cosine_similarity(velocity, target, dim=-1)
    return functional.mse_loss(velocity, target) + direction_weight * (1 - cosine).mean()


@torch.no_grad()
def guided_sample(
    forward: Callable[..., Tensor],
    twin: Twin,
    noise: Tensor,
    video: Tensor,
    text: Tensor,
    text_len: Tensor,
    *,
    steps: int,
    guidance: float,
) -> Tensor:
    """Sample latents in the scale of the codec by Euler steps; both branches of guidance share a batch."""
    video = torch.cat([video, twin.empty_visual_feature.expand_as(video)])
    text = torch.cat([text, twin.empty_text_feature.expand_as(text)])
    text_len = torch.cat([text_len, text_len])
    x = noise
    for index in range(steps):
        t = torch.full((2 * len(x),), index / steps, device=x.device)
        conditional, empty = forward(torch.cat([x, x]), video, text, text_len, t).float().chunk(2)
        x = x + (guidance * conditional + (1 - guidance) * empty) / steps
    return x * twin.latent_std + twin.latent_mean
