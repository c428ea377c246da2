"""The command line: one thin command each; what they do lives in the modules that they call."""

from __future__ import annotations

import codecs
import io
import locale
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from setbacks import signals
from setbacks.errors import InputError, SetbacksError

if TYPE_CHECKING:
    from setbacks.calibration import Calibrated
    from setbacks.recipe import Recipe
    from setbacks.stages.report import Report

app = typer.Typer(
    help="Align a language model by having it analyze its own mistakes (arXiv 2310.10477).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# The groups of commands in `setbacks --help`.
RUN = "Run, whole or by stages"
MEASURE = "Evaluate, compare, study"
PEOPLE = "Judges and people"
SHIP = "Try and ship"
MACHINE = "Set up"

Folder = Annotated[Path, typer.Argument(metavar="RUN", help="The run's folder.")]
From = Annotated[
    str | None,
    typer.Option(
        "--from",
        metavar="STAGE",
        help="Redo this stage and every later one; the old outputs move to superseded/.",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY.PATH=VALUE", help="Values that override the recipe."),
]
RecipeFile = Annotated[
    str | None, typer.Argument(metavar="RECIPE", help="A recipe (default: the quickstart).")
]


def _quieter(asked: bool) -> bool:
    if asked:
        logging.getLogger("setbacks").setLevel(logging.WARNING)
    return asked


Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet", "-q", callback=_quieter, help="Hide progress output; warnings are still shown."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Jobs = Annotated[
    int | None,
    typer.Option(metavar="N", help="Number of runs in parallel, each in its own process."),
]


def _installed(group: str) -> Callable[[str], list[str]]:
    """Give the names that a shell may complete."""

    def names(begun: str) -> list[str]:
        from setbacks.plugins import installed

        return sorted(name for name in installed(group) if name.startswith(begun))

    return names


def _kinds(incomplete: str) -> list[str]:
    """Give the kinds of parts that a shell may complete."""
    from setbacks.cli.listing import KINDS

    return [kind for kind in KINDS if kind.startswith(incomplete)]


def _version(asked: bool) -> None:
    if asked:
        from setbacks import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option("--verbose", help="Show what libraries log too (anywhere in a line)."),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error (anywhere in a line).")
    ] = False,
) -> None:
    pass


@app.command(rich_help_panel=RUN)
def run(
    recipe: RecipeFile = None,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Run folder (default: runs/NAME).")
    ] = None,
    redo: From = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Run the whole pipeline, or resume it."""
    settled = _recipe(recipe, overrides)
    _carry_out(out or _place(settled), settled, "report", redo, quiet, json)


def _stage(name: str, summary: str) -> None:
    """Add the command of one stage."""

    def command(
        folder: Folder, redo: From = None, quiet: Quiet = False, json: Json = False
    ) -> None:
        _carry_out(folder, None, name, redo, quiet, json)

    command.__doc__ = f"{summary} Runs the missing stages up to this one."
    app.command(name, rich_help_panel=RUN)(command)


_stage("induce", "Step 1: induce mistakes.")
_stage("analyze", "Step 2: generate analyses of the mistakes.")
_stage(
    "preflight",
    "Check whether the model can tell harmful from harmless; near chance, training will not help.",
)
_stage("train", "Step 3: fine-tune an adapter on the analyses.")
_stage("introspect", "Have the trained model analyze, and check whether it still does.")
_stage("respond", "Step 4: answer the suites before and after, with and without guidance.")
_stage("judge", "Step 5: judge the responses.")
_stage("report", "Write metrics.json and report.html.")


@app.command(rich_help_panel=MEASURE)
def evaluate(
    arms: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL|NAME=MODEL|NAME=ANSWERS|KEY.PATH=VALUE ...",
            help="Models (smollm2-135m, a folder, a PEFT adapter's folder, a hub id), files of "
            "answers, and values that win over the recipe. The first arm is the baseline.",
        ),
    ],
    suite: Annotated[
        list[str] | None,
        typer.Option(
            metavar="S",
            help="harmful, hijacking, safe, helpful; KIND=SOURCE; or a recipe, for its suites.",
        ),
    ] = None,
    judge: Annotated[
        list[str] | None,
        typer.Option(
            metavar="J", help="A judge; several are allowed.", autocompletion=_installed("judges")
        ),
    ] = None,
    fields: Annotated[
        str | None,
        typer.Option(
            metavar="OURS=THEIRS,...",
            help="What the files of answers call our fields, such as text=prompt.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Run folder (default: runs/NAME).")
    ] = None,
    redo: From = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Run suites on any models, or score existing answers. Trains nothing."""
    from setbacks.cli.arguments import recipe as of_words

    settled = of_words(arms, suite or (), judge or (), _mapping(fields))
    _carry_out(out or _place(settled), settled, "report", redo, quiet, json)


@app.command(rich_help_panel=MEASURE)
def compare(
    recipe: RecipeFile = None,
    overrides: Overrides = None,
    methods: Annotated[
        str | None,
        typer.Option(metavar="A,B,...", help="Compare these instead of the recipe's."),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(metavar="N", help="Number of training seeds per method.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of the comparison (default: runs/NAME-compare)."),
    ] = None,
    jobs: Jobs = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Train and measure several methods at equal data, or resume a comparison."""
    from setbacks.studies.compare import compare as carry_out

    told = [] if methods is None else [f"compare.methods=[{methods}]"]
    told += [] if seeds is None else [f"compare.seeds={seeds}"]
    told += [] if jobs is None else [f"jobs={jobs}"]
    settled = _recipe(recipe, overrides, told)
    _several(carry_out, settled, out or _place(settled, "-compare"), quiet, json)


@app.command("list", rich_help_panel=MACHINE)
def list_(
    kinds: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KIND]...",
            help="Kinds to list: methods, judges, engines, studies, sets, presets (default: all).",
            autocompletion=_kinds,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """List the methods, judges, engines, studies and data sets that are available."""
    from setbacks.cli.listing import KINDS, listing, show

    show(listing(kinds or KINDS), json)


@app.command(rich_help_panel=MEASURE)
def study(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]",
            help="A study; without one, the studies are listed.",
            autocompletion=_installed("studies"),
        ),
    ] = None,
    recipe: RecipeFile = None,
    overrides: Overrides = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of the study (default: runs/NAME-STUDY)."),
    ] = None,
    jobs: Jobs = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Run a study, or resume it."""
    from setbacks.cli.listing import listing, show
    from setbacks.studies import carry_out

    if name is None:
        show(listing(["studies"]), json)
        return
    settled = _recipe(recipe, overrides, [] if jobs is None else [f"jobs={jobs}"])
    folder = out or _place(settled, f"-{name}")
    _several(partial(carry_out, name), settled, folder, quiet, json)


@app.command(rich_help_panel=PEOPLE)
def calibrate(
    judge: Annotated[
        str,
        typer.Argument(
            metavar="JUDGE", help="The judge: probe, llm, ...", autocompletion=_installed("judges")
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY.PATH=VALUE", help="Keys of the judge, such as engine.model=DIR."
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Human labels: a label file, or a YAML file with one source or several.",
        ),
    ] = None,
    fit: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Fit the probe's heads on these labels instead."),
    ] = None,
    fields: Annotated[
        str | None,
        typer.Option(
            metavar="OURS=THEIRS,...", help="What the file calls our fields, such as text=prompt."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where fitted heads go.")] = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Measure a judge against human labels, or fit the probe on your own."""
    from setbacks import calibration
    from setbacks.recipe import Recipe
    from setbacks.runs.progress import show

    if (labels is None) == (fit is None):
        raise InputError("say either --labels FILE, to measure, or --fit FILE, to fit")
    if fit is not None and (judge != "probe" or overrides):
        raise InputError("--fit is for the probe alone, and takes no KEY.PATH=VALUE")
    if fit is None and out is not None:
        raise InputError("--out goes with --fit; figures go where reports find them")
    recipe = Recipe.of_judge(judge, overrides or [])
    found = calibration.labels(str(labels or fit), _mapping(fields))
    with show(quiet) as progress:
        if fit is not None:
            made = calibration.fit(found, out, progress)
        else:
            made = calibration.calibrate(recipe, found, progress)
    _print_calibration(made, json)


@app.command(rich_help_panel=SHIP)
def chat(
    folder: Folder,
    overrides: Overrides = None,
    prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Ask this alone; else, what is typed.")
    ] = None,
    guidance: Annotated[
        bool, typer.Option("--guidance", help="Begin with guidance on (later: /guidance on).")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print a line of JSON a prompt.")] = False,
) -> None:
    """Ask the model before and after, side by side, one prompt at a time."""
    from setbacks.cli.chat import HELP, SideBySide, as_columns, as_json, as_lines, typed

    sides = SideBySide(folder, overrides or [])
    typing = prompt is None and sys.stdin.isatty() and sys.stdout.isatty()
    if typing:
        print(f"{' | '.join(arm.name for arm in sides.arms)}; {HELP}; Ctrl-D ends")
    elif prompt is None:
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
    lines = typed() if typing else sys.stdin if prompt is None else ()
    turns = sides.converse(lines, guidance) if prompt is None else [sides.ask(prompt, guidance)]
    for turn in turns:
        if turn.note:
            print(turn.note, file=sys.stderr)
        elif json:
            print(as_json(turn), flush=True)
        elif sys.stdout.isatty():
            from rich.console import Console

            Console().print(as_columns(turn))
        else:
            print(as_lines(turn), flush=True)


@app.command(rich_help_panel=SHIP)
def export(
    folder: Folder,
    to: Annotated[Path, typer.Option(metavar="DIR", help="A new folder for it.")],
    form: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="adapter (PEFT), merged weights, or inspect: logs of all answers and verdicts for "
            "Inspect AI, harmful text among them, that only you can read.",
        ),
    ] = "adapter",
    merge: Annotated[bool, typer.Option("--merge", help="Short for --format merged.")] = False,
    push: Annotated[
        str | None,
        typer.Option(
            metavar="OWNER/NAME",
            help="Upload the folder to a new private repository on the hub; needs HF_TOKEN.",
        ),
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Let everybody read what is pushed.")
    ] = False,
    json: Json = False,
) -> None:
    """Write the adapter or merged weights with a model card, or logs, into a new folder."""
    from setbacks import export as exports
    from setbacks.hub import connect

    if merge and form not in ("adapter", "merged"):
        raise InputError(f"--merge is short for --format merged; leave out it or --format {form}")
    if push is not None and form in exports.PRIVATE:
        raise InputError(f"--format {form} holds harmful text and stays here; leave out --push")
    if push is not None:
        exports.token()  # before the work, not after it
        if reason := connect():
            raise SetbacksError(f"--push: the hub cannot be reached ({reason}); leave it out")
    made = exports.export(folder, to, "merged" if merge else form)
    url = None if push is None else exports.push(made, push, public=public)
    if json:
        from json import dumps

        print(dumps({"folder": str(made), "url": url}))
    else:
        print(f"exported to {made}" + ("" if url is None else f", and pushed to {url}"))


@app.command(rich_help_panel=PEOPLE)
def review(
    folder: Folder,
    host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS", help="Address to bind; use 0.0.0.0 to accept other machines."
        ),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8340,
    shared: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            metavar="SHARE",
            help="Fraction of answers that every reviewer labels (default 0.2).",
        ),
    ] = None,
    database: Annotated[
        str | None,
        typer.Option(metavar="URL", help="postgresql://...; by default RUN/review/labels.db."),
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the labels, or the answers to label, to a file."),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Of it: jsonl, csv, labels, argilla, label-studio."),
    ] = None,
    import_: Annotated[
        Path | None,
        typer.Option("--import", metavar="FILE", help="Take a file's labels in instead."),
    ] = None,
    as_: Annotated[
        str | None,
        typer.Option(
            "--as", metavar="NAME", help="Reviewer name for labels that do not carry one."
        ),
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Say which answers to label to settle a difference.")
    ] = False,
    arms: Annotated[
        str | None, typer.Option(metavar="A,B", help="With --plan: whose difference.")
    ] = None,
    metric: Annotated[
        str, typer.Option(metavar="NAME", help="With --plan: of which rate.")
    ] = "harmless_rate",
    difference: Annotated[
        float | None,
        typer.Option(
            metavar="POINTS",
            help="Smallest difference to detect, in points (default: the one the judge measured).",
        ),
    ] = None,
    labels: Annotated[
        int | None,
        typer.Option(metavar="N", help="Plan exactly N labels instead of as many as needed."),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Judge whose uncertainty guides the selection (default: the first).",
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="With --plan: print it as JSON.")] = False,
) -> None:
    """Label answers with people, blinded, on a page; or plan, export or import the labels."""
    if sum((plan, export is not None, import_ is not None)) > 1:
        raise InputError("--plan, --export and --import are for one at a time")
    if plan:
        from setbacks.review.plan import plan_run
        from setbacks.runs.folder import RunFolder

        pair = arms.split(",") if arms else []
        if len(pair) not in (0, 2):
            raise InputError(f"--arms {arms}: name two, as A,B")
        with RunFolder(folder) as opened:
            made = plan_run(
                opened,
                arms=tuple(pair) or None,
                metric=metric,
                difference=None if difference is None else difference / 100,
                labels=labels,
                judge=judge,
            )
        path = folder / "review" / "plan.json"
        if json:
            print(path.read_text(encoding="utf-8"), end="")
        else:
            print(made.words)
            print(f"plan: {path}")
        return
    try:
        from setbacks.review import serve as page
    except ImportError as error:
        raise InputError(
            f"the review page needs more libraries ({error.name}): pip install 'setbacks[review]'"
        ) from None
    if export is None and import_ is None:
        page.serve(folder, host=host, port=port, database=database, share=shared)
        return
    if import_ is not None:
        print(f"{page.take_in(folder, import_, as_, database)} new labels")
    elif export is not None:
        for path in page.give_out(folder, export, format, database):
            print(f"{path} written; it holds the answers: keep it private")


@app.command(rich_help_panel=MACHINE)
def new(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write it.")] = Path(
        "recipe.yaml"
    ),
) -> None:
    """Write a commented starter recipe."""
    from setbacks.cli.starter import starter

    if file.exists():
        raise InputError(f"{file}: exists already; name another file")
    try:
        file.write_text(starter(), encoding="utf-8")
    except OSError as error:
        raise InputError(f"{file}: cannot be written ({error.strerror})") from None
    print(f"{file} written; read it, change it, then: setbacks run {file}")


@app.command(rich_help_panel=MACHINE)
def doctor(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL|RECIPE",
            help="A model (smollm2-135m, a folder, a hub id), or a recipe, for its model and its "
            "training; without one, the machine.",
        ),
    ] = None,
    overrides: Overrides = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what this machine can run, or what will work with a model; exit 2 if it will not."""
    from setbacks.cli import doctor as doctors

    if model is None:
        from setbacks.cli.doctor import machine

        if not doctors.show(machine.examine(), as_json=json):
            raise typer.Exit(1)
        return
    from setbacks.cli.doctor.model import examine

    named = Path(model).is_file() or "=" in model
    recipe = _recipe(model if named else None, overrides, [] if named else [f"model.model={model}"])
    if not doctors.show(examine(recipe), as_json=json):
        raise typer.Exit(2)


def _recipe(recipe: str | None, overrides: list[str] | None, more: Sequence[str] = ()) -> Recipe:
    """Load a recipe; where none is named, what stands in its place is the first override."""
    from setbacks.recipe import Recipe

    told = list(overrides or [])
    if recipe is not None and not Path(recipe).exists():
        if "=" in recipe:
            told, recipe = [recipe, *told], None
        elif recipe.partition(".")[0] in Recipe.model_fields:
            raise InputError(f"{recipe}: to set this key, write {recipe}=VALUE")
    return Recipe.load(recipe, [*told, *more])


def _mapping(fields: str | None) -> dict[str, str]:
    """Our field -> theirs, of OURS=THEIRS,..."""
    pairs = [pair.partition("=") for pair in fields.split(",")] if fields else []
    return {ours.strip(): theirs.strip() for ours, _, theirs in pairs}


def _place(recipe: Recipe, ending: str = "") -> Path:
    """The folder of a recipe whose user named none: inside `runs`, whatever the recipe's name."""
    shown = "".join(c if c.isprintable() and c not in "/\\" else "-" for c in recipe.name)
    name = shown.encode("utf-8", "replace")[:200].decode("utf-8", "ignore").lstrip(".")
    return Path("runs") / ((name or "run") + ending)


def _several(
    do: Callable[..., Path], recipe: Recipe, folder: Path, quiet: bool, as_json: bool
) -> None:
    """Carry out a comparison or a study, and say what came out."""
    from setbacks.runs.progress import show

    with show(quiet) as progress:
        page = do(recipe, folder, progress)
    found = (page.parent / "findings.json").read_text(encoding="utf-8")
    if as_json:
        print(found, end="")
        return
    from rich.console import Console

    from setbacks.report.page import on_terminal

    console = Console()
    on_terminal(console, found)
    console.print(f"report: {page}", markup=False, highlight=False, soft_wrap=True)


def _carry_out(
    folder: Path, recipe: Any, until: str, redo: str | None, quiet: bool, as_json: bool
) -> None:
    """Run the pipeline's steps up to one of them, and say what came out."""
    from setbacks.pipeline import run_until
    from setbacks.runs.progress import show
    from setbacks.training import processes

    if processes.rank():  # it has nothing to save, and the first process says why all end
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with show(quiet) as progress:
        made = run_until(recipe, folder, until, redo=redo, on_progress=progress)
    if until == "report":
        _print_report(made, as_json)
    elif as_json:
        import json

        print(json.dumps({"stage": until, "folder": str(folder)}))
    else:
        print(f"{until}: done, in {folder}")


def _print_report(made: Report, as_json: bool) -> None:
    if as_json:
        print((made.path.parent / "metrics.json").read_text(encoding="utf-8"), end="")
        return
    from rich.console import Console

    from setbacks.report.run_page import headline

    console = Console()
    console.print(headline(made.metrics))
    for finding in made.metrics["findings"]:
        console.print(f"- {finding['text']}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"report: {made.path}", markup=False, highlight=False, soft_wrap=True)


def _print_calibration(made: Calibrated, as_json: bool) -> None:
    files = {name: str(path) for name, path in made.files.items()}
    if as_json:
        import json

        print(json.dumps(made.result | {"files": files}, indent=1))
        return
    from rich.console import Console

    from setbacks.calibration import table

    console = Console()
    console.print(table(made.result))
    for name, path in files.items():
        console.print(f"{name}: {path}", markup=False, highlight=False, soft_wrap=True)


def main() -> None:
    """Run the command line; every error is one line, unless --debug asks for the traceback."""
    _use_utf8()
    _prepare_streams()
    os.umask(os.umask(0o077) & 0o077)  # no umask may take our own files from us
    stopped = cache(partial(_fail, "stopped; progress is saved: run the same command to resume"))
    signals.handle(lambda: stopped(143))
    debug, verbose = "--debug" in sys.argv, "--verbose" in sys.argv
    sys.argv = [word for word in sys.argv if word not in ("--debug", "--verbose")]
    logging.getLogger("setbacks").setLevel(logging.INFO)
    if verbose:
        logging.basicConfig(format="%(asctime)s %(name)s: %(message)s", level="INFO", force=True)
        os.environ["TRANSFORMERS_VERBOSITY"] = "info"
    else:  # our own lines alone: libraries print theirs by themselves
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("setbacks: %(message)s"))
        logging.getLogger("setbacks").addHandler(handler)
        # It warns where it cannot keep its settings, of which we have none.
        logging.getLogger("matplotlib").setLevel(logging.ERROR)
    try:
        code = app(standalone_mode=False)
        if code == 130:  # typer's own word for Ctrl-C
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        # A second Ctrl-C ends the process on the spot, and without a traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        code = stopped(130)
    except signals.Terminated:
        code = stopped(143)
    except SetbacksError as error:
        if debug:
            raise
        code = _fail(str(error), error.exit_code)
    except BrokenPipeError:  # who read the output has left, as `| head` does
        code = 1
    except Exception as error:
        if hasattr(error, "format_message"):  # the command line itself was wrong
            message = error.format_message()
            context = getattr(error, "ctx", None)
            more = f" (see {context.command_path} --help)" if context else ""
            code = _fail(message + more, 2) if message else 2
        elif debug:
            raise
        else:
            reason = " ".join(str(error).split())[:300]
            code = _fail(
                f"{type(error).__name__}: {reason} (progress is saved; --debug shows more)", 1
            )
    sys.exit(_flushed(code if isinstance(code, int) else 0))


def _use_utf8() -> None:
    """Start again in Python's UTF-8 mode if the locale has another encoding.

    Libraries read and write text files in the locale's encoding, and so do file names. The mode,
    which is the default from Python 3.15 on (PEP 686), can only be chosen when Python starts.
    """
    wanted = os.environ.get("PYTHONUTF8") == "1"  # then it was tried already
    encoding = codecs.lookup(locale.getpreferredencoding(False)).name
    if os.name == "posix" and encoding != "utf-8" and not wanted:
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _prepare_streams() -> None:
    """Have something behind each standard stream that takes every character."""
    for name, mode in ("stdin", "r"), ("stdout", "w"), ("stderr", "w"):
        stream = getattr(sys, name)
        if stream is None:  # closed; else the next file that is opened takes its number
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115  it stays
        elif mode == "w" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _flushed(code: int) -> int:
    """Write out what was printed: a full disk or a closed pipe shows here, not in Python's exit."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if code == 0 and not isinstance(error, BrokenPipeError):
            _fail(f"the output cannot be written ({error.strerror})", 1)
        return code or 1
    return code


def _fail(message: str, code: int) -> int:
    line = " ".join(message.split())
    with suppress(OSError):  # nobody reads it
        sys.stderr.write(f"setbacks: {line}\n".encode("utf-8", "replace").decode("utf-8"))
    return code


if __name__ == "__main__":
    main()
