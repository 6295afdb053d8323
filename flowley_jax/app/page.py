"""The page: what a visitor fills in, progress, and a player for each candidate."""

import contextlib
from collections.abc import Callable, Generator, Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr  # pyright: ignore[reportMissingImports]
import numpy as np

from flowley_jax.app.service import (
    MOST_CANDIDATES,
    RANDOM,
    Candidate,
    Outcome,
    Progress,
    Request,
    Service,
)
from flowley_jax.app.visitors import Visitors
from flowley_jax.audio.mel import log_mel
from flowley_jax.errors import FlowleyError
from flowley_jax.report.images import heat_map
from flowley_jax.report.plot import time_axis
from flowley_jax.sampling.sampler import Sampler

CSS = Path(__file__).with_name("page.css")
# Visitors who are served at the same time; the others see their place in the queue.
AT_ONCE = 2
WAITING = 20
# Files of visitors whose leaving Gradio did not notice are removed after this time; see `gradio.Blocks`.
_CLEANING_SECONDS, _KEPT_SECONDS = 60, 3600
# Quantiles of the mel values that get the darkest and the brightest colour.
_QUANTILES = (0.02, 0.998)
_TITLE = "Sound for a video"


def build_page(
    service: Service, *, about: str, examples: Sequence[tuple[Path, str]], most_seconds: float, files: Path
) -> gr.Blocks:
    """Return the page.

    Args:
      service: what makes the sounds.
      about: what the visitor should know of the model, in Markdown.
      examples: videos with prompts to try.
      most_seconds: longest part of a video that is used.
      files: folder in which Gradio keeps its files.
    """
    visitors = Visitors(files)
    with gr.Blocks(
        title=_TITLE, analytics_enabled=False, delete_cache=(_CLEANING_SECONDS, _KEPT_SECONDS)
    ) as page:
        gr.Markdown(f"# {_TITLE}\n\n{about}", elem_classes="intro")
        with gr.Row():
            with gr.Column(min_width=300):
                video = gr.Video(label="Video", sources=["upload"], height=300, elem_id="video")
                prompt = gr.Textbox(
                    label="Prompt", placeholder="a glass ball bounces on the floor", max_lines=3
                )
                with gr.Accordion("More settings", open=False):
                    settings = _settings(service.sampler, most_seconds)
                with gr.Row():
                    make = gr.Button("Make sound", variant="primary", elem_id="make")
                    cancel = gr.Button("Cancel", elem_id="cancel")
                if examples:
                    gr.Examples(
                        [[str(path), text] for path, text in examples],
                        [video, prompt],
                        label="Examples",
                        cache_examples=False,
                    )
            with gr.Column(min_width=300):
                status = gr.HTML(_note("Choose a video to start."), elem_classes="status", elem_id="status")
                players = [_player(number) for number in range(MOST_CANDIDATES)]
        video.change(
            lambda chosen: _note("Press Make sound." if chosen else "Choose a video to start."),
            video,
            status,
            queue=False,
            api_visibility="private",
        )
        ticket = gr.State(0)
        private = {"trigger_mode": "multiple", "api_visibility": "private"}
        # A visitor who clicks again replaces the request before; the ticket tells them apart.
        make.click(
            _by_session(lambda session: (_note("Waiting for a free slot."), visitors.new_ticket(session))),
            None,
            [status, ticket],
            queue=False,
            **private,
        ).then(
            _handler(service, visitors, most_seconds),
            [ticket, video, prompt, *settings],
            [status, *(part for player in players for part in player)],
            concurrency_limit=AT_ONCE,
            show_progress="minimal",
            show_progress_on=[status],
            **private,
        )
        # Not by Gradio's `cancels`, whose last update of the status can be lost.
        cancel.click(_by_session(visitors.cancel), None, None, queue=False, **private)
        page.unload(_by_session(visitors.remove))
    visitors.keep_present_files()
    page.queue(max_size=WAITING)
    return page


def _settings(sampler: Sampler, most_seconds: float) -> list[Any]:
    """Return the fields for all but video and prompt, in the order in which the handler takes them."""
    settings = sampler.settings
    folds_guidance = settings.solver.name == "flow_map"
    usual_seconds = min(most_seconds, 2 * sampler.components.seconds)
    follows = "the video." if settings.guidance_text else "the video and the prompt."
    return [
        gr.Textbox(label="Negative prompt", info="What the sound should not be.", visible=not folds_guidance),
        gr.Slider(1, MOST_CANDIDATES, 1, step=1, label="Candidates", info="Sounds to choose from."),
        gr.Slider(
            1,
            most_seconds,
            usual_seconds,
            step=0.5,
            label="Seconds",
            info="Use at most this much, from the start of the video.",
        ),
        gr.Number(RANDOM, precision=0, label="Seed", info="−1 draws a new one each time."),
        gr.Slider(1, 100, settings.solver.steps, step=1, label="Steps"),
        gr.Slider(
            1,
            10,
            1.0 if folds_guidance else settings.guidance,
            step=0.25,
            label="Guidance scale",
            info=f"How closely the sound follows {follows}",
            visible=not folds_guidance,
        ),
        gr.Slider(-40, 0, 0, step=1, label="Loudness (LUFS)", info="0 keeps the level of the model."),
    ]


def _player(number: int) -> tuple[gr.Group, gr.Video, gr.HTML]:
    with gr.Group(visible=False, elem_classes="sound") as group:
        video = gr.Video(
            show_label=False, interactive=False, buttons=["download"], height=300, elem_id=f"sound-{number}"
        )
        picture = gr.HTML(padding=True)
    return group, video, picture


def _handler(
    service: Service, visitors: Visitors, most_seconds: float
) -> Callable[..., Generator[list[Any], None, None]]:
    """Return the function that serves a click: it yields the status and the players."""
    rate, mel = service.sampler.components.sample_rate, service.sampler.components.codec.mel
    untouched = [gr.skip()] * (3 * MOST_CANDIDATES)

    def serve(
        ticket: int,
        video: str | None,
        prompt: str,
        negative: str,
        candidates: float,
        seconds: float,
        seed: float | None,
        steps: float,
        guidance: float,
        loudness: float,
        visitor: gr.Request,
    ) -> Generator[list[Any], None, None]:
        if not video:
            yield [_fault("Choose a video first."), *untouched]
            return
        if visitors.is_cancelled(_session(visitor), ticket):
            yield [_note("Cancelled."), *untouched]
            return
        yield [_progress(Progress(0.0, "starting")), *_hidden()]
        folder = visitors.new_folder(_session(visitor), Path(video))
        try:
            request = Request(
                video=Path(video),
                prompt=prompt or "",
                negative_prompt=negative or "",
                seed=RANDOM if seed is None else int(seed),
                steps=int(steps),
                guidance=float(guidance),
                seconds=min(float(seconds), most_seconds),
                candidates=int(candidates),
                loudness=float(loudness) or None,
            )
            with contextlib.closing(service.generate(request, folder)) as events:
                for event in events:
                    if visitors.is_cancelled(_session(visitor), ticket):
                        yield [_note("Cancelled."), *untouched]
                        return
                    if isinstance(event, Outcome):
                        pictures = [
                            _picture(sound, log_mel(sound.wave, mel), rate) for sound in event.candidates
                        ]
                        yield [_note(_summary(event)), *_shown(event.candidates, pictures)]
                    else:
                        yield [_progress(event), *untouched]
        except FlowleyError as error:
            yield [_fault(_without_folders(str(error), video)), *untouched]

    return serve


def _by_session(action: Callable[[str], Any]) -> Callable[[gr.Request], Any]:
    """Return a function for an event, which gets the visitor from Gradio by its annotation."""

    def act(visitor: gr.Request) -> Any:
        return action(_session(visitor))

    return act


def _session(visitor: gr.Request) -> str:
    return visitor.session_hash or ""


def _hidden() -> list[Any]:
    return [gr.Group(visible=False), gr.Video(value=None), gr.HTML(value="")] * MOST_CANDIDATES


def _shown(candidates: Sequence[Candidate], pictures: Sequence[str]) -> list[Any]:
    parts: list[Any] = []
    for sound, picture in zip(candidates, pictures, strict=True):
        parts += [gr.Group(visible=True), gr.Video(value=str(sound.video)), gr.HTML(value=picture)]
    return parts + _hidden()[len(parts) :]


def _picture(sound: Candidate, mel: np.ndarray, rate: int) -> str:
    low, high = np.quantile(mel, _QUANTILES)
    image = heat_map(mel.T[::-1], low=float(low), high=float(high))
    score = "" if sound.score is None else f"<p>agreement with the other candidates: {sound.score:.2f}</p>"
    return (
        f'<figure><img src="{image}" alt="mel spectrogram of the sound">{time_axis(len(sound.wave) / rate)}'
        f"</figure>{score}"
    )


def _summary(outcome: Outcome) -> str:
    count = len(outcome.candidates)
    made = "1 sound" if count == 1 else f"{count} sounds"
    if outcome.candidates[0].score is not None:
        made += ", best first"
    return " ".join([f"Done: {made}. Seed {outcome.seed} gives the same sounds again.", *outcome.remarks])


def _progress(progress: Progress) -> str:
    return (
        f'<progress value="{progress.share:.4f}" max="1" aria-label="progress"></progress>'
        f"<p>{escape(progress.text)}</p>"
    )


def _note(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def _fault(text: str) -> str:
    return f'<p class="fault" role="alert">{escape(text)}</p>'


def _without_folders(text: str, video: str) -> str:
    """Return a message in which the upload has the name that the visitor gave it."""
    return text.replace(video, Path(video).name)
