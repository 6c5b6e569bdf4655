"""A folder with a tiny random BERT, as transformers and sentence-transformers write one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertModel

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789'-?.,"
WORDS = ("have", "you", "like", "the", "dog", "cat", "pasta", "bread", "old", "need")
VOCABULARY = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", *LETTERS, *(f"##{c}" for c in LETTERS), *WORDS)

SIZES: dict[str, Any] = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 48,
    "type_vocab_size": 2,
}


def tiny_tokenizer() -> Tokenizer:
    """A WordPiece tokenizer that pads and cuts, as sentence-transformers leaves its own."""
    ids = {word: number for number, word in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    marks = [("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])]
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=marks)
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    tokenizer.enable_padding(length=24)
    tokenizer.enable_truncation(24)
    return tokenizer


def tiny_bert(
    path: Path, seed: int = 0, pooling: str = "mean", normalize: bool = True, **sizes: Any
) -> Path:
    """Write the folder.

    Args:
        path: to make.
        seed: of the weights.
        pooling: "mean" or "cls".
        normalize: whether modules.json ends with Normalize.
        **sizes: keys of a BertConfig.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = BertModel(BertConfig(**{**SIZES, **sizes}))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape))
    model.save_pretrained(path)
    tiny_tokenizer().save(str(path / "tokenizer.json"))
    kinds = ["Transformer", "Pooling"] + ["Normalize"] * normalize
    modules = [{"idx": i, "type": f"sentence_transformers.models.{k}"} for i, k in enumerate(kinds)]
    (path / "modules.json").write_text(json.dumps(modules))
    (path / "1_Pooling").mkdir()
    flags = {
        "word_embedding_dimension": SIZES["hidden_size"],
        "pooling_mode_mean_tokens": pooling == "mean",
        "pooling_mode_cls_token": pooling == "cls",
    }
    (path / "1_Pooling" / "config.json").write_text(json.dumps(flags))
    return path
