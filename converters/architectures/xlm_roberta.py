"""XLM-RoBERTa: RoBERTa over a vocabulary of a hundred languages; upstream's two classes compute the same.

Paper: arXiv 1911.02116. Reference: transformers 5.23, models/xlm_roberta/modeling_xlm_roberta.py.
Checkpoints: Hugging Face folders, with or without a head; sentence-transformers folders (multilingual E5, BGE-M3's dense part).
"""

from __future__ import annotations

from .roberta import HEAD, KIND, build, longest

__all__ = ["HEAD", "KIND", "build", "longest"]
