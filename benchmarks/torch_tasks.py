"""Forward pass, training step and guided sample of the PyTorch twin: the same work as this project's."""

import copy
import math
import time

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
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
):
    """The task as a function that ends when its result is there."""
    torch.manual_seed(config.seed)
    at = _device()
    batch = {name: torch.from_numpy(value).to(at) for name, value in inputs.items()}
    video, text, text_len = batch["video_features"], batch["text_features"], batch["text_len"]
    twin = Twin(config.model, (inputs["audio_mean"].shape[1], video.shape[1], text.shape[1])).to(at).eval()
    forward = torch.compile(twin) if compiled else twin
    if task == "train":
        training = Training(twin, forward, config)
        return _waiting(lambda: training.step(batch))
    half = config.model.dtype == "bfloat16"

    @torch.no_grad()
    def velocity(*args):
        with torch.autocast(at, torch.bfloat16, enabled=half):
            return forward(*args)

    if task == "forward":
        return _waiting(lambda: velocity(batch["audio_mean"], video, text, text_len, batch["t"]))
    noise = torch.randn_like(batch["audio_mean"])
    return _waiting(
        lambda: guided_sample(velocity, twin, noise, video, text, text_len, steps=steps, guidance=guidance)
    )


def matmul_rate(dtype: str, size: int) -> float:
    """FLOPs per second of one product of square matrices."""
    a = torch.randn(size, size, dtype=getattr(torch, dtype), device=_device())
    product = _waiting(lambda: a @ a)
    product()
    started = time.perf_counter()
    product()
    return 2 * size**3 / (time.perf_counter() - started)


def device() -> str:
    """What the task runs on."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def peak_memory() -> int | None:
    """Most bytes in use on an accelerator; None on CPU."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _waiting(function):
    def run():
        result = function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return result

    return run


class Training:
    """A run of the twin: AdamW with clipping, noise–data coupling, dropped conditions, averaged weights.

    Args:
      forward: the twin, or what torch.compile made of it.
    """

    def __init__(self, twin: Twin, forward, config: ExperimentConfig):
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

    def step(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """One update. Returns the loss, still on the device."""
        with torch.no_grad():
            noisy, target, video, text, t = self._examples(batch)
        half = self.config.model.dtype == "bfloat16"
        with torch.autocast(self.device_type, torch.bfloat16, enabled=half):
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

    def _examples(self, batch):
        mean, std = batch["audio_mean"], batch["audio_std"]
        latent = mean + std * torch.randn_like(mean)
        data = (latent - self.twin.latent_mean) / self.twin.latent_std
        noise = torch.randn_like(data)
        cost = torch.cdist(data.flatten(1), noise.flatten(1))
        noise = noise[torch.from_numpy(linear_sum_assignment(cost.cpu())[1]).to(noise.device)]
        t = 1 - 1 / (torch.tan(math.pi / 2 * torch.rand(len(data), device=data.device)) + 1)
        dropped = torch.rand(2, len(data), 1, 1, device=data.device) < self.config.flow.condition_dropout
        video = torch.where(dropped[0], self.twin.empty_visual_feature, batch["video_features"])
        text = torch.where(dropped[1], self.twin.empty_text_feature, batch["text_features"])
        moved = t[:, None, None]
        return moved * data + (1 - moved) * noise, data - noise, video, text, t


def flow_loss(velocity, target, *, direction_weight: float):
    """Mean squared error, and the direction loss."""
    cosine = functional.cosine_similarity(velocity, target, dim=-1)
    return functional.mse_loss(velocity, target) + direction_weight * (1 - cosine).mean()


@torch.no_grad()
def guided_sample(forward, twin: Twin, noise, video, text, text_len, *, steps: int, guidance: float):
    """Euler steps with both branches of guidance in one batch. Returns latents in the codec's scale."""
    empty = twin.empty_visual_feature.expand_as(video), twin.empty_text_feature.expand_as(text)
    video, text = torch.cat([video, empty[0]]), torch.cat([text, empty[1]])
    text_len = torch.cat([text_len, text_len])
    x = noise
    for index in range(steps):
        t = torch.full((2 * len(x),), index / steps, device=x.device)
        conditional, free = forward(torch.cat([x, x]), video, text, text_len, t).float().chunk(2)
        x = x + (guidance * conditional + (1 - guidance) * free) / steps
    return x * twin.latent_std + twin.latent_mean
