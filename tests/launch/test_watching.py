"""The watch over a TPU slice, with a fake cloud in place of Google's."""

import contextlib
import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowley_jax.errors import FlowleyError
from launch.commands import CommandError, MissingProgramError
from launch.job import Job
from launch.queued import STATUS, SliceRequest
from launch.watching import watch

JOB = Job(config="c.py", workdir="/mnt/flowley/run", repository="https://example.org/a.git")
REQUEST = SliceRequest(name="run-1", project="p", zone="z", accelerator="v5litepod-16", spot=True)
DELETION = "gcloud compute tpus queued-resources delete run-1 --project=p --zone=z --quiet --force"
_VERBS = {
    "describe": "queued-resources describe",
    "create": "queued-resources create",
    "delete": "queued-resources delete",
    "setup": "git clone",
    "start": "setsid",
    "tail": "tail -n 20",
    "status": STATUS,
}


def _verb(command):
    text = " ".join(command)
    return next(name for name, words in _VERBS.items() if words in text)


class _Script:
    """A fake cloud with a script: for each check, the state of the request and the machines' answer.

    A state of None means that there is no request, an answer of None that the machines do not respond. An
    exception in place of a state, or in `failures` by the verb of a command, is raised.
    """

    def __init__(self, script, failures):
        self.script, self.failures = list(script), failures
        self.actions, self.pauses = [], []

    def __call__(self, command, *, limit=900.0):
        verb = _verb(command)
        if verb == "describe":
            self.state, self.answer = self.script.pop(0)
            if isinstance(self.state, Exception):
                raise self.state
            if self.state is None:
                raise CommandError("gcloud failed with code 1: ERROR: NOT_FOUND: no such resource")
            return self.state + "\n"
        if verb == "status":
            if self.answer is None:
                raise CommandError("ssh: connection refused")
            rows = [self.answer] * 4 if isinstance(self.answer, str) else self.answer
            return "".join(f"{STATUS} {row}\n" for row in rows)
        self.actions.append(verb)
        if self.failures.get(verb):
            raise self.failures[verb].pop(0)
        return "the last line of the log"


def _watch(*script, patience=2, failures=None, **limits):
    cloud = _Script(script, failures or {})
    watch(JOB, REQUEST, cloud, every=60.0, patience=patience, sleep=cloud.pauses.append, **limits)
    assert not cloud.script
    return cloud


START = ["setup", "start"]


def test_training_is_followed_through_preemption_to_its_end(caplog):
    with caplog.at_level(logging.INFO, logger="launch.tpu"):
        cloud = _watch(
            (None, None),
            ("WAITING_FOR_RESOURCES", None),
            ("ACTIVE", "none 0"),
            ("ACTIVE", "running 0"),
            ("ACTIVE", "running 500"),
            ("ACTIVE", None),
            ("SUSPENDED", None),
            ("PROVISIONING", None),
            ("ACTIVE", "none 500"),
            ("ACTIVE", ["75 800", "running 800", "75 800", "75 800"]),
            ("ACTIVE", "75 800"),
            ("ACTIVE", "running 800"),
            ("ACTIVE", "0 1000"),
        )
    assert cloud.actions == ["create", *START, "delete", "create", *START, *START]
    assert set(cloud.pauses) == {60.0}
    assert f"run-1 is kept (active), and is billed until you delete it: {DELETION}" in caplog.text


def test_each_slice_is_one_attempt():
    lost = [("ACTIVE", "none 0"), ("ACTIVE", "running 0"), ("SUSPENDED", None)]
    cloud = _watch((None, None), *lost, *lost, ("ACTIVE", "none 0"), ("ACTIVE", "0 9"), patience=3)
    assert cloud.actions.count("create") == cloud.actions.count("start") == 3
    with pytest.raises(
        FlowleyError, match="3 attempts on run-1 have brought no checkpoint newer than step 0"
    ):
        _watch((None, None), *lost, *lost, *lost, patience=3)


def test_slices_that_are_lost_before_they_start_are_bounded():
    with pytest.raises(FlowleyError, match="2 attempts on run-1"):
        _watch((None, None), ("FAILED", None), ("SUSPENDED", None), patience=2)


def test_progress_gives_new_attempts():
    progressing = [("ACTIVE", f"75 {step}") for step in range(1, 20)]
    assert len(_watch(*progressing, ("ACTIVE", "0 20")).actions) == 38
    with pytest.raises(
        FlowleyError, match="2 attempts on run-1 have brought no checkpoint newer than step 7"
    ):
        _watch(*[("ACTIVE", "none 7"), ("ACTIVE", "75 7")] * 5)


def test_failing_commands_are_repeated_with_growing_pauses():
    unreachable = CommandError("failed with code 1: temporary failure in name resolution")
    reset = CommandError("failed with code 1: connection reset by peer")
    cloud = _watch(
        (unreachable, None),
        (None, None),
        (unreachable, None),
        (unreachable, None),
        ("ACTIVE", "none 0"),
        ("ACTIVE", "none 0"),
        ("SUSPENDED", None),
        ("SUSPENDED", None),
        ("ACTIVE", "none 0"),
        ("ACTIVE", "0 9"),
        failures={"setup": [reset], "delete": [reset]},
    )
    assert cloud.actions == ["create", "setup", *START, "delete", "delete", "create", *START]
    assert cloud.pauses == [60.0, 60.0, 60.0, 120.0, 240.0, 60.0, 60.0, 60.0, 60.0]


def test_commands_that_keep_failing_end_the_watch(caplog):
    error = CommandError("failed with code 1: connection timed out")
    with pytest.raises(CommandError, match="timed out"):
        _watch(("ACTIVE", "running 3"), *[(error, None)] * 4, retries=3)
    assert f"run-1 is kept (active), and is billed until you delete it: {DELETION}" in caplog.text


def test_start_that_keeps_failing_ends_the_watch_soon(caplog):
    error = CommandError("failed with code 128: repository not found")
    with pytest.raises(FlowleyError, match=r"3 starts in a row failed; the last: .*repository not found"):
        _watch(*[("ACTIVE", "none 0")] * 3, patience=2, failures={"setup": [error] * 3})
    assert DELETION in caplog.text


def test_slice_that_is_lost_while_it_is_set_up_is_replaced():
    lost = CommandError("failed with code 255: broken pipe")
    cloud = _watch(
        (None, None),
        ("ACTIVE", "none 0"),
        ("SUSPENDING", None),
        ("ACTIVE", "none 0"),
        ("ACTIVE", "0 9"),
        failures={"setup": [lost]},
    )
    assert cloud.actions == ["create", "setup", "delete", "create", *START]


def test_slice_that_never_answers_is_replaced():
    cloud = _watch(
        *[("ACTIVE", None), ("ACTIVE", ["running 5"] * 3)],
        *[("ACTIVE", None), ("ACTIVE", "none 5"), ("ACTIVE", "0 9")],
        unanswered=3,
    )
    assert cloud.actions == ["delete", "create", *START]


def test_machines_that_wait_for_one_another_are_started_again():
    with_reboot = ["none 5", "134 5", "running 5", "running 5"]
    hanging = ["75 5", "running 5", "75 5", "75 5"]
    cloud = _watch(
        ("ACTIVE", with_reboot), ("ACTIVE", hanging), ("ACTIVE", hanging), ("ACTIVE", "0 9"), unanswered=2
    )
    assert cloud.actions == [*START, *START]


def test_failure_of_the_input_ends_the_watch_with_the_log(caplog):
    with pytest.raises(FlowleyError, match=r"failed with code 2, wrong input; see its log above"):
        _watch(("ACTIVE", ["running 5", "2 5", "running 5", "running 5"]))
    assert "the end of the log on run-1:\nthe last line of the log" in caplog.text
    assert DELETION in caplog.text


def test_other_failures_are_attempts():
    with pytest.raises(FlowleyError, match="2 attempts on run-1"):
        _watch(*[("ACTIVE", "134 5")] * 3)


def test_deletion_by_others_is_waited_for():
    cloud = _watch(("DELETING", None), ("DELETING", None), (None, None), ("ACTIVE", "0 9"))
    assert cloud.actions == ["create"]
    with pytest.raises(FlowleyError, match="run-1 has been DELETING for 3 checks"):
        _watch(*[("DELETING", None)] * 3, unanswered=3)


@pytest.mark.parametrize(
    "error",
    [CommandError("failed with code 1: PERMISSION_DENIED"), MissingProgramError("gcloud is not installed")],
)
def test_lasting_errors_end_the_watch_at_once(error):
    with pytest.raises(CommandError, match=str(error)):
        _watch((error, None))


def test_request_that_is_refused_leaves_nothing(caplog):
    error = CommandError("failed with code 1: RESOURCE_EXHAUSTED: quota limit 0")
    with caplog.at_level(logging.INFO, logger="launch.tpu"), pytest.raises(CommandError):
        _watch((None, None), failures={"create": [error]})
    assert "there is no slice run-1, and nothing is billed" in caplog.text


_WHOLE = 6
_EVENTS = ("ok", "fail", "late", "preempt", "reboot", "crash", "partial", "mute")


class _World:
    """A cloud with one slice of four machines, in which an event happens at every command.

    Events: the command fails before or after it takes effect (fail, late), or on some machines (partial);
    the slice is preempted, one machine is rebooted, or its training crashes; gcloud prints nothing (mute);
    Ctrl-C before or after the effect (interrupt, late interrupt).
    """

    def __init__(self, events):
        self.events, self.calls = list(events), 0
        self.slice, self.machines, self.is_set_up, self.step = None, ["none"] * 4, [False] * 4, 0

    def __call__(self, command, *, limit=900.0):
        self.calls += 1
        event = self.events.pop(0) if self.events else "ok"
        self._happen(event)
        if event == "fail":
            raise CommandError("failed with code 1: connection reset")
        if event == "interrupt":
            raise KeyboardInterrupt
        output = getattr(self, _verb(command))(event)
        if event == "late interrupt":
            raise KeyboardInterrupt
        if event in ("late", "partial"):
            raise CommandError("failed with code 255: connection reset")
        return "" if event == "mute" else output

    def _happen(self, event):
        if event == "preempt" and self.slice:
            self.slice = "SUSPENDED"
        if event == "reboot":
            self.machines[1] = "none"
        if event == "crash" and self.machines[2] == "running":
            self.machines[2] = "134"

    def describe(self, event):
        if self.slice is None:
            raise CommandError("failed with code 1: NOT_FOUND")
        state = self.slice
        if state == "PROVISIONING":
            self.slice = "ACTIVE"
        return state

    def create(self, event):
        if self.slice is not None:
            raise CommandError("failed with code 1: ALREADY_EXISTS")
        self.slice, self.machines, self.is_set_up = "PROVISIONING", ["none"] * 4, [False] * 4
        return ""

    def delete(self, event):
        self.slice = None
        return ""

    def _reached(self, event):
        if self.slice != "ACTIVE":
            raise CommandError("failed with code 255: no route to host")
        return (0, 1) if event == "partial" else range(4)

    def setup(self, event):
        for machine in self._reached(event):
            self.is_set_up[machine] = True
        return ""

    def start(self, event):
        for machine in self._reached(event):
            assert self.is_set_up[machine]
            self.machines[machine] = "running"
        return ""

    def tail(self, event):
        self._reached(event)
        return "a line"

    def status(self, event):
        reached = self._reached(event)
        if self.machines == ["running"] * 4:
            self.step += 1
            if self.step >= _WHOLE:
                self.machines = ["0"] * 4
        return "".join(f"{STATUS} {self.machines[machine]} {self.step}\n" for machine in reached)


@given(events=st.lists(st.sampled_from(_EVENTS), max_size=40))
@settings(max_examples=300, deadline=None)
def test_training_is_finished_after_any_events(events):
    """With enough patience, whatever happens, the training is finished once nothing happens any more."""
    world = _World(events)
    watch(
        JOB,
        REQUEST,
        world,
        every=1.0,
        patience=1000,
        retries=1000,
        unanswered=5,
        sleep=lambda _: None,
    )
    assert world.step >= _WHOLE and world.machines == ["0"] * 4


@given(
    events=st.lists(st.sampled_from(_EVENTS), max_size=60),
    last=st.sampled_from(["interrupt", "late interrupt", "ok"]),
)
@settings(max_examples=300, deadline=None)
def test_end_of_the_watch_says_what_is_billed(events, last):
    world = _World([*events, last])
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger = logging.getLogger("launch.tpu")
    logger.addHandler(handler)
    try:
        with contextlib.suppress(FlowleyError, KeyboardInterrupt):
            watch(
                *(JOB, REQUEST, world),
                **{"every": 1.0, "patience": 3, "retries": 3, "unanswered": 3, "sleep": lambda _: None},
            )
    finally:
        logger.removeHandler(handler)
    assert world.calls < 400
    if world.slice:
        assert DELETION in said[-1]
    else:
        assert DELETION in said[-1] or "nothing is billed" in said[-1]
