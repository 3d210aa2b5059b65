"""The command line, ``mano-op``: it parses, calls, and prints; what it calls does the work."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mano_op.errors import InputError, check_whole
from mano_op.grid import REGISTRATIONS

if TYPE_CHECKING:
    from mano_op.problems.recipes import Recipe


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns
    -------
    int
        0 if it did what it was asked, 1 if a store that was to be checked is not as it should be, 2 if the
        input or a file cannot be used, 130 if it was interrupted.
    """
    args = _parser().parse_args(arguments)
    try:
        code: int | None = args.command(args)
        sys.stdout.flush()
    except BrokenPipeError:  # `mano-op info STORE | head`: nobody reads on, which is no error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except InputError as error:
        # The library names its arguments; who typed a command knows them as flags.
        return _failed(_as_flags(str(error)), 2)
    except OSError as error:  # no permission, no room: what is said needs no traceback
        where = f"{error.filename}: " if error.filename else ""
        return _failed(f"{where}{error.strerror or error}; check the path, its permissions and the disk", 2)
    except KeyboardInterrupt:
        return _failed(f"interrupted. {args.interrupted}", 130)
    return code or 0


def _as_flags(message: str) -> str:
    """A message with the arguments of the library as the flags of the commands."""
    switches = r"\b(overwrite|resume|relabel|as_plane)=True"
    message = re.sub(switches, lambda found: "--" + found[1].replace("_", "-"), message)
    message = re.sub(r"\b(problem|engine|sample|time)='(\w+)'", r"--\1 \2", message)
    # initial={'u0': 'u'}, reference={'p': 101325.0}
    return re.sub(
        r"\b(initial|reference)=\{(?:'([^']*)': '?([^'}]*)'?)?\}",
        lambda found: f"--{found[1]}" + (f" '{found[2]}={found[3]}'" if found[2] else ""),
        message,
    )


def _failed(message: str, code: int) -> int:
    print(f"\nmano-op: {message}" if sys.stderr.isatty() else f"mano-op: {message}", file=sys.stderr)
    return code


def _demo(args: argparse.Namespace) -> None:
    from mano_op.demo import run_demo

    print(run_demo(args.folder, seed=args.seed, overwrite=args.overwrite, progress=not args.quiet))
    print(f"\nThe report, with pictures: {args.folder / 'report.html'}")


def _generate(args: argparse.Namespace) -> None:
    from mano_op.problems.generate import generate_fields
    from mano_op.problems.recipes import problem_of

    recipe = _recipe(args)
    with _cluster(args.scheduler) as client:
        store = generate_fields(
            args.store,
            problem_of(recipe.problem, recipe.options),
            [n if isinstance(n, int) else tuple(n) for n in recipe.resolutions],
            samples=recipe.samples,
            seed=recipe.seed,
            registration=recipe.registration,
            solver_resolution=recipe.solver_resolution,
            chunk=args.chunk,
            client=client,
            progress=not args.quiet,
            resume=args.resume,
            overwrite=args.overwrite,
        )
    print(store)


def _recipe(args: argparse.Namespace) -> Recipe:
    """What is asked for: a recipe, or a problem's name in place of one, with the values of the flags."""
    from mano_op.problems.recipes import PROBLEMS, Recipe, read_recipe

    if args.what in PROBLEMS:
        if args.resolutions is None:
            raise InputError(f"generate {args.what}: give the --resolutions")
        recipe = Recipe(problem=args.what, resolutions=args.resolutions, samples={"train": 1000, "test": 50})
    else:
        recipe = read_recipe(args.what)

    def given(*names: str) -> dict[str, Any]:
        return {name: value for name in names if (value := getattr(args, name)) is not None}

    samples = {**recipe.samples, **given("train", "test")}
    return replace(
        recipe,
        samples={split: n for split, n in samples.items() if n},
        options={**recipe.options, **dict(args.option)},
        **given("resolutions", "seed", "registration", "solver_resolution"),
    )


def _cluster(scheduler: str | None) -> AbstractContextManager[Any]:
    """A client of a dask scheduler; None, for the threads of this process, if no address is given."""
    if scheduler is None:
        return nullcontext()
    try:
        from distributed import Client
    except ModuleNotFoundError as error:
        raise InputError("--scheduler needs dask's distributed: pip install 'mano_op[cluster]'") from error
    try:
        client: AbstractContextManager[Any] = Client(scheduler)
    except (OSError, ValueError) as error:
        raise InputError(
            f"no dask scheduler answers at {scheduler} ({error}); start one with `dask scheduler`"
        ) from error
    return client


def _coarsen(args: argparse.Namespace) -> None:
    from mano_op.data.coarsen import coarsen_store

    with _cluster(args.scheduler) as client:
        store = coarsen_store(
            args.source,
            args.store,
            args.resolutions,
            method=_one_or_each(args.method, "one method, or VARIABLE=METHOD for every variable"),
            keep=not args.drop_finest,
            client=client,
            progress=not args.quiet,
            resume=args.resume,
            overwrite=args.overwrite,
        )
    print(store)


def _one_or_each(given: list[Any], expected: str) -> Any:
    """The one word that a flag was given, or the words by name, each name once."""
    pairs = [pair for pair in given if isinstance(pair, tuple)]
    if len(pairs) < len(given) != 1 or len(dict(pairs)) < len(pairs):
        said = " ".join("=".join(word) if isinstance(word, tuple) else word for word in given)
        raise InputError(f"{said}: expected {expected}")
    return dict(pairs) if pairs else given[0]


def _check(args: argparse.Namespace) -> int:
    from mano_op.data.check import check_store

    found = check_store(args.store, progress=not args.quiet)
    for violation in found:
        print(violation)
    print(f"{args.store}: {'as the format asks' if not found else f'{len(found)} violations'}")
    return 1 if found else 0


def _import_neuralop(args: argparse.Namespace) -> None:
    from mano_op.data.importers import import_neuralop_pt

    files = {"train": args.train, "test": args.test}
    present = {split: pairs for split, pairs in files.items() if pairs}
    print(import_neuralop_pt(args.store, present, problem=args.problem, **_writing(args)))


def _import_pdebench(args: argparse.Namespace) -> None:
    from mano_op.data.importers import import_pdebench

    print(
        import_pdebench(
            args.store,
            _files(args),
            boundary_conditions=dict(args.boundary),
            domain=dict(args.domain),
            variables=tuple(args.variables),
            **_described(args),
            **_writing(args),
        )
    )


def _import_the_well(args: argparse.Namespace) -> None:
    from mano_op.data.importers import import_the_well

    options = {"registration": _registrations(args), "domain": dict(args.domain)}
    print(import_the_well(args.store, _files(args), **options, **_described(args), **_writing(args)))


def _import_fno_mat(args: argparse.Namespace) -> None:
    from mano_op.data.importers import import_fno_mat

    print(import_fno_mat(args.store, _files(args), kind=args.kind, **_writing(args)))


def _import_netcdf(args: argparse.Namespace) -> None:
    from mano_op.data.importers import import_netcdf

    files: dict[Any, list[Path]] = {}
    for resolution, file in args.files:
        files.setdefault(resolution, []).append(file)
    print(
        import_netcdf(
            args.store,
            files,
            sample=args.sample,
            time=args.time,
            engine=args.engine,
            relabel=args.relabel,
            inputs=args.inputs,
            outputs=args.outputs,
            splits=dict(args.splits),
            registration=_registrations(args),
            domain=dict(args.domain) or None,
            boundary_conditions=dict(args.boundary),
            **_described(args),
            **_writing(args),
        )
    )


def _described(args: argparse.Namespace) -> dict[str, Any]:
    """What files do not say of their fields and axes."""
    initial = None if args.initial is None else dict(args.initial)
    return {"reference": dict(args.reference), "initial": initial, "as_plane": args.as_plane}


def _registrations(args: argparse.Namespace) -> Any:
    return _one_or_each(args.registration, "one registration, or AXIS=REGISTRATION for every axis")


def _files(args: argparse.Namespace) -> dict[str, list[Path]]:
    return {split: files for split in ("train", "test") if (files := getattr(args, split))}


def _writing(args: argparse.Namespace) -> dict[str, Any]:
    return {"progress": not args.quiet, "resume": args.resume, "overwrite": args.overwrite}


def _train(args: argparse.Namespace) -> None:
    from mano_op.data.mixed import Mixed
    from mano_op.train import train_model
    from mano_op.train.distributed import is_first

    run = train_model(
        args.store,
        args.run,
        resolution=_trained_at(args),
        arch=args.model,
        options=dict(args.option),
        time_steps=args.time_steps,
        at=args.at,
        transforms=dict(args.transform),
        epochs=args.epochs,
        batch_size=args.batch_size[0],
        learning_rate=args.learning_rate,
        weight_decay=args.weight_decay,
        loss=args.loss,
        optimizer=args.optimizer,
        symmetries=args.symmetries,
        noise=args.noise,
        pushforward=args.pushforward,
        seed=args.seed,
        device=args.device,
        precision=args.precision,
        clip=args.clip,
        accumulate=args.accumulate,
        validate=args.validate,
        validate_resolution=Mixed(args.validate_resolution) if args.validate_resolution else None,
        patience=args.patience,
        log=args.log,
        checkpoint_every=args.checkpoint_every,
        progress=not args.quiet,
        resume=args.resume,
        overwrite=args.overwrite,
    )
    if not is_first():  # of several processes one speaks
        return
    best = run.training.get("best")
    kept = run.history[(best["epoch"] if best else len(run.history)) - 1]
    errors = f"training error {kept['training_error']:.4f}"
    if best:
        errors += f", validation error {best['validation_error']:.4f} of epoch {best['epoch']}"
    print(f"{args.run}: {args.model}, {run.n_parameters:,} parameters, {errors}")


def _trained_at(args: argparse.Namespace) -> Any:
    """Return the resolution to train on, or the mixture of several."""
    from mano_op.data.mixed import Mixed

    sizes = args.batch_size if len(args.batch_size) > 1 else None
    if len(args.resolution) == 1 and args.ratios is None and sizes is None:
        return args.resolution[0]
    return Mixed(args.resolution, ratios=args.ratios, batch_size=sizes)


def _transfer(args: argparse.Namespace) -> None:
    from mano_op.data.store import open_store
    from mano_op.files import check_folder
    from mano_op.report import check_report_folder, write_report
    from mano_op.runs import load_run, write_evaluation
    from mano_op.transfer import Evidence, evaluate_transfer, summary, table
    from mano_op.transfer.rollout import shown_steps

    store = open_store(args.store)
    runs: dict[str, list[Any]] = {}
    for name, path in args.runs:
        runs.setdefault(name or path.name, []).append(load_run(path))
    check_report_folder(check_folder(args.out), overwrite=args.overwrite)
    evidence = Evidence()
    results = evaluate_transfer(
        runs,
        store,
        args.resolutions or list(store.grids),
        split=args.split,
        rollout=args.rollout,
        evidence=evidence,
        progress=not args.quiet,
    )
    judged = summary(results)
    report = write_report(args.out, results, judged, evidence, title=args.title, overwrite=args.overwrite)
    errors = table(shown_steps(judged))
    if args.cards:
        on = store.attrs.get("title") or store.path
        for _, path in args.runs:
            write_evaluation(path, f"On the split {args.split!r} of {on}, by mano-op transfer:\n\n{errors}")
    print(errors)
    print(f"\nThe report, with pictures: {report}")


def _classify_train(args: argparse.Namespace) -> None:
    from mano_op.vision.images import open_images
    from mano_op.vision.training import train_classifier

    check_whole(at_least=0, split_seed=args.split_seed)
    if args.start is not None:
        _check_there(args.start, "of a saved model, or of a run of `mano-op classify train`")
    images = open_images(
        args.source,
        image_size=args.image_size,
        in_channels=args.channels,
        test=args.test,
        validation=args.validation,
        seed=args.split_seed,
        image_column=args.image_column,
        label_column=args.label_column,
    )
    asked = {"shift": args.shift, "flip": args.flip, "crop": args.crop, "mixup": args.mixup}
    run = train_classifier(
        images,
        args.out,
        arch=args.arch,
        options=dict(args.option),
        epochs=args.epochs,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        weight_decay=args.weight_decay,
        label_smoothing=args.label_smoothing,
        augmentation=asked,
        normalise=args.normalise,
        freeze=args.freeze,
        start=args.start,
        seed=args.seed,
        device=args.device,
        precision=args.precision,
        clip=args.clip,
        accumulate=args.accumulate,
        validate=args.validate,
        patience=args.patience,
        num_workers=args.workers,
        log=args.log,
        checkpoint_every=args.checkpoint_every,
        progress=not args.quiet,
        resume=args.resume,
        overwrite=args.overwrite,
    )
    best = run.training.get("best")
    kept = run.history[(best["epoch"] if best else len(run.history)) - 1]
    said = f"training error {kept['training_error']:.4f}"
    if best:
        said += f", validation error {kept['validation_error']:.4f}"
        said += f" and accuracy {100 * kept['validation_accuracy']:.1f} % of epoch {best['epoch']}"
    print(f"{args.out}: {args.arch}, {run.n_parameters:,} parameters, {said}")


def _classify_eval(args: argparse.Namespace) -> None:
    from mano_op.files import check_folder, write_file
    from mano_op.runs import load_run, read_card, write_evaluation
    from mano_op.vision.evaluate import evaluate_classifier

    _check_there(args.run, "of a run of `mano-op classify train`")
    run = load_run(args.run, task="images")
    if args.card:
        read_card(args.run)
    if args.json is not None:
        check_folder(args.json.parent)
        if args.json.is_dir():
            raise InputError(
                f"--json {args.json} is a folder: give the path of a file, numbers.json in it, say"
            )
        if args.json.exists() and not args.overwrite:
            raise InputError(f"{args.json} exists: give another path, or overwrite=True to replace it")
    found = evaluate_classifier(
        run,
        args.source,
        split=args.split,
        sizes=args.sizes,
        device=args.device,
        batch_size=args.batch_size,
        num_workers=args.workers,
        progress=not args.quiet,
    )
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        write_file(args.json, json.dumps(found.to_dict(), indent=1, allow_nan=False))
    if args.card:
        write_evaluation(args.run, f"By mano-op classify eval:\n\n{found.table()}")
    print(found.table())


def _check_there(folder: Path, whose: str) -> None:
    if not folder.is_dir():
        said = "is a file" if folder.exists() else "does not exist"
        raise InputError(f"{folder} {said}: give the folder {whose}")


def _export(args: argparse.Namespace) -> None:
    from mano_op.export import export_onnx, export_program
    from mano_op.runs import load_run

    written = {".onnx": export_onnx, ".pt2": export_program}
    if args.out.suffix not in written:
        raise InputError(f"--out {args.out}, expected a name that ends in {' or '.join(written)}")
    shape = (args.shape,) if isinstance(args.shape, int) else args.shape
    run = load_run(args.run)
    errors = written[args.out.suffix](run, args.out, shape=shape, overwrite=args.overwrite)
    inputs = ", ".join("x".join(map(str, shape)) for shape in errors)
    print(f"{args.out}: within {max(errors.values()):.1e} of the model, relative, on inputs of {inputs}")


def _info(args: argparse.Namespace) -> None:
    from mano_op.data.describe import describe
    from mano_op.data.store import open_store

    unfinished = isinstance(args.store, Path) and not args.store.exists()
    print(describe(open_store(args.store, incomplete=unfinished)))


def _place(text: str) -> str | Path:
    """A path, or an address that fsspec knows, which a path would make another one of: s3://bucket/a.zarr."""
    return text if "://" in text else Path(text)


def _resolution(text: str) -> int | tuple[int, ...]:
    """``16``, ``16x24``, or a level's name, ``r16``."""
    try:
        sizes = tuple(int(n) for n in text.lower().removeprefix("r").split("x"))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a size, 16, or one an axis, 16x24") from error
    return sizes[0] if len(sizes) == 1 else sizes


def _ends(text: str) -> tuple[str, tuple[float, float]]:
    """``x=0:1``."""
    name, _, ends = text.partition("=")
    start, _, stop = ends.partition(":")
    try:
        return name, (float(start), float(stop))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: expected AXIS=START:STOP, x=0:1") from error


def _constant(text: str) -> tuple[str, float]:
    """``pressure=101325``."""
    name, _, value = text.rpartition("=")
    try:
        return name, float(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: expected VARIABLE=NUMBER, pressure=101325") from error


def _count(text: str) -> tuple[str, int]:
    """``train=1000``."""
    name, equals, size = text.partition("=")
    if not (name and equals and size.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r}: expected SPLIT=SAMPLES, train=1000")
    return name, int(size)


def _sized_file(text: str) -> tuple[int | tuple[int, ...], Path]:
    """``64x32=file.nc``."""
    resolution, equals, file = text.partition("=")
    if not (equals and file):
        raise argparse.ArgumentTypeError(f"{text!r}: expected RESOLUTION=FILE, 64x32=runs.nc")
    return _resolution(resolution), Path(file)


def _run(text: str) -> tuple[str, Path]:
    """``runs/mano``, or ``MANO=runs/mano``; a folder whose own name has a = needs the latter."""
    name, equals, folder = text.partition("=")
    if not equals or "/" in name:
        return "", Path(text)
    if not (name and folder):
        raise argparse.ArgumentTypeError(f"{text!r}: expected FOLDER or NAME=FOLDER, MANO=runs/mano_seed1")
    return name, Path(folder)


def _file_at(text: str) -> tuple[int, Path]:
    """``16=darcy_test_16.pt``."""
    resolution, _, path = text.partition("=")
    if not path:
        raise argparse.ArgumentTypeError(f"{text!r}: expected RESOLUTION=FILE, 16=darcy_test_16.pt")
    if not resolution.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number before =, 16=darcy_test_16.pt")
    return int(resolution), Path(path)


def _named(text: str) -> tuple[str, str]:
    """``permeability=log``."""
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise argparse.ArgumentTypeError(f"{text!r}: expected VARIABLE=FUNCTION, permeability=log")
    return name, value


def _method(text: str) -> str | tuple[str, str]:
    """``mean``, or ``permeability=mean``."""
    name, equals, method = text.partition("=")
    return (name, method) if equals else text


def _registration(text: str) -> str | tuple[str, str]:
    """``cell``, or ``y=cell``."""
    name, equals, word = text.rpartition("=")
    if word not in REGISTRATIONS or bool(name) != bool(equals):
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected {', '.join(REGISTRATIONS)}, or one of them for an axis, y=cell"
        )
    return (name, word) if equals else word


def _split_or_part(text: str) -> str | float:
    """``validation``, or ``0.1``."""
    try:
        return float(text)
    except ValueError:
        return text


def _option(text: str) -> tuple[str, Any]:
    """``hidden_channels=24``: a name and a JSON value, or a word."""
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r}: expected NAME=VALUE, hidden_channels=24")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mano-op",
        description="Multipole attention neural operators: fields, training, resolution transfer.",
    )
    parser.add_argument("--version", action="version", version=f"mano_op {version('mano_op')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(
        name: str,
        function: Any,
        what: str,
        within: Any = commands,
        interrupted: str = "What was there before is as it was.",
        makes: bool = True,
    ) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = within.add_parser(
            name, help=what, description=what, formatter_class=_WithDefaults
        )
        made.set_defaults(command=function, interrupted=interrupted)
        if makes:
            made.add_argument("--quiet", action="store_true", help="no progress bars")
            made.add_argument("--overwrite", action="store_true", help="replace what is there")
        return made

    def distributed(made: argparse.ArgumentParser) -> None:
        made.add_argument(
            "--scheduler", help="address of a dask scheduler, tcp://...; this machine if not given"
        )
        made.add_argument("--resume", action="store_true", help="go on with an interrupted store")

    demo = command(
        "demo",
        _demo,
        "make Darcy fields, train MANO and FNO at 16, judge them at 16, 32 and 64",
        interrupted="Start again with --overwrite.",
    )
    demo.add_argument("folder", type=Path, help="where everything goes")
    demo.add_argument("--seed", type=int, default=0, help="of the fields and of the training")

    generate = command(
        "generate",
        _generate,
        "solve a PDE for many samples, into a store",
        interrupted="What is solved is kept: go on with --resume and the same options.",
    )
    generate.add_argument(
        "what",
        metavar="PROBLEM|RECIPE",
        help="darcy, poisson, burgers, navier_stokes, fitzhugh_nagumo, or the path of a recipe as in "
        "data/recipes, whose values the flags replace",
    )
    generate.add_argument("store", type=_place, help="the store to make, NAME.zarr")
    generate.add_argument(
        "--resolutions",
        type=_resolution,
        nargs="+",
        metavar="N|NxM",
        help="points along each axis, one level for each",
    )
    generate.add_argument(
        "--train", type=int, help="training samples, 1000 without a recipe; 0 for no such split"
    )
    generate.add_argument("--test", type=int, help="test samples, 50 without a recipe; 0 for no such split")
    generate.add_argument("--seed", type=int, help="of the random fields, 0 without a recipe")
    generate.add_argument(
        "--option",
        type=_option,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="of the problem, as JSON: viscosity=0.01; may be given more than once",
    )
    generate.add_argument(
        "--registration",
        choices=REGISTRATIONS,
        help="where points lie: on [0, 1), the default, on [0, 1], or in the middle of cells",
    )
    generate.add_argument(
        "--solver-resolution",
        type=int,
        help="solve on this many intervals a side; if not given, on as few as the levels need",
    )
    generate.add_argument(
        "--chunk",
        type=int,
        default=50,
        metavar="SAMPLES",
        help="samples to a chunk of the store, which are solved for in one task and read in one",
    )
    distributed(generate)

    coarsen = command(
        "coarsen",
        _coarsen,
        "make a store with coarser levels of another store's fields",
        interrupted="What is coarsened is kept: go on with --resume and the same options.",
    )
    coarsen.add_argument("source", type=_place, help="the fields, NAME.zarr or an address of them")
    coarsen.add_argument("store", type=_place, help="the store to make, NAME.zarr")
    coarsen.add_argument(
        "--resolutions", type=_resolution, nargs="+", required=True, metavar="N|NxM", help="of the new levels"
    )
    coarsen.add_argument(
        "--method",
        type=_method,
        nargs="+",
        required=True,
        metavar="METHOD|VARIABLE=METHOD",
        help="mean, lowpass or injection, for all variables or for each",
    )
    coarsen.add_argument("--drop-finest", action="store_true", help="leave out the level they are made from")
    distributed(coarsen)

    what = "turn files of other formats into a store"
    importers = commands.add_parser("import", help=what, description=what)
    formats = importers.add_subparsers(required=True, metavar="FORMAT")
    kept = "What is written is kept: go on with --resume and the same options."
    pt = command(
        "neuralop",
        _import_neuralop,
        "neuraloperator's Darcy and Navier-Stokes files, *.pt",
        formats,
        interrupted=kept,
    )
    pt.add_argument(
        "--problem",
        choices=("darcy", "navier_stokes"),
        help="which files they are; need not be given for Darcy flow, whose x is 0 or 1",
    )
    pt.add_argument("store", type=_place, help="the store to make, NAME.zarr")
    pt.add_argument("--resume", action="store_true", help="go on with an interrupted store")
    for split in ("train", "test"):
        pt.add_argument(
            f"--{split}",
            type=_file_at,
            nargs="+",
            default=[],
            metavar="N=FILE",
            help=f"files of the {split} split, each with its resolution: 16=darcy_{split}_16.pt",
        )

    def from_files(name: str, function: Any, what: str, splits: bool = True) -> argparse.ArgumentParser:
        made = command(name, function, what, formats, interrupted=kept)
        made.add_argument("store", type=_place, help="the store to make, NAME.zarr")
        made.add_argument("--resume", action="store_true", help="go on with an interrupted store")
        for split in ("train", "test") if splits else ():
            made.add_argument(
                f"--{split}",
                type=Path,
                nargs="+",
                default=[],
                metavar="FILE",
                help=f"files of the {split} split",
            )
        return made

    def of_grid(made: argparse.ArgumentParser, *, boundary: bool, registration: bool) -> None:
        made.add_argument(
            "--domain", type=_ends, nargs="+", default=[], metavar="AXIS=START:STOP", help="ends of each axis"
        )
        if boundary:
            made.add_argument(
                "--boundary",
                type=_named,
                nargs="+",
                default=[],
                metavar="AXIS=CONDITION",
                help="of each axis: x=periodic y=wall",
            )
        if registration:
            made.add_argument(
                "--registration",
                type=_registration,
                nargs="+",
                required=True,
                metavar="REGISTRATION|AXIS=REGISTRATION",
                help="where points lie, along all axes or along each, y=node_both x=node: node, on [0, 1), "
                "node_both, on [0, 1], or cell, in the middle of cells",
            )

    def of_fields(made: argparse.ArgumentParser) -> None:
        made.add_argument(
            "--reference",
            type=_constant,
            nargs="+",
            default=[],
            metavar="VARIABLE=NUMBER",
            help="constants to subtract where float32 cannot hold the variation: pressure=101325",
        )
        made.add_argument(
            "--initial",
            type=_named,
            nargs="*",
            metavar="INPUT=OUTPUT",
            help="steady inputs that are where an output begins, u0=u; without any: there is none",
        )
        made.add_argument(
            "--as-plane", action="store_true", help="take latitude and longitude as lengths on a plane"
        )

    bench = from_files("pdebench", _import_pdebench, "PDEBench's files, *.hdf5")
    of_grid(bench, boundary=True, registration=False)
    of_fields(bench)
    bench.add_argument(
        "--variables",
        nargs="+",
        default=[],
        metavar="NAME",
        help="what to call those that the files do not name",
    )
    well = from_files("the-well", _import_the_well, "The Well's files, *.hdf5")
    of_grid(well, boundary=False, registration=True)
    of_fields(well)
    mat = from_files("fno-mat", _import_fno_mat, "the files of the Fourier neural operator's paper, *.mat")
    mat.add_argument(
        "--kind", choices=("burgers", "darcy", "navier_stokes"), required=True, help="which of its problems"
    )
    nc = from_files("netcdf", _import_netcdf, "whatever xarray opens, *.nc", splits=False)
    of_grid(nc, boundary=True, registration=True)
    of_fields(nc)
    nc.add_argument(
        "--files",
        type=_sized_file,
        nargs="+",
        required=True,
        metavar="RESOLUTION=FILE",
        help="64x32=runs.nc; several of one resolution follow each other",
    )
    nc.add_argument("--inputs", nargs="*", default=[], metavar="NAME", help="variables that are given")
    nc.add_argument(
        "--outputs", nargs="+", required=True, metavar="NAME", help="variables that are predicted"
    )
    nc.add_argument(
        "--splits", type=_count, nargs="+", required=True, metavar="SPLIT=SAMPLES", help="train=1000 test=50"
    )
    nc.add_argument("--sample", default="sample", metavar="DIMENSION", help="that numbers the samples")
    nc.add_argument("--time", default="time", metavar="DIMENSION", help="of the times")
    nc.add_argument("--engine", help="of xarray: h5netcdf, scipy, zarr, ...; chosen by the file if not given")
    nc.add_argument(
        "--relabel",
        action="store_true",
        help="number the samples anew, in the order of the files, whatever labels these have",
    )

    train = command(
        "train",
        _train,
        "train a model on one resolution of a store, or several",
        interrupted="The last checkpoint is kept, if there is one: go on with --resume and the same options.",
    )
    train.add_argument("store", type=_place, help="the fields, NAME.zarr or an address of them")
    train.add_argument("run", type=Path, help="folder for the trained model")
    train.add_argument(
        "--resolution",
        type=_resolution,
        nargs="+",
        required=True,
        metavar="N|NxM",
        help="level to train on; several are mixed, a batch has one of them",
    )
    train.add_argument(
        "--ratios",
        type=float,
        nargs="+",
        metavar="R",
        help="of several levels, what part of an epoch's samples each has; all samples of all if not given",
    )
    train.add_argument("--model", default="mano", help="name in neuraloperator's registry: mano, fno, ...")
    train.add_argument(
        "--option",
        type=_option,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="of the model, as JSON: hidden_channels=24; may be given more than once",
    )
    train.add_argument(
        "--time-steps",
        type=int,
        nargs=2,
        metavar=("IN", "OUT"),
        help="of fields that vary in time: steps that are known, and steps to predict",
    )
    train.add_argument(
        "--at", type=float, nargs="+", metavar="TIME", help="instead, times to predict from the steady inputs"
    )
    train.add_argument(
        "--transform",
        type=_named,
        action="append",
        default=[],
        metavar="VARIABLE=FUNCTION",
        help="before normalising, log or asinh: permeability=log; may be given more than once",
    )
    train.add_argument("--epochs", type=int, default=30, help="passes over the training samples")
    train.add_argument(
        "--batch-size", type=int, nargs="+", default=[20], help="samples a step, one number or one a level"
    )
    train.add_argument("--learning-rate", type=float, default=1e-2, help="its highest value")
    train.add_argument("--weight-decay", type=float, default=1e-4, help="of the optimizer")
    train.add_argument(
        "--optimizer",
        choices=("adamw", "muon"),
        default="adamw",
        help="muon: Muon for the hidden matrices, AdamW for the rest",
    )
    train.add_argument(
        "--symmetries",
        nargs="+",
        choices=("transpose", "reflect"),
        default=[],
        help="of the problem and its scalar fields, by which batches are turned at random",
    )
    train.add_argument(
        "--noise",
        type=float,
        default=0.0,
        metavar="SIGMA",
        help="with --time-steps: noise on inputs that vary in time, in units of their standard deviation, "
        "for rollouts that stay on course: 0.01",
    )
    train.add_argument(
        "--pushforward",
        type=int,
        default=0,
        metavar="STEPS",
        help="with --time-steps IN 1, for the same: the model first steps samples on by itself, without "
        "gradients, up to so many times",
    )
    train.add_argument("--loss", choices=("l2", "h1"), default="l2", help="relative error in this norm")
    train.add_argument("--seed", type=int, default=0, help="of the parameters and the order of the samples")
    train.add_argument("--device", default="cpu", help="as torch names it: cpu, cuda, cuda:1")
    train.add_argument(
        "--precision",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="of the matrix products, by torch's autocast",
    )
    train.add_argument(
        "--clip", type=float, metavar="NORM", help="largest norm of the gradient of a step's summed loss"
    )
    train.add_argument(
        "--accumulate", type=int, default=1, metavar="BATCHES", help="batches whose gradients make one step"
    )

    validation = train.add_argument_group("validation, without which the run has the last epoch's parameters")
    validation.add_argument(
        "--validate",
        type=_split_or_part,
        metavar="SPLIT|PART",
        help="a split of the store, or a part of the training samples to hold out, 0.1: the run has the "
        "parameters with the lowest error there",
    )
    validation.add_argument(
        "--validate-resolution",
        type=_resolution,
        nargs="+",
        metavar="N|NxM",
        help="levels to validate at, those trained on if not given",
    )
    validation.add_argument(
        "--patience", type=int, metavar="EPOCHS", help="stop after so many without a lower validation error"
    )

    going_on = train.add_argument_group("following and going on")
    going_on.add_argument(
        "--log",
        nargs="+",
        choices=("tensorboard", "wandb"),
        help="where the errors of each epoch go as well; tensorboard writes into the run's folder",
    )
    going_on.add_argument(
        "--checkpoint-every",
        type=int,
        default=1,
        metavar="EPOCHS",
        help="keep a checkpoint in the run's folder until the run is finished; 0 for none",
    )
    going_on.add_argument(
        "--resume",
        action="store_true",
        help="go on from the checkpoint, with the same options, to the same numbers; begins where there is "
        "nothing yet, and does nothing where the run is finished",
    )
    train.epilog = (
        "Several processes train one model: torchrun --nproc-per-node 2 -m mano_op.cli train ...; each has "
        "--batch-size samples a step, and the first one writes."
    )

    transfer = command("transfer", _transfer, "judge trained models at several resolutions of a store")
    transfer.add_argument("store", type=_place, help="the fields, NAME.zarr or an address of them")
    transfer.add_argument(
        "runs",
        type=_run,
        nargs="+",
        metavar="[NAME=]FOLDER",
        help="made by `mano-op train`; those of one name, the folder's own if not given, are one model, "
        "trained at other resolutions or from other seeds",
    )
    transfer.add_argument("--out", type=Path, required=True, help="folder for the report and its numbers")
    transfer.add_argument(
        "--resolutions", type=_resolution, nargs="+", metavar="N|NxM", help="levels; all if not given"
    )
    transfer.add_argument("--split", default="test", help="samples to judge on")
    transfer.add_argument(
        "--rollout",
        type=int,
        default=1,
        metavar="STEPS",
        help="of models that step on in time: how many steps to take, each from the predictions before it",
    )
    transfer.add_argument("--title", default="Resolution transfer", help="of the report")
    transfer.add_argument(
        "--cards", action="store_true", help="write the table into the model cards of the runs too, README.md"
    )

    export = command("export", _export, "write a trained model as one file for other programs", makes=False)
    export.add_argument("run", type=Path, help="made by `mano-op train`")
    export.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help="NAME.onnx, for ONNX, or NAME.pt2, a program of torch.export; it maps units to units",
    )
    export.add_argument(
        "--shape",
        type=_resolution,
        metavar="NxM",
        help="points along each axis of the one grid that the file is for; only for models other than MANO, "
        "whose file is for all grids at least as fine as the reference",
    )
    export.add_argument("--overwrite", action="store_true", help="replace what is there")

    _add_classify(commands, command)

    info = command("info", _info, "say what a store holds", makes=False)
    info.add_argument("store", type=_place, help="NAME.zarr, whole or partial, or an address")

    check = command(
        "check", _check, "read all of a store and explain what is not as the format asks", makes=False
    )
    check.add_argument("store", type=_place, help="NAME.zarr or an address")
    check.add_argument("--quiet", action="store_true", help="no progress bars")
    return parser


def _add_classify(commands: Any, command: Any) -> None:
    """``classify train`` and ``classify eval``."""
    what = "train and judge classifiers of images"
    within = commands.add_parser("classify", help=what, description=what).add_subparsers(
        required=True, metavar="COMMAND"
    )
    sources = (
        "digits, a folder of images, CLASS/*.png or train/CLASS/*.png, or a data set of Hugging Face on disk"
    )

    train = command(
        "train",
        _classify_train,
        "train a classifier on images",
        within,
        interrupted="The last checkpoint is kept, if there is one: go on with --resume and the same options.",
    )
    train.add_argument("source", help=sources)
    train.add_argument("--out", type=Path, required=True, metavar="RUN", help="folder for the trained model")
    train.add_argument("--arch", default="mano_classifier", help="name in neuraloperator's registry")
    train.add_argument(
        "--option",
        type=_option,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="of the model, as JSON: embed_dim=24; may be given more than once",
    )
    images = train.add_argument_group("images")
    images.add_argument(
        "--image-size", type=_resolution, metavar="N|NxM", help="to which all are brought; digits have 8"
    )
    images.add_argument(
        "--channels", type=int, choices=(1, 3), help="grey or colour; as the first image if not given"
    )
    images.add_argument(
        "--test", type=float, metavar="PART", help="of a source without that split: what becomes it, 0.2"
    )
    images.add_argument(
        "--validation", type=float, metavar="PART", help="of the training images: what becomes that split"
    )
    images.add_argument("--split-seed", type=int, default=0, help="by which splits are drawn")
    images.add_argument("--image-column", metavar="NAME", help="of a data set on disk")
    images.add_argument("--label-column", metavar="NAME", help="of a data set on disk")
    images.add_argument(
        "--normalise", choices=("imagenet",), help="by its mean and deviation, not the training images' own"
    )
    images.add_argument("--workers", type=int, default=0, help="processes that read images")

    seen = train.add_argument_group("what is done to training images, each time anew")
    seen.add_argument("--shift", type=int, default=0, metavar="PIXELS", help="up to so many, each way")
    seen.add_argument("--flip", action="store_true", help="mirror half of them, left to right")
    seen.add_argument(
        "--crop", type=float, default=1.0, metavar="PART", help="of photographs: cut out at least so much"
    )
    seen.add_argument("--mixup", type=float, default=0.0, metavar="ALPHA", help="mix pairs: 0.2")
    seen.add_argument(
        "--label-smoothing", type=float, default=0.0, metavar="PART", help="of targets, over all classes"
    )

    steps = train.add_argument_group("training")
    steps.add_argument("--epochs", type=int, default=30, help="passes over the training images")
    steps.add_argument("--batch-size", type=int, default=64, help="images a step")
    steps.add_argument("--learning-rate", type=float, default=1e-3, help="its highest value")
    steps.add_argument("--weight-decay", type=float, default=0.05, help="of matrices")
    steps.add_argument(
        "--freeze", choices=("none", "backbone"), default="none", help="backbone: only the head is trained"
    )
    steps.add_argument(
        "--start",
        type=Path,
        metavar="FOLDER",
        help="of a saved model of the same --arch, whose parameters to begin with",
    )
    steps.add_argument("--seed", type=int, default=0, help="of the parameters and the order of the images")
    steps.add_argument("--device", default="cpu", help="as torch names it: cpu, cuda, cuda:1")
    steps.add_argument(
        "--precision",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="of the matrix products, by torch's autocast",
    )
    steps.add_argument(
        "--clip", type=float, metavar="NORM", help="largest norm of the gradient of a step's summed loss"
    )
    steps.add_argument(
        "--accumulate", type=int, default=1, metavar="BATCHES", help="batches whose gradients make one step"
    )
    steps.add_argument(
        "--validate",
        type=_split_or_part,
        metavar="SPLIT|PART",
        help="a split, or a part of the training images to hold out, 0.1: the run has the parameters with "
        "the lowest cross-entropy there",
    )
    steps.add_argument(
        "--patience", type=int, metavar="EPOCHS", help="stop after so many without a lower validation error"
    )
    steps.add_argument(
        "--log", nargs="+", choices=("tensorboard", "wandb"), help="where numbers of each epoch go as well"
    )
    steps.add_argument(
        "--checkpoint-every",
        type=int,
        default=1,
        metavar="EPOCHS",
        help="keep a checkpoint in the run's folder until the run is finished; 0 for none",
    )
    steps.add_argument(
        "--resume", action="store_true", help="go on from the checkpoint, with the same options"
    )

    judge = command("eval", _classify_eval, "say how often a classifier is right", within)
    judge.add_argument("run", type=Path, help="made by `mano-op classify train`")
    judge.add_argument("source", help=sources)
    judge.add_argument("--split", default="test", help="images to judge on")
    judge.add_argument(
        "--sizes",
        type=_resolution,
        nargs="+",
        default=[],
        metavar="N|NxM",
        help="of images, besides that of the training",
    )
    judge.add_argument(
        "--json", type=Path, metavar="FILE", help="where the numbers go too, those of each class"
    )
    judge.add_argument("--card", action="store_true", help="write the table into the run's model card too")
    judge.add_argument("--device", default="cpu", help="as torch names it: cpu, cuda, cuda:1")
    judge.add_argument("--batch-size", type=int, default=64, help="images at a time")
    judge.add_argument("--workers", type=int, default=0, help="processes that read images")


class _WithDefaults(argparse.HelpFormatter):
    """Help that ends in the default, where there is one to tell."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        told = action.default not in (None, False, [], argparse.SUPPRESS) and action.option_strings
        return f"{action.help} (default: %(default)s)" if told else action.help


if __name__ == "__main__":
    sys.exit(main())
