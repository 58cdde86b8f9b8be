#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes tests/golden/tokenizer: small tokenizers with what Hugging Face's library does with them.

Run once by hand; tests read only what it wrote. Versions used: tokenizers 0.23.3, Python 3.11

  python3 -m venv venv && venv/bin/pip install tokenizers==0.23.3
  venv/bin/python tests/golden/make_tokenizer_golden.py tests/golden/tokenizer

Each folder holds a tokenizer.json, trained on this repository's design words, and cases.json:
  [{text, ids (with special tokens around it), plain (without), decoded, skipped (without special ones)}]
"""
import json
import pathlib
import random
import sys

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from tokenizers import pre_tokenizers, processors, trainers

QWEN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+")
LLAMA3 = QWEN.replace(r"\p{N}|", r"\p{N}{1,3}|")

CORPUS = [
    "The learner trains, the rollout server generates, and both agree to the last bit.",
    "Reinforcement learning from rollouts: rewards, advantages, clipping, gradients, loss scaling.",
    "It's what we've seen; they're sure you'll see it, I'd say. DON'T PANIC, IT'S FINE.",
    "def add(a, b):\n    return a + b\n\n\nprint(add(12, 345))\n",
    "1234567 + 89 = 1234656; 0.5e-3, 42 %, 3,141.59",
    "Größe, naïve, façade, Ελληνικά, русский, 日本語のテキスト, 한국어, עברית, हिन्दी, 😀👍🏽",
] * 20

PIECES = [
    "hello", " world", "It's", "WE'LL", "they've ", "12345", " 42", "0.5", "\n", "\r\n", "\n\n\n", "  ", "   ",
    "\t", " \n ", "é", "e\u0301", "o\u0308\u0323", "ſ", "日本", "語", "😀", "👍🏽", "שלום", "नमस्ते", "Ⅷ", "½", "x²",
    "a_b", "==>", "!!!", "?", "(", ")", "-", "\u00a0", "\u2003", "\u200d", "\u0000", "\ufeff", "<|im_start|>",
    "<|im_end|>", "<think>", "</s", "<pad>", " <pad> ", "<norm>", "word", "sword", "words", "\u212b", "\ufb01", "가",
    "\u1100\u1161", "\u2028", "\x85", "'", "''s", "'S", "'ſ", "naïve", "Größe",
]


def byte_level(add_prefix_space, use_regex):
    return pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=use_regex)


def train(normalizer, pre_tokenizer, vocab_size, ignore_merges=False):
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def split_then_bytes(pattern):
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), byte_level(False, False)])


def qwen():
    tokenizer = train(normalizers.NFC(), split_then_bytes(QWEN), 520)
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens([AddedToken("<think>", normalized=False), AddedToken("sword", single_word=True),
                          AddedToken("<norm>", normalized=True), AddedToken("<pad>", lstrip=True, rstrip=True)])
    return tokenizer


def llama3():
    tokenizer = train(None, split_then_bytes(LLAMA3), 480, ignore_merges=True)
    # A token that no chain of merges makes, which ignore_merges takes whole.
    file = json.loads(tokenizer.to_str())
    file["model"]["vocab"]["words"] = tokenizer.get_vocab_size()
    tokenizer = Tokenizer.from_str(json.dumps(file))
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    template = processors.TemplateProcessing(
        single="<|im_start|> $A", pair="<|im_start|> $A <|im_start|> $B:1",
        special_tokens=[("<|im_start|>", tokenizer.token_to_id("<|im_start|>"))])
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return tokenizer


def gpt2():
    digits = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level(True, True)])
    tokenizer = train(None, digits, 450)
    tokenizer.add_special_tokens([AddedToken("<|im_end|>", rstrip=True)])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return tokenizer


def texts():
    rng = random.Random(1)
    yield ""
    yield from PIECES
    for _ in range(150):
        yield "".join(rng.choice(PIECES) for _ in range(rng.randint(2, 12)))


def case(tokenizer, text):
    ids = tokenizer.encode(text).ids
    return {"text": text, "ids": ids, "plain": tokenizer.encode(text, add_special_tokens=False).ids,
            "decoded": tokenizer.decode(ids, skip_special_tokens=False),
            "skipped": tokenizer.decode(ids, skip_special_tokens=True)}


def main():
    out = pathlib.Path(sys.argv[1])
    for make in (qwen, llama3, gpt2):
        tokenizer = make()
        folder = out / make.__name__
        folder.mkdir(parents=True, exist_ok=True)
        # One line per case keeps differences readable.
        (folder / "tokenizer.json").write_text(tokenizer.to_str() + "\n")
        lines = [json.dumps(case(tokenizer, text)) for text in texts()]
        (folder / "cases.json").write_text("[\n" + ",\n".join(lines) + "\n]\n")


if __name__ == "__main__":
    main()
