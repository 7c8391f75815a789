"""`python -m cocoseg.export`: other formats of a trained model. No Lightning, no Hydra."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from cocoseg.checks import check_export
from cocoseg.errors import CocosegError
from cocoseg.files import from_here
from cocoseg.parallel import sigterm_as_exit

HELP = """\
Write a trained model in other formats, each checked against PyTorch at three sizes before it counts.

  python -m cocoseg.export checkpoint=outputs/train/…/segmentation_model.pth formats=onnx
  python -m cocoseg.export checkpoint=best.ckpt formats=[pth,onnx,torch_export] output=models argmax=false

checkpoint        segmentation_model.pth or a .ckpt file
formats=[onnx]    onnx (needs pip install -e '.[onnx]'; any batch size, height and width),
                  torch_export (.pt2, for torch alone; heights and widths that are multiples of `multiple` in
                  its metadata, 2^depth or 32, from twice that up), pth (of a .ckpt file)
output=null       folder; null: beside the checkpoint
normalise=true    the file takes (B, H, W, 3) uint8 RGB; false: (B, 3, H, W) float32, normalised
argmax=true       the file gives the class index of each pixel, (B, H, W) uint8; false: logits (B, C, H, W)
network=null      my_nets.Net: the class of a network of your own; a file never chooses what is imported
"""


@dataclass
class Settings:
    """What the command line says, see HELP."""

    checkpoint: str = ""
    formats: tuple[str, ...] = ("onnx",)
    output: str | None = None
    normalise: bool = True
    argmax: bool = True
    network: str | None = None


def main() -> None:
    """Ends with exit code 2 and one line on stderr where the input is wrong."""
    arguments = sys.argv[1:]
    if not arguments or {"-h", "--help"} & set(arguments):
        print(HELP, end="")
        return
    try:
        with sigterm_as_exit():
            run(parse(arguments))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)  # as a shell counts: 128 + SIGINT
    except CocosegError as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":  # as in the other programs
            raise
        print(f"error: {error.sentence}", file=sys.stderr)
        sys.exit(error.exit_code)


def parse(arguments: Sequence[str]) -> Settings:
    """Read `key=value` arguments; lists are written [a,b].

    Raises:
        CocosegError: names the key.
    """
    settings = Settings()
    known = {field.name: field.default for field in fields(Settings)}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or key not in known:
            raise CocosegError(f"{argument}: no such setting; known: {', '.join(f'{k}=' for k in known)}")
        setattr(settings, key, _value(key, text, known[key]))
    if not settings.checkpoint:
        raise CocosegError("checkpoint is not set: a segmentation_model.pth or .ckpt file")
    check_export(settings.formats, key="formats")
    return settings


def run(settings: Settings) -> None:
    """Write what is asked for; one format that can't be written keeps none of the others from it.

    Raises:
        CocosegError: the checkpoint can't be loaded, or a format can't be written.
    """
    from cocoseg.export import load_model, read_weights, save_model
    from cocoseg.exporting import FORMATS, export_format

    checkpoint = Path(settings.checkpoint)
    model = load_model(checkpoint, settings.network)
    path = (Path(settings.output) if settings.output else checkpoint.parent) / checkpoint.stem
    failed: list[str] = []
    for name in dict.fromkeys(settings.formats):
        try:
            if name in FORMATS:
                done = export_format(name, model, path, normalise=settings.normalise, argmax=settings.argmax)
                print(f"{from_here(done.path)}  {done}", flush=True)
                continue
            target = path.with_name(f"{path.name}.pth")
            if target.exists() and target.samefile(checkpoint):
                raise CocosegError(f"{target} is the checkpoint itself; name another folder with output=")
            content = read_weights(checkpoint)
            save_model(target, content["state_dict"], content["spec"], content["scores"])
            print(f"{from_here(target)}  {target.stat().st_size / 1e6:.1f} MB", flush=True)
        except CocosegError as error:
            failed.append(f"formats: {name}: {error.sentence}")
    if failed:
        raise CocosegError("; ".join(failed))


def _value(key: str, text: str, default: object) -> object:
    if isinstance(default, bool):
        if text.lower() not in ("true", "false"):
            raise CocosegError(f"{key} is {text!r}; it must be true or false")
        return text.lower() == "true"
    if isinstance(default, tuple):
        return tuple(
            part.strip() for part in text.removeprefix("[").removesuffix("]").split(",") if part.strip()
        )
    return None if text == "null" else text
