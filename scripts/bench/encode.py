"""Encoding compared with `datasets.map` of the same tokenizer, in rows a second, and its memory.

    python scripts/bench/encode.py --rows 20000
    python scripts/bench/encode.py --model HuggingFaceTB/SmolLM2-135M-Instruct --text book.txt
    python scripts/bench/encode.py --gigabytes 2

Chats and texts are made of runs of words of `--text` (this repository's documents without it). The
tokenizer is that of `--model`, or a byte-level BPE of 8,192 tokens, trained on the same text. jaxft
reads rows, writes them with the chat template, tokenizes, finds what is learned, and keeps all of
it on disk. `datasets.map` is given written texts, and only tokenizes them; for chats it is also
given the messages, which `apply_chat_template` writes and tokenizes. Each round starts a process on
one core and one on two, in which the contestants take turns; shown are medians of the rounds. With
`--gigabytes` a file of that size is encoded and read in batches instead, and the memory of the
process is shown after each stage.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

REPO = Path(__file__).parent.parent.parent
VOCABULARY = 8192
MAX_LENGTH = 1024
BATCHES = 300

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="whose tokenizer is used: a folder, or a name on the Hub")
    parser.add_argument("--text", type=Path, help="a text file that rows are made of")
    parser.add_argument("--rows", type=int, default=20_000, help="chats, and as many texts")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gigabytes", type=float, help="measure memory with a file of that size")
    parser.add_argument("--workers", type=int, help="processes that encode, with --gigabytes")
    parser.add_argument("--worker", choices=["speed", "memory"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--cores", type=int, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main() -> None:
    """Measure and print the table, or be one of the processes that are measured."""
    args = parse()
    if args.worker == "speed":
        print(json.dumps(speeds(args)))
    elif args.worker == "memory":
        print(json.dumps(memory(args)))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            args.folder = Path(temporary)
            words = read_words(args.text)
            make_tokenizer(args.model, words).save_pretrained(args.folder / "tokenizer")
            if args.gigabytes:
                show_memory(args, words)
            else:
                show_speeds(args, words)


def read_words(file: Path | None) -> list[str]:
    """Return the words of a file, or of this repository's documents."""
    files = [file] if file else [*REPO.glob("*.md"), *sorted(REPO.glob("docs/*.md"))]
    return " ".join(each.read_text(encoding="utf-8") for each in files).split(" ")


def make_tokenizer(model: str | None, words: list[str]) -> Any:
    """Return a model's tokenizer, or train one; it has a chat template."""
    import tokenizers
    import transformers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    if model:
        tokenizer = transformers.AutoTokenizer.from_pretrained(model)
        tokenizer.chat_template = tokenizer.chat_template or CHATML
        return tokenizer
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["</s>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([" ".join(words)], trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    tokenizer.chat_template = CHATML
    return tokenizer


def runs(words: list[str], rng: random.Random, shortest: int, longest: int) -> Iterator[str]:
    """Yield runs of words without end."""
    while True:
        length = rng.randint(shortest, longest)
        start = rng.randrange(max(len(words) - length, 1))
        yield " ".join(words[start : start + length])


def make_rows(words: list[str], number: int) -> dict[str, list[dict[str, Any]]]:
    """Return chats of two to six messages, and texts, the same in every run."""
    rng = random.Random(0)
    turns = runs(words, rng, 5, 80)
    roles = ("user", "assistant")
    chats = [
        [{"role": role, "content": next(turns)} for role in roles * rng.randint(1, 3)]
        for _ in range(number)
    ]
    texts = runs(words, rng, 20, 300)
    return {
        "chats": [{"messages": messages} for messages in chats],
        "texts": [{"text": next(texts)} for _ in range(number)],
    }


def show_speeds(args: argparse.Namespace, words: list[str]) -> None:
    """Measure on one core and on two, and print the table."""
    from jaxft import console

    rows = make_rows(words, args.rows)
    (args.folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    rounds = [
        {cores: run(args, "speed", "--cores", str(cores)) for cores in (1, 2)}
        for _ in range(args.rounds)
    ]
    lines = []
    for kind in rows:
        for cores in (1, 2):
            for name in rounds[0][cores][kind]:
                seconds = [one[cores][kind][name] for one in rounds]
                mapped = [one[cores][kind]["datasets.map"] for one in rounds]
                alone = [one[1][kind]["jaxft"] for one in rounds]
                lines.append(
                    [
                        kind,
                        cores,
                        name,
                        f"{args.rows / statistics.median(seconds):,.0f}",
                        f"{ratio(mapped, seconds):.2f}",
                        f"{ratio(alone, seconds):.2f}",
                    ]
                )
    tokenizer = args.model or f"a BPE of {VOCABULARY:,} tokens"
    title = f"{args.rows:,} rows of each kind, {tokenizer}, {args.rounds} rounds"
    columns = ["", "cores", "", "rows/s", "of map", "of jaxft on one core"]
    console.table(title, columns, lines)


def ratio(first: list[float], second: list[float]) -> float:
    """Return how many times faster the second is, by the median of the rounds."""
    return statistics.median(a / b for a, b in zip(first, second, strict=True))


def speeds(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Return the seconds of each contestant, in this process."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])
    os.environ["TOKENIZERS_PARALLELISM"] = "false" if args.cores == 1 else "true"
    import datasets

    from jaxft.data.examples import encode
    from jaxft.data.sources.source import rows_of

    datasets.disable_progress_bars()
    own = make_encoding(args.folder)
    rows = json.loads((args.folder / "rows.json").read_text(encoding="utf-8"))

    def mapped(texts: Any) -> None:
        texts.map(
            lambda batch: own.tokenizer(batch["text"]), batched=True, load_from_cache_file=False
        )

    def templated(chats: Any) -> None:
        chats.map(
            lambda batch: own.tokenizer.apply_chat_template(batch["messages"], return_dict=True),
            batched=True,
            load_from_cache_file=False,
        )

    def encoded(kept: Any, num_workers: int | None) -> None:
        with tempfile.TemporaryDirectory(dir=args.folder) as cache:
            datasets.config.HF_DATASETS_CACHE = Path(cache)
            encode.encode_source(rows_of(kept, "rows"), own, None, num_workers)

    results = {}
    for kind, values in rows.items():
        written = [
            value.get("text")
            or own.tokenizer.apply_chat_template(value["messages"], tokenize=False)
            for value in values
        ]
        texts = datasets.Dataset.from_dict({"text": written})
        kept = datasets.Dataset.from_list(values)
        mapped(texts.select(range(100)))
        encoded(kept.select(range(100)), 1)
        measured: dict[str, Callable[[], None]] = {
            "datasets.map": lambda texts=texts: mapped(texts),
            "jaxft": lambda kept=kept: encoded(kept, 1),
        }
        if kind == "chats":
            measured["datasets.map, chats"] = lambda kept=kept: templated(kept)
        if args.cores > 1:
            measured[f"jaxft, {args.cores} workers"] = lambda kept=kept: encoded(kept, args.cores)
        results[kind] = {name: timed(call) for name, call in measured.items()}
    return results


def make_encoding(folder: Path) -> Any:
    """Return how rows become tokens."""
    import transformers

    from jaxft.data.chats.encoding import Encoding

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "tokenizer")
    ends = {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")}
    return Encoding(
        tokenizer=tokenizer,
        stop_ids=tuple(sorted(ends - {None})),
        train_on="assistant",
        train_on_reasoning=True,
        template_kwargs={},
        max_length=MAX_LENGTH,
        overlong="split",
    )


def timed(call: Callable[[], None]) -> float:
    """Return the seconds that a call takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def show_memory(args: argparse.Namespace, words: list[str]) -> None:
    """Write the file, have it encoded and read, and print the table."""
    from jaxft import console

    size, texts = 0, runs(words, random.Random(0), 20, 300)
    with (args.folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        while size < args.gigabytes * 1e9:
            line = json.dumps({"text": next(texts)}) + "\n"
            size += file.write(line)
    workers = [] if args.workers is None else ["--workers", str(args.workers)]
    stages = run(args, "memory", *workers)
    lines = [
        [name, f"{stage['seconds']:.1f}", *(f"{stage[key] / 1e6:,.0f}" for key in FIGURES)]
        for name, stage in stages.items()
    ]
    title = f"{size / 1e9:.2f} GB of text; megabytes of the process"
    columns = ["", "seconds", "peak", "now", "of it its own", "of it mapped files"]
    console.table(title, columns, lines)


FIGURES = ("VmHWM", "VmRSS", "RssAnon", "RssFile")


def memory(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Return the memory after each stage, in this process."""
    import datasets

    from jaxft.config import SourceConfig
    from jaxft.data.batches import loader
    from jaxft.data.examples import encode
    from jaxft.data.sources.source import open_rows

    own = make_encoding(args.folder)
    stages = {"imported": status(0.0)}
    datasets.config.HF_DATASETS_CACHE = args.folder / "cache"
    (source,) = open_rows([SourceConfig(path=str(args.folder / "rows.jsonl"))], None, "train")
    began = time.perf_counter()
    examples = encode.encode_source(source, own, None, args.workers)
    stages[f"encoded, {len(examples):,} examples"] = status(began)
    began = time.perf_counter()
    encode.encode_source(source, own, None, args.workers)
    stages["found in the cache"] = status(began)
    began = time.perf_counter()
    batches = loader.make_batches(
        [examples],
        weights=None,
        max_length=MAX_LENGTH,
        packing=True,
        group_by_length=False,
        shuffle=True,
        seed=0,
        global_batch=32,
        accumulation=1,
        shards=1,
        drop_last=False,
    )
    stages["planned"] = status(began)
    began = time.perf_counter()
    for _ in batches.iterate(0, BATCHES):
        pass
    stages[f"read {BATCHES} batches"] = status(began)
    return stages


def status(began: float) -> dict[str, float]:
    """Return the seconds since a stage began, and the memory of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    values = {name: text.split() for name, text in (line.split(":", 1) for line in lines)}
    seconds = time.perf_counter() - began if began else 0.0
    return {"seconds": seconds} | {key: int(values[key][0]) * 1024 for key in FIGURES}


def run(args: argparse.Namespace, worker: str, *further: str) -> dict[Any, Any]:
    """Run one process and return what it measured."""
    command = [sys.executable, __file__, "--worker", worker, "--folder", str(args.folder)]
    done = subprocess.run([*command, *further], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"The measured process failed:\n{done.stderr}")
    result: dict[Any, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


if __name__ == "__main__":
    main()
