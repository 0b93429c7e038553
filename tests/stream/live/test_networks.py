"""Networks that sessions share: in turns, and nothing of one session in another's pictures."""

import sys
import threading
from dataclasses import replace
from fractions import Fraction
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from toonstream.config import Size
from toonstream.engines.engine import TensorSpec
from toonstream.errors import EngineError, InputError
from toonstream.export.checkpoints import open_model, shipped_model
from toonstream.export.shapes import Envelope
from toonstream.export.tokenizer import PromptTokenizer
from toonstream.stream.conditions import Conditions
from toonstream.stream.denoise import Denoiser, DenoiseSettings
from toonstream.stream.frame import Frame
from toonstream.stream.live.controller import ladder
from toonstream.stream.live.core import LiveCore
from toonstream.stream.live.inbox import Captured
from toonstream.stream.live.networks import SharedNetworks
from toonstream.stream.live.session import LiveSession
from toonstream.stream.live.settings import LiveSettings, Plan
from toonstream.stream.live.switching import Pushed
from toonstream.stream.live.turns import Turns
from toonstream.stream.schedulers import make_scheduler
from toonstream.stream.stylizer import Stylizer

PATIENCE = 60.0  # seconds; a test that waits so long has failed
SIZE = (64, 32)
SETTINGS = LiveSettings(size=Size(exact=SIZE), window=4, stride=2, steps=2)
PLAN = Plan(size=SIZE, window=4, stride=2, steps=2)


def stand_ins() -> dict:
    """Networks with the tensors of the shipped model's; all inputs matter."""
    path = Path(__file__).parents[1] / "offline.py"
    spec = spec_from_file_location("toonstream_tests_offline_live", path)
    module = sys.modules.setdefault(spec.name, module_from_spec(spec))
    spec.loader.exec_module(module)

    def read(input_ids):
        return {"hidden_states": (input_ids % 11 / 11.0)[..., None].expand(-1, -1, 4).float()}

    def decode(latents):
        picture = torch.tanh(latents[:, :3])
        return {"image": picture.repeat_interleave(8, -1).repeat_interleave(8, -2)}

    networks = module.stand_in_networks()
    decoder = module.StandIn(decode)
    decoder.inputs = (TensorSpec(name="latents", dtype=torch.float32, shape=("b", 16, "h", "w")),)
    decoder.outputs = (TensorSpec(name="image", dtype=torch.float32, shape=("b", 3, "H", "W")),)
    return networks | {"text_encoder": module.StandIn(read), "vae_decoder": decoder}


class Watched:
    """A network whose calls go through a function of the test's."""

    def __init__(self, network, run):
        self.inputs, self.outputs = network.inputs, network.outputs
        self._network, self._run = network, run

    def __call__(self, tensors):
        return self._run(self._network, tensors)


@pytest.fixture(scope="module")
def tokenizer() -> PromptTokenizer:
    return PromptTokenizer(open_model(shipped_model()).tokenizer_path)


def share(tokenizer, networks=None, **more) -> SharedNetworks:
    return SharedNetworks(open_model(shipped_model()), networks or stand_ins(), tokenizer, **more)


def frames(number: int, *, seed: int) -> list[Frame]:
    """Frames of one scene: a picture under a little noise."""
    random = np.random.default_rng(seed)
    picture = random.integers(0, 240, (32, 64, 3), np.uint8)
    images = [picture + random.integers(0, 16, picture.shape, np.uint8) for _ in range(number)]
    return [Frame(index=i, pts=i, time_base=Fraction(1, 30), image=image) for i, image in enumerate(images)]


def drawn(shared, plan, words, source, size=SIZE):
    segment = shared.segment(plan, words, size=size, observe=lambda plan, run: None)
    toons = [toon for frame in source for toon in segment.push(Pushed(frame=frame, words=words))]
    return toons + list(segment.finish())


def test_turns_are_had_in_the_order_of_asking():
    turns = Turns()
    order, threads = [], []

    def ask(number):
        with turns.turn():
            order.append(number)

    with turns.turn():
        for number in range(8):
            threads.append(threading.Thread(target=ask, args=[number]))
            threads[-1].start()
            while turns.waiting <= number:
                pass
    for thread in threads:
        thread.join(PATIENCE)
    assert order == list(range(8))
    assert turns.waiting == 0


def test_a_failure_within_a_turn_hands_it_on():
    turns = Turns()
    with pytest.raises(ZeroDivisionError), turns.turn():
        raise ZeroDivisionError
    with turns.turn():
        pass


def test_networks_are_called_one_at_a_time(tokenizer):
    inside, worst = [], []

    def run(network, tensors):
        inside.append(1)
        worst.append(len(inside))
        try:
            return network(tensors)
        finally:
            inside.pop()

    shared = share(tokenizer, {name: Watched(network, run) for name, network in stand_ins().items()})
    together(shared, {seed: frames(12, seed=seed) for seed in range(3)})
    assert max(worst) == 1


def together(shared, sources, settings_of=lambda seed: SETTINGS):
    """Several sessions at the same time: by seed, their toons."""
    toons = {seed: [] for seed in sources}
    sessions = {}
    for seed in sources:
        session = LiveSession(shared, settings_of(seed), deliver=toons[seed].append, clock=lambda: 1000.0)
        session._core.inbox._capacity = 1000
        session._core.inbox.set = lambda **how: None
        sessions[seed] = session
    for place in range(max(len(source) for source in sources.values())):
        for seed, source in sources.items():
            if place < len(source):
                sessions[seed].offer(source[place], float(place))
    for session in sessions.values():
        session.finish()
    for session in sessions.values():
        assert session.wait(PATIENCE)
        assert session.end.reason == "finished", session.end
    return toons


@given(
    lengths=st.lists(st.integers(1, 11), min_size=2, max_size=3),
    styles=st.lists(st.sampled_from(["ink", "flat", "hayao"]), min_size=3, max_size=3),
)
@settings(max_examples=8, deadline=None)
def test_sessions_at_the_same_time_give_what_each_gives_alone(tokenizer, lengths, styles):
    def settings_of(seed):
        return LiveSettings(
            size=SETTINGS.size,
            window=4,
            stride=2,
            steps=2,
            style=styles[seed],
            seed=10 + seed,
            deflicker="off",  # what is sent is what was drawn
        )

    sources = {seed: frames(length, seed=seed) for seed, length in enumerate(lengths)}
    shared = share(tokenizer)
    toons = together(shared, sources, settings_of)
    for seed, source in sources.items():
        alone = share(tokenizer)
        words = alone.words(alone.check(settings_of(seed)))
        expected = drawn(alone, toons[seed][0].plan, words, source)
        assert len(toons[seed]) == len(expected) == len(source)
        for mine, theirs in zip(toons[seed], expected, strict=True):
            assert mine.source.image is source[mine.source.index].image
            assert np.array_equal(mine.toon.image, theirs.toon.image)


@pytest.mark.parametrize(("guidance", "mode"), [(1.0, "wavefront"), (2.0, "wavefront"), (2.0, "anchored")])
def test_a_segment_is_the_stylizer_and_ends_in_whole_windows(tokenizer, guidance, mode):
    shared = share(tokenizer)
    render = shared.check(LiveSettings(size=SETTINGS.size, guidance=guidance))
    words, model, networks = shared.words(render), shared.model, stand_ins()
    plan = Plan(size=SIZE, window=4, stride=2, steps=2, guidance=guidance, mode=mode)
    denoiser = Denoiser(
        networks,
        scheduler=make_scheduler(model.scheduler_config, kind=model.defaults.scheduler, steps=2),
        text=words.text,
        negative_text=words.negative if guidance > 1 else None,
        settings=DenoiseSettings(
            window=4,
            stride=2,
            steps=2,
            guidance=guidance,
            mode=mode,
            controlnet_scales=model.defaults.controlnets,
        ),
        latent_channels=model.latent_channels,
    )
    plain = Stylizer(denoiser, networks["vae_decoder"], scale=model.latent_scale, shift=model.latent_shift)
    conditions = Conditions(model.defaults.controlnets, size=SIZE, multiple=model.size_multiple)
    source = frames(9, seed=0)
    # Its end: the last frame again, until a window is full. With 9 frames: once.
    padded = [
        decode()
        for frame in [*source, source[-1]]
        for decode in plain.advance(conditions(frame), key=frame.index)
    ]
    padded += list(plain.finish())
    toons = drawn(shared, plan, words, source)
    assert [toon.toon.index for toon in toons] == list(range(9))
    for mine, theirs in zip(toons, padded, strict=False):
        assert np.array_equal(mine.toon.image, theirs.toon.image)


@pytest.mark.parametrize("mode", ["wavefront", "anchored"])
def test_a_stream_of_any_length_calls_networks_with_a_few_shapes_only(tokenizer, mode):
    seen = set()

    def run(network, tensors):
        seen.add((network, tuple(tuple(tensor.shape) for tensor in tensors.values())))
        return network(tensors)

    shared = share(tokenizer, {name: Watched(network, run) for name, network in stand_ins().items()})
    words = shared.words(shared.check(SETTINGS))
    plan = replace(PLAN, mode=mode)
    shared.prepare(plan)
    known = set(seen)
    for length in range(1, 14):
        assert len(drawn(shared, plan, words, frames(length, seed=length))) == length
    assert seen == known


def test_toons_are_delivered_at_the_size_asked_for_however_small_they_are_drawn(tokenizer):
    shared = share(tokenizer)
    words = shared.words(shared.check(SETTINGS))
    toons = drawn(shared, PLAN, words, frames(5, seed=0), size=(130, 66))
    assert {toon.toon.image.shape for toon in toons} == {(66, 130, 3)}
    assert toons[0].source.image.shape == (32, 64, 3)


def test_a_plan_is_ready_once_it_was_prepared(tokenizer):
    shared = share(tokenizer)
    runs = []
    assert not shared.is_ready(PLAN)
    shared.prepare(PLAN, observe=lambda plan, run: runs.append(run))
    assert shared.is_ready(PLAN)
    assert not shared.is_ready(Plan(size=SIZE, window=2, stride=1, steps=1))
    for stage in ("unet", "controlnet_outline", "hint_colour", "vae_decoder"):
        told = [run for run in runs if run.stage == stage]
        assert told[0].first
        assert not told[-1].first
    shared.request(Plan(size=SIZE, window=2, stride=1, steps=1))
    shared._preparer.shutdown()
    assert shared.is_ready(Plan(size=SIZE, window=2, stride=1, steps=3))


def test_a_plan_that_cannot_be_built_stays_unready_and_is_tried_once(tokenizer):
    calls = []

    def refuse(network, tensors):
        calls.append(1)
        raise EngineError("refused")

    networks = stand_ins()
    shared = share(tokenizer, networks | {"unet": Watched(networks["unet"], refuse)})
    assert shared.request(PLAN) is None
    shared._preparer.submit(int).result(PATIENCE)  # it is done with what came before
    assert shared.request(PLAN) == "refused"
    shared._preparer.shutdown()
    assert len(calls) == 1
    assert not shared.is_ready(PLAN)
    shared.close()


def test_one_plan_is_built_at_a_time_and_a_frame_that_is_given_up_is_not_decoded(tokenizer):
    inside, go_on = threading.Event(), threading.Event()
    decoded = []

    def decode(network, tensors):
        inside.set()
        assert go_on.wait(PATIENCE)
        decoded.append(1)
        return network(tensors)

    networks = stand_ins()
    shared = share(tokenizer, networks | {"vae_decoder": Watched(networks["vae_decoder"], decode)})
    other = replace(PLAN, window=2, stride=1)
    assert shared.request(PLAN) is None
    assert inside.wait(PATIENCE)
    assert shared.request(other) is None  # it is not even waiting
    go_on.set()
    shared._preparer.submit(int).result(PATIENCE)
    assert shared.is_ready(PLAN)
    assert not shared.is_ready(other)
    assert shared.request(other) is None
    shared._preparer.shutdown()
    assert shared.is_ready(other)

    words = shared.words(shared.check(SETTINGS))
    source = frames(9, seed=0)
    expected = drawn(shared, PLAN, words, source)
    decoded.clear()
    segment = shared.segment(
        PLAN, words, size=SIZE, observe=lambda plan, run: None, gives_up=lambda frame: frame.index in (0, 4)
    )
    toons = [toon for frame in source for toon in segment.push(Pushed(frame=frame, words=words))]
    toons += segment.finish()
    assert len(decoded) == 7
    assert [toon.toon.index for toon in toons] == list(range(9))
    assert not toons[0].toon.image.any()
    assert np.array_equal(toons[4].toon.image, toons[3].toon.image)
    for index in (1, 2, 3, 5, 6, 7, 8):
        assert np.array_equal(toons[index].toon.image, expected[index].toon.image)


def test_a_network_that_can_be_built_ahead_is_built_before_its_turn(tokenizer):
    order = []

    class Building(Watched):
        def prepare(self, tensors):
            order.append(("prepare", shared._turns._taken))

    def run(network, tensors):
        order.append(("run", shared._turns._taken))
        return network(tensors)

    networks = stand_ins()
    shared = share(tokenizer, networks | {"vae_decoder": Building(networks["vae_decoder"], run)})
    words = shared.words(shared.check(SETTINGS))
    drawn(shared, PLAN, words, frames(4, seed=0))
    assert order == [("prepare", False)] + [("run", True)] * 4


def test_a_prompt_is_read_once(tokenizer):
    networks = stand_ins()
    shared = share(tokenizer, networks)
    render = shared.check(SETTINGS)
    assert shared.words(render).text is shared.words(render).text
    assert networks["text_encoder"].calls == 2  # the prompt and the negative one


def test_a_prompt_that_is_longer_than_the_models_own_is_refused(tokenizer):
    with pytest.raises(InputError, match="more than 75 tokens"):
        share(tokenizer).check(LiveSettings(prompt="ink " * 100))


def test_prompts_may_be_as_long_as_streams_begin_with(tokenizer):
    shared = share(tokenizer, chunks=2)
    long, short = (shared.check(LiveSettings(prompt="ink " * count)) for count in (100, 3))
    words = shared.words(long)
    assert words.text.shape[1] == shared.words(short).text.shape[1] == 2 * 77
    assert words.towards(shared.words(short), 0.5).text.shape[1] == 2 * 77
    with pytest.raises(InputError, match="more than 150 tokens"):
        shared.check(LiveSettings(prompt="ink " * 200))


def test_a_source_that_outgrows_the_engines_is_drawn_within_them_and_the_session_goes_on(tokenizer):
    seen = set()

    def run(network, tensors):
        seen.update(
            tuple(tensor.shape[-2:]) for name, tensor in tensors.items() if name in ("sample", "hint")
        )
        return network(tensors)

    networks = {name: Watched(network, run) for name, network in stand_ins().items()}
    limits = Envelope(size=(64, 32), smallest=(32, 32), largest=(64, 64), window=4, stride=2)
    shared = share(tokenizer, networks, limits=limits)
    toons = []
    asked = LiveSettings(size=Size(short=32), window=4, stride=2, steps=1, latency=2.0)
    shared.warm_up(asked, (64, 32))
    core = LiveCore(shared, asked, deliver=toons.append, clock=lambda: 0.0)
    random = np.random.default_rng(0)
    for place, (width, height) in enumerate([(64, 32)] * 5 + [(320, 64)] * 6 + [(64, 200)] * 5):
        image = random.integers(0, 255, (height, width, 3), np.uint8)
        frame = Frame(index=0, pts=place, time_base=Fraction(1, 30), image=image)
        core.take(Captured(frame=frame, at=0.0))
    core.finish()
    assert [toon.toon.pts for toon in toons] == list(range(16))
    assert [toon.plan.size for toon in toons[4::5]] == [(64, 32), (64, 12), (20, 64)]
    assert toons[6].toon.image.shape == (32, 160, 3)
    assert max(max(sides) for sides in seen) <= 64
    with pytest.raises(EngineError, match="not made for that"):
        shared.prepare(replace(PLAN, size=(96, 32)))


def test_warming_up_prepares_the_sizes_that_give_way(tokenizer):
    shared = share(tokenizer)
    asked = LiveSettings(size=Size(short=192), latency=0.4)
    shared.warm_up(asked, (256, 192))
    plan = Plan(size=(256, 192), window=4, stride=3, steps=1)
    assert shared.is_ready(plan)
    assert shared.is_ready(replace(plan, size=(224, 160)))
    least = list(ladder(plan, multiple=shared.multiple))[-1]
    assert (least.window, least.every) == (1, 12)
    assert shared.is_ready(least)
    assert not shared.is_ready(replace(plan, window=2, stride=1))
