"""Tokenizers made from GGUF metadata: the same ids as upstream's own, and everything that is not covered refused by name."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from porting.converters.checkpoints.gguf import GgufCheckpoint
from porting.converters.checkpoints.gguf_tokenizer import PRE_TOKENIZERS, SPACE, side_files
from porting.errors import CheckpointError, UnsupportedModel

PATH = Path("model.gguf")
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
TEXTS = [
    "The capital of France is",
    "Grüße aus Zürich, déjà vu; naïve coöperation — “quoted” text…",
    "你好，世界！今天天气怎么样？",
    "def f(x: int) -> str:\n\treturn f'{x!r}'  # ok\n\n\n    if x == 10:\n        pass\n",
    "😀👩‍👩‍👧‍👦🇨🇭 emoji, e\u0301 combining",
    "1234567890 3.14159 1,000,000 0x1F x2 2x",
    "  leading   and trailing   \n \t ",
    "don't DON'T we'll I'M it'D",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|><|im_end|> <repo_name>",
    "",
    " ",
    "\n\n\n",
    "مرحبا בעולם नमस्ते สวัสดี",
]


def tokenizer_of(files):
    return Tokenizer.from_str(files["tokenizer.json"].decode())


def settings_of(files):
    return json.loads(files["tokenizer_config.json"]), json.loads(files["generation_config.json"])


# --- the real model -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smollm2(smollm2_gguf):
    return GgufCheckpoint(smollm2_gguf).side_files()


@pytest.fixture(scope="module")
def ours(smollm2):
    return tokenizer_of(smollm2)


@pytest.fixture(scope="module")
def upstreams_form(smollm2):
    """The same vocabulary under the pre-tokenizer that SmolLM2's own tokenizer.json has: Digits, then ByteLevel."""
    model = json.loads(smollm2["tokenizer.json"])["model"]
    tokenizer = Tokenizer(models.BPE(model["vocab"], [tuple(m) for m in model["merges"]]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return tokenizer


def test_known_ids(smollm2):
    tokenizer = tokenizer_of(smollm2)
    assert tokenizer.encode("The capital of France is").ids == [504, 3575, 282, 4649, 314]
    assert tokenizer.encode("<|im_start|>user\n").ids == [1, 4093, 198]
    assert tokenizer.get_vocab_size() == 49152


@pytest.mark.slow
def test_smollm2_ids_equal_transformers_on_the_same_file(smollm2, smollm2_gguf):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(smollm2_gguf.parent, gguf_file=smollm2_gguf.name)
    ours = tokenizer_of(smollm2)
    for text in TEXTS:
        ids = ours.encode(text).ids
        assert ids == theirs(text).input_ids, text
        assert ours.decode(ids, skip_special_tokens=False) == text


def test_the_folder_loads_in_transformers_with_the_same_ids(smollm2, smollm2_folder):
    transformers = pytest.importorskip("transformers")
    theirs, ours = transformers.AutoTokenizer.from_pretrained(smollm2_folder), tokenizer_of(smollm2)
    assert [theirs(t).input_ids for t in TEXTS] == [ours.encode(t).ids for t in TEXTS]
    chat = theirs.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True)
    assert chat.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


@given(text=st.text(max_size=60) | st.text(alphabet=" \n\t'aAzé0²①中.!", max_size=60))
@example(text="x²³ ①１２３ 4567")  # where transformers' reading of the file, without Digits, differs from the model's own
@settings(max_examples=200, deadline=None)
def test_any_text_has_upstreams_ids_and_comes_back(ours, upstreams_form, text):
    encoded = ours.encode(text)
    assert encoded.ids == upstreams_form.encode(text).ids
    if len("".join(encoded.tokens)) == len(
        text.encode()
    ):  # the vocabulary lacks some control bytes, and upstream drops them too
        assert ours.decode(encoded.ids) == text


def test_smollm2_side_files(smollm2):
    config, generation = settings_of(smollm2)
    assert generation == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    template = config.pop("chat_template")
    assert "<|im_start|>" in template
    assert config == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|im_end|>",
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
    }


# --- byte-level BPE -----------------------------------------------------------------------------------------------


ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ hello", "Ì ģ", "Ã ©"]


def byte_level(pre="gpt-2", extra=("<s>", "</s>", "<tool>"), kinds=(CONTROL, CONTROL, USER_DEFINED), **keys):
    tokens = [*ALPHABET, *(m.replace(" ", "") for m in MERGES), *extra]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array([NORMAL] * (len(tokens) - len(extra)) + list(kinds), np.int32),
        "tokenizer.ggml.merges": list(MERGES),
        "tokenizer.ggml.bos_token_id": tokens.index("<s>"),
        "tokenizer.ggml.eos_token_id": tokens.index("</s>"),
    }
    metadata |= {f"tokenizer.{k.replace('__', '.')}": v for k, v in keys.items()}
    return {k: v for k, v in metadata.items() if v is not None}


def words(pre, text):
    """The words that merges stay inside, as they stand in the text."""
    splitter = tokenizer_of(side_files(byte_level(pre), PATH)).pre_tokenizer
    return [text[a:b] for _, (a, b) in splitter.pre_tokenize_str(text)]


LLAMA3_WORDS = ["It", "'S", " ", "123", "45", " HelloWorld", "!!\n\n", " ", " é", " x"]
QWEN2_WORDS = ["It", "'S", " ", *"12345", " HelloWorld", "!!\n\n", " ", " é", " x"]
WORDS = {
    "gpt-2": ["It", "'", "S", " 12345", " HelloWorld", "!!", "\n\n ", " é", " x"],
    "smollm": ["It", "'", "S", " ", *"12345", " HelloWorld", "!!", "\n\n ", " é", " x"],
    "default": ["It", "'", "S", " ", "123", "45", " HelloWorld", "!!", "\n\n ", " é", " x"],
    "llama-bpe": LLAMA3_WORDS,
    "llama3": LLAMA3_WORDS,
    "llama-v3": LLAMA3_WORDS,
    "qwen2": QWEN2_WORDS,
    "deepseek-r1-qwen": QWEN2_WORDS,
    "tekken": ["It", "'S", " ", *"12345", " Hello", "World", "!!\n\n", " ", " é", " x"],
}


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_each_pre_tokenizer_cuts_where_its_model_does(pre):
    assert words(pre, "It'S 12345 HelloWorld!!\n\n  é x") == WORDS[pre]


def test_qwen2_equals_transformers_own_class():
    qwen2 = pytest.importorskip("transformers.models.qwen2.tokenization_qwen2")
    metadata = byte_level("qwen2", ("<s>", "</s>"), (CONTROL, CONTROL))
    vocab = {t: i for i, t in enumerate(metadata["tokenizer.ggml.tokens"])}
    theirs = qwen2.Qwen2Tokenizer(vocab, [tuple(m.split()) for m in MERGES]).backend_tokenizer
    ours = tokenizer_of(side_files(metadata, PATH))
    for text in [*TEXTS, "hello é e\u0301"]:
        assert ours.encode(text).tokens == theirs.encode(text).tokens
    assert ours.encode("e\u0301").tokens == ["Ã©"]  # NFC
    other = tokenizer_of(side_files(byte_level("deepseek-r1-qwen"), PATH))
    assert other.encode("e\u0301").tokens == ["e", "Ìģ"]


def test_a_word_that_is_a_token_is_taken_whole_only_where_merges_are_ignored():
    keys = {"ggml__merges": []}
    assert tokenizer_of(side_files(byte_level("llama3", **keys), PATH)).encode(" hello").tokens == ["<s>", "Ġhello"]
    assert tokenizer_of(side_files(byte_level("qwen2", **keys), PATH)).encode(" hello").tokens == ["Ġ", *"hello"]


def test_special_tokens_are_found_whole_and_hidden_when_control():
    tokenizer = tokenizer_of(side_files(byte_level(), PATH))
    encoded = tokenizer.encode("hello</s><tool> hello")
    assert encoded.tokens == ["hello", "</s>", "<tool>", "Ġhello"]
    assert tokenizer.decode(encoded.ids) == "hello<tool> hello"


@pytest.mark.parametrize(
    ("pre", "keys", "expected"),
    [
        ("gpt-2", {}, ["hello"]),
        ("llama3", {}, ["<s>", "hello"]),  # what llama.cpp takes for granted there
        ("llama3", {"ggml__bos_token_id": None}, ["hello"]),
        ("llama3", {"ggml__add_bos_token": False}, ["hello"]),
        ("gpt-2", {"ggml__add_bos_token": True}, ["<s>", "hello"]),
        ("gpt-2", {"ggml__add_bos_token": True, "ggml__add_eos_token": True}, ["<s>", "hello", "</s>"]),
        ("gpt-2", {"ggml__add_eos_token": True}, ["hello", "</s>"]),
    ],
)
def test_bos_and_eos_frame_the_text_where_the_file_says_so(pre, keys, expected):
    files = side_files(byte_level(pre, **keys), PATH)
    assert tokenizer_of(files).encode("hello").tokens == expected
    assert tokenizer_of(files).encode("hello", add_special_tokens=False).tokens == ["hello"]
    assert settings_of(files)[0]["add_bos_token"] is (expected[0] == "<s>")


def test_a_pair_is_framed_twice():
    files = side_files(byte_level(ggml__add_bos_token=True, ggml__add_eos_token=True), PATH)
    pair = tokenizer_of(files).encode("hello", "hello")
    assert pair.tokens == ["<s>", "hello", "</s>"] * 2
    assert pair.type_ids == [0, 0, 0, 1, 1, 1]


def test_every_token_that_ends_a_text_is_a_stop():
    ids = {f"ggml__{name}_token_id": 256 + i for i, name in enumerate(("eos", "eot", "eom"))}
    assert settings_of(side_files(byte_level(**ids), PATH))[1]["eos_token_id"] == [256, 257, 258]
    ids["ggml__eot_token_id"] = ids["ggml__eom_token_id"] = 256
    assert settings_of(side_files(byte_level(**ids), PATH))[1]["eos_token_id"] == 256


def test_without_a_tokenizer_there_are_no_side_files():
    assert side_files({"general.architecture": "llama"}, PATH) == {}
    assert side_files({"tokenizer.ggml.model": "no_vocab"}, PATH) == {}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"ggml__model": "bert"}, "tokenizer 'bert' is not covered"),
        ({"ggml__pre": "command-r"}, "pre-tokenizer 'command-r' is not covered"),
        ({"ggml__pre": None}, "does not name its pre-tokenizer"),
    ],
)
def test_what_is_not_covered_is_refused_by_name(keys, message):
    with pytest.raises(UnsupportedModel, match=message) as caught:
        side_files(byte_level(**keys), PATH)
    assert "gpt" in caught.value.next


SMALL = {"ggml__token_type": None, "ggml__merges": [], "ggml__bos_token_id": 1, "ggml__eos_token_id": None}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"ggml__tokens": None}, "tokens should be a list"),
        ({"ggml__tokens": []}, "tokens should be a list"),
        ({"ggml__tokens": ["a", "b", "a"]}, "token 'a' is given twice"),
        ({"ggml__token_type": np.ones(3, np.int32)}, "should be 266 numbers"),
        ({"ggml__merges": None}, "merges should be a list"),
        ({"ggml__merges": ["h q"]}, "merges do not fit the tokens"),
        ({"ggml__merges": ["nospace"]}, "merges do not fit the tokens"),
        ({"ggml__bos_token_id": 266}, "bos_token_id is 266; there are 266 tokens"),
        ({"ggml__bos_token_id": -1}, "bos_token_id is -1"),
        ({"ggml__add_bos_token": 1}, "add_bos_token should be a bool, got 1"),
        ({"ggml__add_eos_token": True, "ggml__eos_token_id": None}, "does not name: eos_token_id"),
        ({"chat_template": ["x"]}, "chat_template is not text"),
        ({"ggml__tokens": ["$A", "a:b:c"], "ggml__add_bos_token": True, **SMALL}, "cannot take"),
    ],
)
def test_a_tokenizer_that_contradicts_itself_is_refused(keys, message):
    with pytest.raises(CheckpointError, match=message):
        side_files(byte_level(**keys), PATH)


# --- SentencePiece ------------------------------------------------------------------------------------------------


PIECES = {  # piece -> score, best merges first, as in Llama's vocabulary
    f"{SPACE}t": -1.0,
    "he": -2.0,
    f"{SPACE}the": -3.0,
    "in": -4.0,
    "er": -5.0,
    f"{SPACE}{SPACE}": -6.0,
    "aa": -7.0,
    "aaa": -8.0,
    "ther": -9.0,
    f"{SPACE}in": -10.0,
    **{c: -11.0 - i for i, c in enumerate([SPACE, *"thernaib"])},
}


def sentencepiece(**keys):
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *PIECES]
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array([UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * len(PIECES), np.int32),
        "tokenizer.ggml.scores": np.array([0.0] * 259 + list(PIECES.values()), np.float32),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    metadata |= {f"tokenizer.ggml.{k}": v for k, v in keys.items()}
    return {k: v for k, v in metadata.items() if v is not None}


def joined_by_score(text):
    """SentencePiece's BPE as its paper and source define it: join the best-scored neighbours, the leftmost among equals."""
    symbols = list(SPACE + text.replace(" ", SPACE)) if text else []
    while True:
        found = [(-PIECES[a + b], i) for i, (a, b) in enumerate(itertools.pairwise(symbols)) if a + b in PIECES]
        if not found:
            break
        _, i = min(found)
        symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
    return [t for s in symbols for t in ([s] if s in PIECES else [f"<0x{b:02X}>" for b in s.encode()])]


@given(text=st.text(alphabet=" therinab", max_size=40) | st.text(max_size=20))
@example(text="the  inner aaaaa there")
@settings(max_examples=200, deadline=None)
def test_pieces_join_by_score_and_the_rest_falls_back_to_bytes(text):
    tokenizer = SENTENCEPIECE
    encoded = tokenizer.encode(text, add_special_tokens=False)
    assert encoded.tokens == joined_by_score(text)
    assert tokenizer.decode(encoded.ids) == text


SENTENCEPIECE = tokenizer_of(side_files(sentencepiece(), PATH))


def test_a_bos_is_usual_and_each_stretch_of_text_gets_its_space():
    encoded = SENTENCEPIECE.encode("the</s>in")
    assert encoded.tokens == ["<s>", f"{SPACE}the", "</s>", f"{SPACE}in"]


def test_no_space_is_added_where_the_file_says_so():
    tokenizer = tokenizer_of(side_files(sentencepiece(add_space_prefix=False, add_bos_token=False), PATH))
    assert tokenizer.encode("the in").tokens == ["t", "he", f"{SPACE}in"]
    assert tokenizer.decode(tokenizer.encode(" the in").ids) == " the in"


def test_control_and_unused_tokens_take_no_part_in_merges():
    kinds = sentencepiece()["tokenizer.ggml.token_type"].copy()
    kinds[259 + list(PIECES).index("he")] = UNUSED
    tokenizer = tokenizer_of(side_files(sentencepiece(token_type=kinds), PATH))
    assert tokenizer.encode("the", add_special_tokens=False).tokens == [f"{SPACE}t", "h", "e"]


@pytest.mark.parametrize(
    ("keys", "error", "message"),
    [
        ({"scores": None}, CheckpointError, "scores should be"),
        ({"unknown_token_id": None, "token_type": None}, CheckpointError, "names no unknown token"),
        ({"scores": np.zeros(3, np.float32)}, CheckpointError, "scores should be"),
        ({"scores": np.full(259 + len(PIECES), np.nan, np.float32)}, CheckpointError, "finite numbers"),
        ({"remove_extra_whitespaces": True}, UnsupportedModel, "rewrites its text"),
        ({"precompiled_charsmap": np.zeros(4, np.uint8)}, UnsupportedModel, "rewrites its text"),
    ],
)
def test_a_sentencepiece_tokenizer_that_cannot_be_rebuilt_is_refused(keys, error, message):
    with pytest.raises(error, match=message):
        side_files(sentencepiece(**keys), PATH)


def test_a_piece_too_long_to_cut_is_refused():
    tokens = [*sentencepiece()["tokenizer.ggml.tokens"][:-1], "a" * 513]
    with pytest.raises(CheckpointError, match="a piece of 513 characters"):
        side_files(sentencepiece(tokens=tokens), PATH)


def test_a_trained_model_gives_the_ids_of_the_sentencepiece_package(tmp_path):
    """Runs where that package is installed; it is no dependency of the tests, `joined_by_score` stands in for it."""
    package = pytest.importorskip("sentencepiece")
    corpus = [line for path in sorted(Path(__file__).parent.glob("*.py")) for line in path.read_text().splitlines()]
    package.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus),
        model_prefix=str(tmp_path / "m"),
        model_type="bpe",
        vocab_size=1200,
        byte_fallback=True,
        normalization_rule_name="identity",  # as Llama 2 was trained, with the next two
        remove_extra_whitespaces=False,
        split_digits=True,
        minloglevel=2,
    )
    theirs = package.SentencePieceProcessor(model_file=str(tmp_path / "m.model"))
    ids = range(theirs.get_piece_size())
    kinds = [
        UNKNOWN if theirs.is_unknown(i) else CONTROL if theirs.is_control(i) else BYTE if theirs.is_byte(i) else NORMAL
        for i in ids
    ]
    metadata = sentencepiece(
        tokens=[theirs.id_to_piece(i) for i in ids],
        scores=np.array([theirs.get_score(i) for i in ids], np.float32),
        token_type=np.array(kinds, np.int32),
    )
    ours = tokenizer_of(side_files(metadata, PATH))
    for text in [*TEXTS, *corpus[:300]]:
        encoded = ours.encode(text, add_special_tokens=False).ids
        assert encoded == theirs.encode(text), text
        assert ours.decode(encoded) == text == theirs.decode(encoded)
