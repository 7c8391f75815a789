"""`torch.compile` of the network for training."""

import logging

import lightning as L
import torch

from cocoseg.data.augment import training_size
from cocoseg.data.datamodule import SegmentationDataModule
from cocoseg.errors import TrainingError, first_line
from cocoseg.networks.device import is_out_of_memory, preserve_state
from cocoseg.training.batch_size import training_pass
from cocoseg.training.module import SegmentationModule

log = logging.getLogger(__name__)


class CompileNetwork(L.Callback):
    """Compiles the network and runs it once, so that the first step does not wait for the compiler.

    With `augment.start_size` each larger size of images is compiled in the first step that has it. Validation
    is not compiled: its last batch has another size, for which torch would compile anew.
    """

    def __init__(self, data: SegmentationDataModule):
        self.data = data

    def on_train_start(self, trainer: L.Trainer, pl_module: SegmentationModule) -> None:
        net = pl_module.net
        torch.compiler.reset()  # else earlier jobs of a sweep count, and after eight torch compiles no more
        # A function, because a module would add its weights to the state dict.
        pl_module.compiled = torch.compile(lambda image: net(image), dynamic=False)
        start = self.data.config.augment.start_size
        size = training_size(pl_module.spec.image_size, start, self.data.progress())
        try:
            with preserve_state(net):
                training_pass(pl_module, trainer, min(self.data.batch_size, len(self.data.train_set)), size)
        except Exception as error:  # a missing compiler, an unsupported network: types vary
            if is_out_of_memory(error):
                raise
            reason = first_line(error)
            raise TrainingError(f"compile: torch.compile failed ({reason}); set compile=false") from error
        log.info("compile: the network is compiled")
