"""The command line: one function for each command, which parses its arguments and calls a verb.

`jaxft --help` loads neither jax nor transformers. The exit status is 0 for success, 2 for a mistake
of the user, 1 for a fault in jaxft, and 130 or 143 if a signal stopped the run.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

import jaxft
from jaxft.cli import adapter, data
from jaxft.errors import ConfigError, JaxftError, Stopped

_DEBUG = "--debug"
_DEBUG_HELP = "Show the traceback of an error. May stand anywhere on the line."

# Examples at the end of the help texts; \b keeps their line breaks.
_EXAMPLES = """\b
Examples:
  jaxft train configs/quickstart.yaml
  jaxft generate --adapter runs/quickstart/adapter --prompt "Hello."
  jaxft inspect HuggingFaceTB/SmolLM2-135M-Instruct
  jaxft adapter info runs/quickstart/adapter
"""
_TRAIN_EXAMPLES = """\b
Examples:
  jaxft train configs/quickstart.yaml
  jaxft train configs/quickstart.yaml lora.r=16 train.learning_rate=1e-3
  jaxft train configs/quickstart.yaml train.output_dir=runs/mine train.seed=1
  jaxft train configs/quickstart.yaml 'lora.target_modules=[q_proj, k_proj]'
  jaxft train --options
  jaxft train --options lora train.learning_rate
"""
_GENERATE_EXAMPLES = """\b
Examples:
  jaxft generate --adapter runs/quickstart/adapter --prompt "Hello."
  jaxft generate --adapter runs/quickstart/adapter --prompt "Hello." \\
    --temperature 0.7 --seed 1 --max-new-tokens 64
  jaxft generate --model HuggingFaceTB/SmolLM2-135M-Instruct --prompt "Hello."
  jaxft generate --adapter runs/quickstart/adapter --prompts questions.jsonl \\
    > answers.jsonl
  jaxft generate --adapter runs/quickstart/adapter --chat
"""

_EXPORT_EXAMPLES = """\b
Examples:
  jaxft export --adapter runs/quickstart/adapter --output merged
  jaxft export --adapter runs/quickstart/adapter --output flax --format flax
"""

_INSPECT_EXAMPLES = """\b
Examples:
  jaxft inspect HuggingFaceTB/SmolLM2-135M-Instruct
  jaxft inspect openai-community/gpt2 --revision main
  jaxft inspect models/mine
  jaxft inspect models/mine.gguf
"""

app = typer.Typer(
    name="jaxft",
    add_completion=False,
    no_args_is_help=True,
    # Plain help looks the same on a pipe, and does not load rich.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(adapter.app, name="adapter")
app.add_typer(data.app, name="data")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line, and end the process with its exit status.

    Args:
        argv: The arguments after the program's name; None takes those of the process.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    is_debug = _DEBUG in words
    try:
        app(args=[word for word in words if word != _DEBUG], prog_name="jaxft")
    except JaxftError as mistake:
        _fail(mistake.found, mistake.remedy, status=2, is_debug=is_debug)
    except Stopped as stop:
        sys.exit(128 + stop.signal)
    except Exception as fault:
        found = f"{type(fault).__name__}: {str(fault).strip() or 'no message'}"
        remedy = "This is a fault of jaxft. Run again with --debug for the traceback."
        _fail(found.splitlines()[0], remedy, status=1, is_debug=is_debug)


def _fail(found: str, remedy: str, *, status: int, is_debug: bool) -> None:
    """Print the error and end the process."""
    from jaxft import console

    if is_debug:
        traceback.print_exc()
    console.error(found, remedy)
    sys.exit(status)


def _print_version(is_wanted: bool) -> bool:
    """Print the version and exit if it is wanted."""
    if is_wanted:
        typer.echo(f"jaxft {jaxft.__version__}")
        raise typer.Exit
    return is_wanted


@app.callback(epilog=_EXAMPLES)
def _global_options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_print_version, is_eager=True),
    ] = False,
    debug: Annotated[bool, typer.Option(_DEBUG, help=_DEBUG_HELP)] = False,
) -> None:
    """Fine-tune Hugging Face language models with LoRA, in JAX.

    Each command explains itself: jaxft train --help
    """


@app.command(no_args_is_help=True, epilog=_TRAIN_EXAMPLES)
def train(
    recipe: Annotated[
        Path | None,
        typer.Argument(metavar="RECIPE", help="The recipe, a YAML file.", show_default=False),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Options that replace the recipe's, such as train.max_steps=20.",
            show_default=False,
        ),
    ] = None,
    options: Annotated[
        bool,
        typer.Option(
            "--options", help="List the options of a recipe: all, or those that are named."
        ),
    ] = False,
) -> None:
    """Train an adapter as a recipe says.

    The same command again continues a run that was stopped.
    """
    from jaxft import config

    if options:
        _list_options([str(word) for word in (recipe, *(overrides or ())) if word])
        return
    if recipe is None:
        raise ConfigError("no recipe is given", "Give a YAML file: `jaxft train RECIPE`.")
    run_config = config.load_config(recipe, overrides or [])

    from jaxft.training.run import loop

    loop.run(run_config)


def _list_options(names: Sequence[str]) -> None:
    """Print the named sections and options of a recipe; all of them if no name is given."""
    from jaxft import console
    from jaxft.config import options

    console.result(options.as_text(options.select(names), console.text_width()))


@app.command(no_args_is_help=True, epilog=_GENERATE_EXAMPLES)
def generate(
    prompt: Annotated[str | None, typer.Option(help="What to ask.", show_default=False)] = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Ask each row of a file: prompt or messages. Answers come as JSON lines.",
            show_default=False,
        ),
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Ask each line of standard input, as one chat.")
    ] = False,
    adapter: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the adapter, in PEFT's format. Without it: the base model answers.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="The base model. Without it: the one that the adapter names.", show_default=False
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens in an answer, at most.")] = 128,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="0 takes the likeliest token each time.")
    ] = 0.0,
    top_k: Annotated[
        int, typer.Option(min=0, help="Draw from this many likeliest tokens; 0: from all.")
    ] = 0,
    top_p: Annotated[
        float,
        typer.Option(
            min=0.0, max=1.0, help="Draw from the likeliest tokens with this total share."
        ),
    ] = 1.0,
    min_p: Annotated[
        float,
        typer.Option(
            min=0.0, max=1.0, help="Draw from tokens at least this share as likely as the first."
        ),
    ] = 0.0,
    repetition_penalty: Annotated[
        float, typer.Option(help="Above 1: tokens that occurred already are less likely.")
    ] = 1.0,
    seed: Annotated[
        int, typer.Option(min=0, help="The random seed, when temperature is above 0.")
    ] = 0,
    stop_strings: Annotated[
        list[str] | None,
        typer.Option(
            "--stop-string",
            help="An answer ends with it. May be given several times.",
            show_default=False,
        ),
    ] = None,
    eos_token_id: Annotated[
        list[int] | None,
        typer.Option(
            help="A token that ends an answer, instead of the model's own. May be given "
            "several times.",
            show_default=False,
        ),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Rows of a file that are answered together.")
    ] = 8,
) -> None:
    """Answer a prompt, a file of prompts or a chat with a tuned model.

    Answers go to standard output as they are made, everything else to standard error.
    """
    if sum((prompt is not None, prompts is not None, chat)) != 1:
        raise ConfigError(
            "Expected one of --prompt, --prompts and --chat.",
            'Ask with --prompt "Hello.", --prompts FILE, or --chat and lines on standard input.',
        )
    from jaxft import console
    from jaxft.generation.sampling import Sampling
    from jaxft.verbs import generate as generation

    asked = generation.Asked(
        adapter=adapter,
        model=model,
        max_new_tokens=max_new_tokens,
        how=Sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed),
        stop_strings=stop_strings or (),
        eos_token_ids=eos_token_id,
    )
    answerer = generation.load(asked)
    if prompt is not None:
        console.stream(answerer.answer(prompt))
    elif prompts is not None:
        for line in answerer.answers(prompts, batch_size):
            console.stream([line])
    else:
        for pieces in answerer.chat(console.lines()):
            console.stream(pieces)


@app.command(no_args_is_help=True, epilog=_EXPORT_EXAMPLES)
def export(
    output: Annotated[Path, typer.Option(help="The folder to write.", show_default=False)],
    adapter: Annotated[
        Path | None,
        typer.Option(help="Folder of the adapter. Without it: the base model.", show_default=False),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="The base model. Without it: the one that the adapter names.", show_default=False
        ),
    ] = None,
    format: Annotated[
        Literal["merged", "flax"],
        typer.Option(help="merged: safetensors; flax: the msgpack of Flax classes."),
    ] = "merged",
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        typer.Option(help="Dtype of the weights written. auto: each as in the base model's file."),
    ] = "auto",
    data: Annotated[
        Path | None,
        typer.Option(
            help="Held-out rows to compare on. Without it: those of the adapter's run, if they "
            "are still there.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Merge an adapter into its base model and write the whole.

    The written model is read back and compared before it takes its place; the differences
    are in its verification.json.
    """
    from jaxft.verbs import export as exporting

    exporting.export(
        adapter=adapter, model=model, output=output, kind=format, dtype=dtype, data=data
    )


@app.command(no_args_is_help=True, epilog=_INSPECT_EXAMPLES)
def inspect(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A folder, a .gguf file, or a name on the Hugging Face Hub.",
            show_default=False,
        ),
    ],
    revision: Annotated[
        str | None,
        typer.Option(help="A branch, tag or commit on the Hub.", show_default=False),
    ] = None,
) -> None:
    """Show a model's shape, the modules that can be adapted, and the memory needed.

    Only headers are read. A model that is not here yet is downloaded first, as in training.
    """
    from jaxft.verbs import inspection

    inspection.show(inspection.inspect(model, revision))
