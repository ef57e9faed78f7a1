"""Tiny models with the architectures of large ones, made from a seed: `python tiny_models.py FOLDER`.

Invariant: the same seed and package versions give the same files. Weights are 32-bit floats and spread widely, so that
the most probable token leads by far more than rounding: outputs can be compared token by token however a prompt was
cut into chunks. The tokenizer knows every byte, so that any text becomes tokens, about one for two letters.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

SEED = 20_511
SPREAD = 0.25
"""Standard deviation of the weights; transformers' own 0.02 would leave all tokens nearly equal."""
VOCABULARY = 512
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
    "initializer_range": SPREAD,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
SPECIAL_TOKENS = ["<begin>", "<end>", "<unknown>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
SYLLABLES = ["ba", "den", "fi", "gor", "ha", "kem", "lu", "mas", "no", "pir", "ro", "sta", "tul", "ven", "wi", "zan"]


def pseudo_text(words: int) -> str:
    """Words of no language; the commoner syllables come first, as letters do in one."""
    chance = random.Random(SEED)
    weights = [1 / (rank + 1) for rank in range(len(SYLLABLES))]
    return " ".join("".join(chance.choices(SYLLABLES, weights, k=chance.randint(1, 4))) for _ in range(words))


def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level pairs learnt from words of no language."""
    core = Tokenizer(models.BPE(unk_token=SPECIAL_TOKENS[2]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator([pseudo_text(20_000)], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=SPECIAL_TOKENS[0],
        eos_token=SPECIAL_TOKENS[1],
        unk_token=SPECIAL_TOKENS[2],
        chat_template=CHAT_TEMPLATE,
    )


def broken_text(words: PreTrainedTokenizerFast) -> list[int]:
    """Tokens that are no text of their own: bytes of longer characters, unused numbers."""
    return [number for number in range(VOCABULARY) if not words.decode([number]).isascii()]


def make(name: str, folder: Path) -> None:
    """One model with its tokenizer in `folder/name`."""
    torch.manual_seed(SEED)
    model: LlamaForCausalLM | Qwen3ForCausalLM = (
        LlamaForCausalLM(LlamaConfig(**SHAPE)) if name == "tiny-llama" else Qwen3ForCausalLM(Qwen3Config(**SHAPE))
    )
    words = tokenizer()
    with torch.no_grad():
        # What these would print is held back until the next token: answers would come in lumps.
        model.lm_head.weight[broken_text(words)] = 0
    target = folder / name
    model.to(torch.float32).save_pretrained(target)
    words.save_pretrained(target)
    sys.stdout.write(f"{name}: {json.dumps(SHAPE)}\n")


if __name__ == "__main__":
    for each in ("tiny-llama", "tiny-qwen3"):
        make(each, Path(sys.argv[1]))
