"""`python -m cocoseg.export`: other formats of a trained model. No Lightning, no Hydra."""

import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from cocoseg.config_cross_checks import check_export
from cocoseg.errors import CocosegError, report_errors
from cocoseg.files import from_here
from cocoseg.workers import exit_code, stop_in_order

HELP = """\
Write a trained model in other formats, each checked against PyTorch at three sizes before it counts.

  python -m cocoseg.export checkpoint=outputs/train/…/segmentation_model.pth formats=onnx
  python -m cocoseg.export checkpoint=best.ckpt formats=[pth,onnx,torch_export] output=models argmax=false

checkpoint        segmentation_model.pth or a .ckpt file
formats=[onnx]    onnx (pip install onnx onnxruntime onnxscript; any batch size, height and width),
                  torch_export (.pt2, for torch alone; heights and widths are multiples of `multiple` in its
                  metadata, 2^depth or 32, and at least twice that), pth (of a .ckpt file)
output=null       folder; null: beside the checkpoint
argmax=true       the file maps images (B, H, W, 3) uint8 RGB to class indices (B, H, W) uint8;
                  false: to logits (B, C, H, W) float32
export_resize=false   true: the file resizes images to the size of training, and what is predicted back to
                  theirs, as predict.py does; prints the memory that this takes
network=null      my_nets.Net: the class of a custom network; a file never chooses what is imported
"""


class Settings(msgspec.Struct, forbid_unknown_fields=True):
    """The command line, see HELP."""

    checkpoint: str
    formats: tuple[str, ...] = ("onnx",)
    output: str | None = None
    argmax: bool = True
    export_resize: bool = False
    network: str | None = None


def main() -> None:
    """Write the formats. Wrong input ends the program with exit code 2 and one line on stderr."""
    arguments = sys.argv[1:]
    if not arguments or {"-h", "--help"} & set(arguments):
        print(HELP, end="")
        return
    try:
        with report_errors(), stop_in_order(signal.SIGINT, signal.SIGTERM):
            run(parse(arguments))
    except KeyboardInterrupt:
        sys.exit(exit_code(signal.SIGINT))


def parse(arguments: Sequence[str]) -> Settings:
    """Read `key=value` arguments; lists are written [a,b]."""
    pairs = (text.partition("=") for text in arguments)
    given: dict[str, Any] = {key: value for key, _, value in pairs if value != "null"}
    if formats := given.get("formats"):
        given["formats"] = [name.strip() for name in formats.strip("[]").split(",")]
    try:
        settings = msgspec.convert(given, Settings, strict=False)
    except msgspec.ValidationError as error:
        known = ", ".join(Settings.__struct_fields__)
        raise CocosegError(f"{' '.join(arguments)}: {error}; the settings are {known}") from error
    check_export(settings.formats, key="formats")
    return settings


def run(settings: Settings) -> None:
    """Write the formats, one after the other; the first that can't be written ends it."""
    from cocoseg.inference.export_formats import export_format
    from cocoseg.inference.exported_module import Deployed
    from cocoseg.inference.model import load_model
    from cocoseg.networks.model_file import read_weights, save_model

    checkpoint = Path(settings.checkpoint)
    model = load_model(checkpoint, settings.network)
    deployed = Deployed(model, argmax=settings.argmax, resize=settings.export_resize)
    path = Path(settings.output or checkpoint.parent, checkpoint.stem)
    for name in settings.formats:
        if name == "pth":
            target, content = path.with_name(f"{path.name}.pth"), read_weights(checkpoint)
            save_model(target, content["state_dict"], content["spec"], content["scores"])
            print(from_here(target), flush=True)
        else:
            print(export_format(name, deployed, path), flush=True)


if __name__ == "__main__":
    main()
