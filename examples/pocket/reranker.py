"""Trains the pocket cross-encoder: the reranker of the evaluation's arm of that name.

`python -m examples.pocket.reranker` writes `stylus/pocket/reranker`. It reads a caption and the card of a good adapter
together and learns whether the scene holds the card's concept. A third of the captions use words that no card has, the
synonyms of the test prompts among them: a rival that knows the world better than the embedder of the retriever.
"""

import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import CrossEncoder
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

from examples.pocket.scenes import any_scene, caption, sprinkle
from stylus.ingest import settle
from stylus.pocket import ADAPTERS, RERANKER, truth
from stylus.records import Adapter
from stylus.short_list import card
from stylus.sources.folder import cards

STEPS, CAPTIONS, WRONG, RATE = 3000, 16, 3, 3e-3
"""Steps, captions a step, and wrong cards beside the right ones of each."""
RARE = 0.35
LONGEST = 192
"""Tokens of a caption and a card."""
SEED = 23


def adapters() -> list[Adapter]:
    """All of the pocket world, as an ingestion settles their cards."""
    return [settle(one) for one in cards(ADAPTERS, prefix="pocket", on_problem=lambda *_: None)]


def scenes(rng: np.random.Generator, count: int) -> list[tuple[str, frozenset[str]]]:
    """Captions with the concepts of their scenes."""
    drawn = [any_scene(rng) for _ in range(count)]
    return [(sprinkle(rng, caption(rng, scene, rare=RARE), 0.1), scene.labels) for scene in drawn]


def untrained(folder: Path, texts: Sequence[str], **shape: Any) -> CrossEncoder:
    """A small BERT of that `shape` (fields of BertConfig), whose vocabulary are the words of `texts`, written to
    `folder` and read back from there."""
    words = sorted({word for text in texts for word in re.findall(r"\w+|[^\w\s]", text.lower())})
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    BertTokenizer.from_pretrained(folder).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(words) + 5,
        num_attention_heads=4,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **shape,
    )
    config.num_labels = 1
    BertForSequenceClassification(config).save_pretrained(folder)
    return CrossEncoder(str(folder), num_labels=1, device="cpu", max_length=LONGEST)


def main() -> None:
    """Trains, tells how often the best card is right on captions that it has not seen, and writes."""
    torch.manual_seed(SEED)
    rng, concepts = np.random.default_rng(SEED), {id: row.concept for id, row in truth().items()}
    # the good ones, whose cards say what they do
    good = {id for id, row in truth().items() if row.quality == "good" and not row.mature}
    known = [adapter for adapter in adapters() if adapter.id in good]
    texts = [card(adapter) for adapter in known]
    spoken = [text for text, _ in scenes(np.random.default_rng(0), 4000)]
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128, "initializer_range": 0.1}
    model = untrained(RERANKER, [*texts, *spoken], max_position_embeddings=LONGEST, **shape)
    optimiser = torch.optim.AdamW(model.parameters(), RATE)
    start = time.time()
    for step in range(STEPS):
        for group in optimiser.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 50) * (1 - step / STEPS)
        pairs, labels = [], []
        for text, shown in scenes(rng, CAPTIONS):
            right = [n for n, adapter in enumerate(known) if concepts[adapter.id] in shown]
            wrong = rng.choice([n for n in range(len(known)) if n not in right], WRONG, replace=False)
            pairs += [(text, texts[n]) for n in (*right, *wrong)]
            labels += [1.0] * len(right) + [0.0] * WRONG
        scores = model(dict(model.preprocess(pairs)))["scores"].flatten()
        loss = binary_cross_entropy_with_logits(scores, torch.tensor(labels))
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if step % 50 == 0:
            print(f"{step} loss {loss.item():.3f} {time.time() - start:.0f}s", flush=True)
    held = [(text, shown) for text, shown in scenes(np.random.default_rng(99), 300) if shown & set(concepts.values())]
    tried = [(text, shown) for text, shown in held if any(concepts[a.id] in shown for a in known)][:100]
    hits = 0
    for text, shown in tried:
        best = int(np.argmax(model.predict([(text, other) for other in texts], show_progress_bar=False)))
        hits += concepts[known[best].id] in shown
    model.save_pretrained(str(RERANKER), create_model_card=False)
    (RERANKER / "vocab.txt").unlink()  # it is in tokenizer.json
    print(json.dumps({"captions": len(tried), "best card is right": hits / len(tried)}))


if __name__ == "__main__":
    main()
