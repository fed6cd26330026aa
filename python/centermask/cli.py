"""The command `centermask`. Each subcommand imports what it needs, when it runs: prediction never loads torch."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from centermask import __version__
from centermask.wording import counted

if TYPE_CHECKING:
    from centermask.predictor import Predictor

EXIT_CODES = """\
exit codes:
  0  all went well
  1  some inputs failed (each is named on stderr); the others were done
  2  nothing was done: wrong usage, or a model, data set or package is missing or unusable
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line; returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if arguments[:1] == ["train"]:  # its options are the fields of TrainConfig, known once training is imported
            return _train(arguments[1:])
        options = build_parser().parse_args(arguments)
        run: Callable[[argparse.Namespace], int] = options.run
        return run(options)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (ImportError, OSError, ValueError, RuntimeError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def build_parser() -> argparse.ArgumentParser:
    """The parser of everything but `train`."""
    parser = argparse.ArgumentParser(
        prog="centermask",
        description="Instance segmentation: predict, train, evaluate, export.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"centermask {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_predict(commands)
    commands.add_parser("train", help="train a model on COCO-style data (centermask train --help)", add_help=False)
    _add_eval(commands)
    _add_export(commands)
    _add_convert(commands)
    _add_benchmark(commands)
    _add_validate(commands)
    doctor = commands.add_parser("doctor", help="show what is installed and what is known to go wrong")
    doctor.set_defaults(run=_doctor)
    return parser


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: %(default)s")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all cores)")


def _add_predict(commands: Any) -> None:
    parser = commands.add_parser(
        "predict",
        help="find instances in pictures and videos",
        description="Draws what the model finds. With no INPUT, on a sample photograph.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("inputs", nargs="*", metavar="INPUT", help="pictures, folders, globs, videos")
    parser.add_argument(
        "--model", "-m", default="default", metavar="M", help=".onnx file, or an embedded model: default, nuclei"
    )
    parser.add_argument(
        "--out", "-o", default="predictions", metavar="DIR", help="folder for the drawn files (default: %(default)s)"
    )
    parser.add_argument("--score", type=float, metavar="S", help="least score, 0..1 (default: the model's own)")
    parser.add_argument("--max-instances", type=int, metavar="N", help="most instances in each picture")
    _add_model_options(parser)
    parser.add_argument("--coco", metavar="FILE", help="write all results as one COCO JSON file")
    parser.add_argument(
        "--class-agnostic",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="one label for each object, the best (default: as the model says)",
    )
    parser.add_argument(
        "--save-labels",
        choices=("coco", "yolo"),
        help="write labels into DIR, to be corrected by hand: annotations.json (coco) or labels/, images/ and "
        "data.yaml (yolo)",
    )
    parser.set_defaults(run=_predict)


def _predict(options: argparse.Namespace) -> int:
    from centermask import label_files, predict_files

    files, errors = predict_files.expand_inputs(options.inputs)
    names = None
    if not options.inputs:
        files, names = [sample_picture()], ["sample.jpg"]
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    if not files:
        return 2
    predictor = _predictor(options, options.score, options.max_instances)
    print("\n".join(predict_files.introduction(options.model, predictor.info)), flush=True)
    if not options.inputs and "person" not in predictor.info.class_names:
        print("note: the sample photograph shows a person, which this model does not know", file=sys.stderr)
    out = Path(options.out)
    sinks: list[label_files.CocoSink | label_files.YoloSink] = []
    base = label_files.common_folder(files)
    if options.coco:
        sinks.append(label_files.CocoSink(Path(options.coco), predictor.info))
    if options.save_labels == "coco":
        sinks.append(label_files.CocoSink(out / "annotations.json", predictor.info, polygons=True, base=base))
    if options.save_labels == "yolo":
        sinks.append(label_files.YoloSink(out, predictor.info, base=base))
    tally = predict_files.predict_files(predictor, files, out, sinks, names=names)
    for sink in sinks:
        for path in sink.close():
            print(f"wrote {path}")
    failed = tally.failed + len(errors)
    if tally.pictures:
        preprocess, network, masks = (1e3 * tally.steps / tally.pictures).tolist()
        print(
            f"{counted(tally.pictures, 'picture')}, {counted(tally.instances, 'instance')}; "
            f"{preprocess + network + masks:.1f} ms each "
            f"(preprocess {preprocess:.1f}, network {network:.1f}, masks {masks:.1f}); "
            f"peak memory {peak_memory() / 2**20:.0f} MiB"
        )
    if failed:
        print(f"{counted(failed, 'input')} failed, named above", file=sys.stderr)
    return 1 if failed else 0


def _predictor(options: argparse.Namespace, score: float | None, max_instances: int | None = None) -> Predictor:
    from centermask.predictor import Predictor

    return Predictor(
        options.model,
        device=options.device,
        threads=options.threads,
        score_threshold=score,
        max_instances=max_instances,
        class_agnostic=getattr(options, "class_agnostic", None),
    )


def sample_picture() -> Path:
    """The photograph that the package carries (US Navy portrait of Grace Hopper, public domain)."""
    path = Path(str(resources.files("centermask") / "models" / "sample.jpg"))
    if not path.is_file():
        raise FileNotFoundError(
            f"the sample photograph is not in this installation ({path}); give a picture of your own"
        )
    return path


def peak_memory() -> int:
    """Most memory that this process has held so far, in bytes."""
    import resource  # Linux: ru_maxrss counts KiB

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _add_eval(commands: Any) -> None:
    parser = commands.add_parser(
        "eval",
        help="average precision and latency of a model on labelled data",
        description="Evaluates an .onnx file, a checkpoint (.pt) or a COCO result file (.json) on a data set.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model", metavar="MODEL", help=".onnx, checkpoint, COCO result .json, or an embedded model's name"
    )
    parser.add_argument("data", metavar="DATA", help="data set: COCO, COCO 2017, Roboflow or YOLO-seg")
    parser.add_argument("--split", default="val", metavar="NAME", help="default: %(default)s")
    parser.add_argument("--json", metavar="FILE", help="write the figures, fractions 0..1")
    parser.add_argument("--html", metavar="FILE", help="write a report with curves and the worst pictures, in one file")
    _add_model_options(parser)
    protocol = parser.add_argument_group("ways of testing that published figures were measured with")
    protocol.add_argument(
        "--published",
        action="store_true",
        help="every peak counts whatever its score, boxes are not clipped to the picture, none is removed for overlap",
    )
    protocol.add_argument("--flip", action="store_true", help="average with the mirror image (checkpoints only)")
    protocol.add_argument(
        "--scales", type=_numbers, default=(1.0,), metavar="A,B", help="test at these scales, joined by Soft-NMS"
    )
    protocol.add_argument("--decimals", type=int, metavar="N", help="round boxes and scores (CenterNet: 2)")
    parser.set_defaults(run=_eval)


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def _eval(options: argparse.Namespace) -> int:
    from centermask.files import make_room, write_atomically

    for path in filter(None, (options.json, options.html)):
        make_room(path)
    try:
        from centermask.training.evaluate import evaluate_file
        from centermask.training.protocol import EvalProtocol
    except ModuleNotFoundError as error:
        raise _missing("evaluation", error) from None
    figures, failed = evaluate_file(
        options.model,
        Path(options.data),
        options.split,
        device=options.device,
        threads=options.threads,
        protocol=EvalProtocol(options.flip, options.scales, options.published, options.decimals),
    )
    print(figures.table())
    if (options.json or options.html) and figures.evidence is not None:
        from centermask.report.analysis import analyse
        from centermask.report.eval_page import write_page

        analysis = analyse(figures.evidence)
        if options.json:
            content = {**figures.to_json(), "report": analysis.to_json()}
            write_atomically(options.json, (json.dumps(content, indent=2) + "\n").encode())
            print(f"wrote {options.json}")
        if options.html:
            page = write_page(figures.values, analysis, figures.evidence, figures.notes)
            write_atomically(options.html, page.encode())
            print(f"wrote {options.html}")
    return 1 if failed else 0


def _add_export(commands: Any) -> None:
    parser = commands.add_parser(
        "export",
        help="turn a checkpoint into an .onnx file that Predictor runs",
        description="Writes ONNX with decoding inside, verifies it against PyTorch, then puts it in place.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="of `centermask train`, such as runs/x/best.pt")
    parser.add_argument("output", metavar="OUT.onnx")
    parser.add_argument(
        "--profile",
        choices=("fused", "standard", "decomposed"),
        default="fused",
        help="fused: our operators, for onnxruntime >= 1.16 with our library, and >= 1.25 without; standard: operators "
        "of ONNX alone, for onnxruntime >= 1.25, TensorRT; decomposed: for any runtime, slower (default: %(default)s)",
    )
    parser.add_argument(
        "--precision",
        choices=("fp32", "fp16", "int8"),
        default="fp32",
        help="fp16: stored weights, which halves the file, arithmetic stays float32; int8: convolutions in 8 bits, "
        "needs --calibration (default: %(default)s)",
    )
    parser.add_argument("--calibration", metavar="DIR", help="pictures that int8 takes its scales from; a hundred do")
    parser.add_argument(
        "--masks",
        choices=("none", "rle"),
        default="none",
        help="rle: finished masks among the outputs (fused alone; such a file needs our library)",
    )
    parser.add_argument(
        "--size", type=int, metavar="PX", help="fix the input to a square of PX pixels (default: any size)"
    )
    parser.add_argument("--opset", type=int, metavar="N", help="18: for onnxruntime 1.15 (default: 19)")
    parser.add_argument(
        "--score", type=float, default=None, metavar="S", help="threshold for showing, 0..1 (default: 0.3)"
    )
    parser.add_argument(
        "--max-overlap", type=float, metavar="IOU", help="above it two instances of a class are one (default: 0.65)"
    )
    parser.add_argument(
        "--class-agnostic", action="store_true", help="that holds between classes too: an object has one label"
    )
    parser.add_argument(
        "--training-data", default=None, metavar="TEXT", help="what it was trained on, for the metadata"
    )
    parser.add_argument(
        "--ap",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="take mask_ap, box_ap ... of an `eval --json` file",
    )
    parser.add_argument(
        "--triton", metavar="DIR", help="also write a model repository for Triton Inference Server there"
    )
    parser.set_defaults(run=_export)


def _export(options: argparse.Namespace) -> int:
    try:
        from centermask.export import command
    except ModuleNotFoundError as error:
        raise _missing("export", error) from None
    return command.run(options)


def _add_convert(commands: Any) -> None:
    parser = commands.add_parser(
        "convert",
        help="turn a detector of another project into a checkpoint",
        description="Converts CenterNet (ctdet), mmdetection's CenterNet and CenterNet-better: see docs/convert.md.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="SRC", help="PyTorch file of that project")
    parser.add_argument("output", metavar="OUT.pt", help="checkpoint to write")
    parser.add_argument(
        "--from", dest="family", choices=("centernet", "mmdet", "centernet-better"), help="default: found out"
    )
    parser.add_argument(
        "--classes", metavar="A,B", help="class names in the heatmap's order (default: COCO's for 80, VOC's for 20)"
    )
    parser.add_argument(
        "--fixed-size",
        type=int,
        metavar="PX",
        help="scale pictures into a square, as CenterNet without --keep_res (default: their own resolution)",
    )
    parser.set_defaults(run=_convert)


def _convert(options: argparse.Namespace) -> int:
    try:
        from centermask.convert import command
    except ModuleNotFoundError as error:
        raise _missing("conversion", error) from None
    return command.run(options)


def _add_benchmark(commands: Any) -> None:
    parser = commands.add_parser("benchmark", help="how long a model takes on this machine")
    parser.add_argument(
        "model", nargs="?", default="default", metavar="MODEL", help=".onnx or an embedded model's name"
    )
    parser.add_argument("--image", metavar="FILE", help="picture to run on (default: the sample photograph)")
    parser.add_argument("--runs", type=int, default=20, metavar="N", help="default: %(default)s")
    _add_model_options(parser)
    parser.set_defaults(run=_benchmark)


def _benchmark(options: argparse.Namespace) -> int:
    from centermask.benchmark import input_size, measure
    from centermask.preprocess import load_image

    start = time.perf_counter()
    predictor = _predictor(options, None)
    started = time.perf_counter() - start
    image = load_image(options.image or sample_picture())
    figures = measure(predictor, image, options.runs)
    height, width = input_size(predictor, image)
    print(f"{options.model} ({predictor.info.name}), input {width}x{height}, picture {image.shape[1]}x{image.shape[0]}")
    print(f"model loaded in {1e3 * started:.0f} ms; median of {options.runs} runs, milliseconds:")
    for name, value in figures.items():
        print(f"  {name:<11}{value:8.1f}")
    print(f"peak memory {peak_memory() / 2**20:.0f} MiB")
    return 0


def _add_validate(commands: Any) -> None:
    parser = commands.add_parser(
        "validate",
        help="look for what is wrong with a data set",
        description="Looks at every picture and annotation of a data set: COCO (train.json, images/), COCO 2017, "
        "Roboflow-COCO or YOLO-seg.",
        epilog="exit codes:\n  0  nothing wrong, or warnings only\n"
        "  1  errors: something cannot be used, or would make figures lie\n"
        "  2  nothing was done: no data set there, or wrong usage",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("data", metavar="DATA", help="folder of the data set, or its data.yaml")
    parser.add_argument("--json", metavar="FILE", help="write counts and all findings")
    parser.add_argument("--html", metavar="FILE", help="write a page with pictures, in one file")
    parser.add_argument(
        "--size",
        type=int,
        default=512,
        metavar="PX",
        help="input size to judge small objects by (default: %(default)s)",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="that decode pictures (default: all cores)")
    parser.set_defaults(run=_validate)


def _validate(options: argparse.Namespace) -> int:
    from centermask.validate import command

    return command.run(options)


def _doctor(options: argparse.Namespace) -> int:
    from centermask.doctor import report

    lines, warnings = report()
    print("\n".join(lines))
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return 0


def _train(arguments: list[str]) -> int:
    try:
        from centermask.train_cli import run
    except ModuleNotFoundError as error:
        raise _missing("training", error) from None
    return run(arguments)


def _missing(what: str, error: ModuleNotFoundError) -> ImportError:
    return ImportError(f"{what} needs the package {error.name}: pip install 'centermask[train]'")


if __name__ == "__main__":
    sys.exit(main())
