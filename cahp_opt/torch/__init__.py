"""The PyTorch rooms: measuring a model, and applying a selection to it.

Importing this needs the ``torch`` extra; :mod:`cahp_opt` itself does not.
"""

from cahp_opt.pooling import Pooling
from cahp_opt.recovery import Weighting
from cahp_opt.torch.attention import (
    Attention,
    AttentionBlock,
    UnsupportedModelError,
    find_attention,
)
from cahp_opt.torch.bypassing import bypass_empty
from cahp_opt.torch.calibration import calibrate
from cahp_opt.torch.checkpoint import from_pretrained, save_pretrained
from cahp_opt.torch.completion import Anchor
from cahp_opt.torch.estimating import estimate_latency
from cahp_opt.torch.explicit import explicit_attention
from cahp_opt.torch.fidelity import Fidelity, fidelity_of
from cahp_opt.torch.finetuning import finetune
from cahp_opt.torch.gathering import gather_stats
from cahp_opt.torch.learning import learn_attention
from cahp_opt.torch.masking import capture_head_outputs, head_mask
from cahp_opt.torch.probing import measure_hardware
from cahp_opt.torch.promise import ForeignTableWarning, select_measured
from cahp_opt.torch.refitting import BlockFit, refit
from cahp_opt.torch.resources import count_resources
from cahp_opt.torch.samples import SampleFile
from cahp_opt.torch.slicing import selection_of, slice_heads
from cahp_opt.torch.staging import select_staged
from cahp_opt.torch.timing import measure_latency, time_models
from cahp_opt.torch.token_weights import TokenWeights
from cahp_opt.torch.verification import SliceError, verify_slice

__all__ = [
    "Anchor",
    "Attention",
    "AttentionBlock",
    "BlockFit",
    "Fidelity",
    "ForeignTableWarning",
    "Pooling",
    "SampleFile",
    "SliceError",
    "TokenWeights",
    "UnsupportedModelError",
    "Weighting",
    "bypass_empty",
    "calibrate",
    "capture_head_outputs",
    "count_resources",
    "estimate_latency",
    "explicit_attention",
    "fidelity_of",
    "find_attention",
    "finetune",
    "from_pretrained",
    "gather_stats",
    "head_mask",
    "learn_attention",
    "measure_hardware",
    "measure_latency",
    "refit",
    "save_pretrained",
    "select_measured",
    "select_staged",
    "selection_of",
    "slice_heads",
    "time_models",
    "verify_slice",
]
