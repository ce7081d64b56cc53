"""Generation over a session: the loop, streaming, stops, limits and interruption, on a toy model that can be checked by hand."""

from __future__ import annotations

import json
import signal

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

import porting
from porting.devices import Device
from porting.errors import InputError, UsageError
from porting.generation import SamplingSettings, StopStrings, generate, generate_tokens, text_side
from porting.types import Program, State, TensorSpec

VOCAB = 300
GREEDY = SamplingSettings()


# --- a toy model and its port -----------------------------------------------------------------------------------------


class ToySession:
    """A language model in a line: after tokens a (last) and s (sum of all before and a) comes (31 * a + s) % vocab.

    Its state is the sum, so a wrong chunk, a lost or a repeated token changes every later token.
    script: token ids to give instead, by how many were fed before
    """

    def __init__(self, vocab: int = VOCAB, script: dict[int, int] | None = None, keeps: bool = True) -> None:
        self.device = Device("cpu", 0, {})
        self.inputs = (TensorSpec("input_ids", "int64", ("batch", "sequence")),)
        if keeps:
            self.inputs += (TensorSpec("logits_to_keep", "int64", ()),)
        self.outputs = (TensorSpec("logits", "float32", ("batch", "kept", vocab)),)
        self.program = Program(b"", self.inputs, self.outputs)
        self.vocab, self.script = vocab, script or {}
        self.fed: list[list[int]] = []
        self.rows: list[int] = []
        self.capacity = 0
        self.closed = False

    def new_state(self, capacity: int = 256, batch: int = 1) -> State:
        self.capacity = capacity
        return State({"sum": 0}, np.zeros(batch, np.int64), capacity)

    def run(self, feeds, state=None):
        ids = feeds["input_ids"]
        assert ids.dtype == np.int64
        assert ids.flags.c_contiguous
        assert ids.ndim == 2
        self.fed.append(ids[0].tolist())
        sums = state.buffers["sum"] + np.cumsum(ids[0])
        state.buffers["sum"] = int(sums[-1])
        nexts = (31 * ids[0] + sums) % self.vocab
        state.length = state.length + ids.shape[1]
        nexts[-1] = self.script.get(int(state.length[0]), nexts[-1])
        logits = np.zeros((1, ids.shape[1], self.vocab), np.float32)
        logits[0, np.arange(ids.shape[1]), nexts] = 1
        keep = int(feeds.get("logits_to_keep", 0))
        logits = logits[:, -keep:] if keep else logits
        self.rows.append(logits.shape[1])
        return {"logits": logits}

    def close(self) -> None:
        self.closed = True

    def __enter__(self):
        return self

    def __exit__(self, *exc) -> None:
        self.close()


def by_hand(prompt: list[int], count: int, vocab: int = VOCAB) -> list[int]:
    ids = list(prompt)
    for _ in range(count):
        ids.append((31 * ids[-1] + sum(ids)) % vocab)
    return ids[len(prompt) :]


def byte_level() -> Tokenizer:
    """256 bytes, a merged " t", and two special tokens. Ids of bytes are those of the sorted byte alphabet."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {c: i for i, c in enumerate(alphabet)} | {"Ġt": len(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[("Ġ", "t")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True), AddedToken("<|go|>", special=True)])
    return tokenizer


BYTES = byte_level()


class ToyPort:
    """What generate() needs of a port, with files in memory."""

    def __init__(self, session: ToySession | None = None, config: dict | None = None, **files: object) -> None:
        self.session = session or ToySession()
        self.manifest = {"config": {"vocab_size": self.session.vocab, "max_position_embeddings": 512, **(config or {})}}
        self.files = {"tokenizer.json": BYTES.to_str().encode()}
        for name, content in files.items():
            key = name.replace("__", ".")
            self.files[key] = content if isinstance(content, bytes) else json.dumps(content).encode()

    def side_file(self, name: str) -> bytes | None:
        return self.files.get(name)

    def program(self):
        return self.session


@pytest.fixture(autouse=True)
def toy_device(monkeypatch):
    monkeypatch.setattr("porting.session.open_session", lambda program, device: program)


def scripted(text: str, prompt: list[int], tokenizer: Tokenizer = BYTES, then: str = "") -> ToySession:
    """A session that answers a prompt of these ids with this text, then with a token named `then`."""
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    if then:
        ids.append(tokenizer.token_to_id(then))
    return ToySession(script={len(prompt) + i: token for i, token in enumerate(ids)})


# --- the loop ---------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=40), st.integers(1, 12), st.integers(1, 45), st.booleans())
def test_tokens_do_not_depend_on_the_chunk(prompt, count, chunk, keeps):
    session = ToySession(keeps=keeps)
    assert list(generate_tokens(session, prompt, count, GREEDY, prefill_chunk=chunk)) == by_hand(prompt, count)
    assert sum(session.fed, []) == prompt + by_hand(prompt, count)[:-1]  # noqa: RUF017 - the last one need not be fed
    assert max(map(len, session.fed)) <= max(chunk, 1)
    if keeps:
        assert set(session.rows) == {1}
    assert session.capacity >= len(prompt)


def test_a_stop_token_ends_and_is_the_last_given():
    third = by_hand([5, 7], 3)[-1]
    assert third not in by_hand([5, 7], 2)
    session = ToySession()
    assert list(generate_tokens(session, [5, 7], 50, GREEDY, stop_ids=[third, 299])) == by_hand([5, 7], 3)
    assert len(session.fed) == 3  # the stop token is not fed


def test_sampling_repeats_with_its_seed_and_differs_with_another():
    def run(seed):
        return list(generate_tokens(ToySession(), [1], 30, SamplingSettings(1.0, seed=seed)))

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_every_token_is_a_draw_of_its_own():
    near_uniform = SamplingSettings(1000.0, seed=1)
    assert len(set(generate_tokens(ToySession(), [1], 30, near_uniform))) > 15


def test_the_penalty_counts_prompt_and_new_tokens():
    seen = []

    class Spy(ToySession):
        def run(self, feeds, state=None):
            outputs = super().run(feeds, state)
            outputs["logits"] -= 2  # all negative, so that the penalty puts whatever was seen below the rest
            return outputs

    for token in generate_tokens(Spy(vocab=6), [0, 1], 4, SamplingSettings(repetition_penalty=50.0)):
        assert token not in {0, 1, *seen}
        seen.append(token)


@pytest.mark.parametrize(
    ("prompt", "options", "error", "expected"),
    [
        ([], {}, InputError, "the prompt is empty"),
        ([1, 300], {}, InputError, r"token id 300 at position 1 is out of the vocabulary \(0 to 299\)"),
        ([1, -1], {}, InputError, "token id -1 at position 1 is out of the vocabulary"),
        ([1] * 8, {"context_limit": 10}, InputError, r"prompt \(8 tokens\) and max_new_tokens \(3\) exceed the context of 10"),
        ([1] * 8, {"context_limit": 10}, InputError, "ask for at most 2 new tokens"),
        ([1] * 12, {"context_limit": 10}, InputError, "shorten the prompt by at least 3 tokens"),
        ([1], {"max_new_tokens": 0}, UsageError, "max_new_tokens is 0"),
        ([1], {"max_new_tokens": 2.0}, UsageError, "max_new_tokens is 2.0"),
        ([1], {"prefill_chunk": 0}, UsageError, "prefill_chunk is 0"),
    ],
)
def test_what_cannot_be_generated_is_refused_before_the_first_run(prompt, options, error, expected):
    session = ToySession()
    with pytest.raises(error, match=expected):
        generate_tokens(session, prompt, **{"max_new_tokens": 3, "settings": GREEDY, **options})  # not even iterated
    assert session.fed == []


def test_a_request_that_just_fits_runs():
    assert len(list(generate_tokens(ToySession(), [1] * 7, 3, GREEDY, context_limit=10))) == 3


def test_a_session_that_is_no_language_model_is_refused():
    session = ToySession()
    session.outputs = (TensorSpec("embedding", "float32", ("batch", 8)),)
    with pytest.raises(InputError, match="not a language model"):
        generate_tokens(session, [1], 3, GREEDY)


# --- stop strings -----------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.text("ab", max_size=4), max_size=8),
    st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
)
@example(["a", "ab"], ["aab"])
@example(["xab", "ab", "c"], ["abc"])
def test_text_is_cut_before_the_first_stop_string_however_it_is_split(pieces, stops):
    whole = "".join(pieces)
    ends = [whole.find(s) for s in stops if s in whole]
    cut = StopStrings(stops)
    shown = ""
    for piece in pieces:
        shown += cut.push(piece)
        assert not any(s in shown for s in stops)
    shown += cut.flush()
    assert cut.found == bool(ends)
    if not ends:
        assert shown == whole
    else:  # pieces decide which of two overlapping ones is complete first; what is shown ends where one begins
        assert whole.startswith(shown)
        assert any(whole.startswith(s, len(shown)) for s in stops)


def test_text_is_held_only_while_it_may_begin_a_stop_string():
    cut = StopStrings(["\nUser:"])
    assert [cut.push(p) for p in ("Hi\n", "Us", "ed ", "\nUse", "r: x", "more")] == ["Hi", "", "\nUsed ", "", "", ""]
    assert cut.found


@pytest.mark.parametrize("stops", ["abc", [""], [1], ["a", None]])
def test_stop_strings_of_another_form_are_refused(stops):
    with pytest.raises(UsageError, match="stop strings are"):
        StopStrings(stops)


# --- generate ---------------------------------------------------------------------------------------------------------

PROMPT = BYTES.encode("Say it").ids
TEMPLATE = b"{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|go|>{% endif %}"


def test_a_bare_prompt_is_continued_and_streamed():
    port = ToyPort(scripted(" the end 😀!", PROMPT, then="<|end|>"), {"eos_token_id": BYTES.token_to_id("<|end|>")})
    pieces: list[str] = []
    result = generate(port, "Say it", on_text=pieces.append)
    assert result.text == " the end 😀!" == "".join(pieces)
    assert len(pieces) > 5
    assert result.finish_reason == "stop"
    assert result.token_ids == (*BYTES.encode(" the end 😀!").ids, BYTES.token_to_id("<|end|>"))
    assert result.prompt_tokens == len(PROMPT)
    assert result.settings.temperature == 0
    assert result.tokens_per_second > 0
    assert result.prefill_seconds > 0
    assert port.session.closed


def test_the_length_limit_is_told():
    result = generate(ToyPort(scripted("abcdef", PROMPT)), "Say it", max_new_tokens=3)
    assert (result.text, result.finish_reason) == ("abc", "length")
    assert generate(ToyPort(), "Say it", max_new_tokens=1).tokens_per_second is None


def test_text_that_was_held_back_comes_at_the_end():
    result = generate(ToyPort(scripted("ab\nUser wins", PROMPT)), "Say it", stop=["\nUser:"], max_new_tokens=7)
    assert (result.text, result.finish_reason) == ("ab\nUser", "length")
    cut_short = generate(ToyPort(scripted("ab😀", PROMPT)), "Say it", max_new_tokens=4)
    assert cut_short.text == "ab\ufffd" == BYTES.decode(list(cut_short.token_ids))


def test_a_chat_brings_its_own_special_tokens_and_a_bare_prompt_gets_the_tokenizers():
    go = BYTES.token_to_id("<|go|>")
    tokenizer = byte_level()
    tokenizer.post_processor = processors.TemplateProcessing(single="<|go|> $A", special_tokens=[("<|go|>", go)])
    port = ToyPort(tokenizer__json=tokenizer.to_str().encode(), chat_template__jinja=b"<|go|>{{ messages[0].content }}")
    side = text_side(port)
    assert side.prompt_ids("Say it") == [go, *PROMPT] == side.prompt_ids("Say it", chat=False)


def test_a_stop_string_over_several_tokens_ends_the_text_before_it():
    port = ToyPort(scripted("Fine.\nUser: more", PROMPT))
    result = generate(port, "Say it", stop=["\nUser:", "never"], max_new_tokens=40)
    assert (result.text, result.finish_reason) == ("Fine.", "stop")
    assert BYTES.decode(list(result.token_ids)) == "Fine.\nUser:"


def test_the_chat_template_is_used_when_there_is_one():
    def fed(**options):
        port = ToyPort(chat_template__jinja=TEMPLATE)
        generate(port, options.pop("prompt", "Say it"), max_new_tokens=1, **options)
        return port.session.fed[0]

    assert fed() == [*PROMPT, BYTES.token_to_id("<|go|>")]
    assert fed(chat=True) == fed()
    assert fed(prompt=[{"role": "user", "content": "Say"}, {"role": "user", "content": " it"}]) == fed()
    assert fed(chat=False) == PROMPT
    with pytest.raises(UsageError, match="needs the chat template"):
        fed(prompt=[{"role": "user", "content": "x"}], chat=False)
    for options in ({"chat": True}, {"prompt": [{"role": "user", "content": "x"}]}):
        with pytest.raises(InputError, match="no chat template"):
            generate(ToyPort(), options.pop("prompt", "x"), max_new_tokens=1, **options)


def test_stop_tokens_come_from_the_generation_config_first():
    assert text_side(ToyPort(config={"eos_token_id": 3})).stop_ids == {3}
    assert text_side(ToyPort(config={"eos_token_id": 3}, generation_config__json={"eos_token_id": [4, 5]})).stop_ids == {4, 5}
    assert text_side(ToyPort(config={"eos_token_id": 3}, generation_config__json={"eos_token_id": None})).stop_ids == {3}
    assert text_side(ToyPort()).stop_ids == frozenset()
    for damaged in ("2", [1, "2"], True, -1, {"a": 1}):
        with pytest.raises(InputError, match="eos_token_id is"):
            text_side(ToyPort(config={"eos_token_id": damaged}))


@pytest.mark.parametrize(
    ("port", "options", "error", "expected"),
    [
        (ToyPort(config={"max_position_embeddings": 20}), {"max_new_tokens": 15}, InputError, "exceed the context of 20"),
        (ToyPort(), {"max_new_tokens": 15, "context_limit": 10}, InputError, "exceed the context of 10"),
        (ToyPort(config={"vocab_size": 50}), {}, InputError, "out of the vocabulary"),
        (ToyPort(config={"vocab_size": "many"}), {}, InputError, "vocab_size is 'many'"),
        (ToyPort(), {"prompt": ""}, InputError, "the prompt is empty"),
        (ToyPort(), {"top_p": 2.0}, UsageError, "top_p is 2.0"),
        (ToyPort(generation_config__json=[1]), {}, InputError, "expected a JSON object, got list"),
        (ToyPort(generation_config__json={"top_k": -3}), {"temperature": 1.0}, InputError, "top_k is -3"),
    ],
)
def test_a_bad_request_is_refused_before_the_session_is_opened(port, options, error, expected, monkeypatch):
    monkeypatch.setattr(port, "program", lambda: pytest.fail("opened"))
    with pytest.raises(error, match=expected):
        generate(port, options.pop("prompt", "Say it"), **options)


def test_an_open_session_is_used_and_stays_open(monkeypatch):
    port = ToyPort()
    session = scripted("abc", PROMPT)
    monkeypatch.setattr(port, "program", lambda: pytest.fail("opened"))
    assert generate(port, "Say it", max_new_tokens=3, session=session).text == "abc"
    assert generate(port, "Say it", max_new_tokens=3, session=session).text == "abc"  # nothing is left of the first
    assert not session.closed


@pytest.mark.parametrize("at", [0, 2, 5])
def test_ctrl_c_ends_with_the_text_so_far(at):
    class Interrupted(ToySession):
        def run(self, feeds, state=None):
            if len(self.fed) == at:
                signal.raise_signal(signal.SIGINT)
            return super().run(feeds, state)

    session = Interrupted(script=scripted("abcdefgh", PROMPT).script)
    pieces: list[str] = []
    port = ToyPort(session)
    result = generate(port, "Say it", on_text=pieces.append, stop=["cx"], max_new_tokens=8)
    assert result.finish_reason == "interrupted"
    assert result.text == "abcdefgh"[:at] == "".join(pieces)
    assert len(result.token_ids) == at
    assert session.closed


def test_ctrl_c_while_text_is_shown_is_no_error():
    def show(text):
        if text == "c":
            raise KeyboardInterrupt

    result = generate(ToyPort(scripted("abcdef", PROMPT)), "Say it", on_text=show, max_new_tokens=6)
    assert (result.text, result.finish_reason) == ("abc", "interrupted")


def test_generate_is_public():
    assert porting.generate is generate
