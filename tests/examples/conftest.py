"""A tiny checkpoint with a tokenizer, for examples and the commands in README: seeded, untrained, a second to make."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

VOCABULARY = 260  # 256 bytes and 4 special tokens


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama folder of 0.1 million parameters whose tokens are bytes."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    tiny.make(folder, "LlamaForCausalLM", vocab_size=VOCABULARY, max_position_embeddings=512)
    special = {f"<{i}>": 256 + i for i in range(VOCABULARY - 256)}
    letters = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab={**letters, **special}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
