"""The PyTorch rooms: measuring a model, and applying a selection to it.

Importing this needs the ``torch`` extra; :mod:`cahp_opt` itself does not.
"""

from cahp_opt.runs.recovery import Weighting
from cahp_opt.stats.pooling import Pooling
from cahp_opt.torch.blocks.explicit import explicit_attention
from cahp_opt.torch.blocks.finder import (
    Attention,
    AttentionBlock,
    FeedForwardBlock,
    Prunable,
    PrunableBlock,
    UnsupportedModelError,
    find_attention,
    find_prunable,
)
from cahp_opt.torch.calibration.across_processes import gather_stats
from cahp_opt.torch.calibration.calibration import calibrate
from cahp_opt.torch.calibration.neuron_ordering import order_neurons
from cahp_opt.torch.calibration.staged_selection import select_staged
from cahp_opt.torch.checkpoints.checkpoint import from_pretrained, save_pretrained
from cahp_opt.torch.checkpoints.pushing import push_to_hub
from cahp_opt.torch.evaluation.evaluation import Judge, evaluate
from cahp_opt.torch.evaluation.fidelity import Fidelity, fidelity_of
from cahp_opt.torch.export.gguf_file import export_gguf
from cahp_opt.torch.export.onnx_folder import OnnxGraph, export_onnx
from cahp_opt.torch.export.refusals import ExportError
from cahp_opt.torch.export.stock import export_stock
from cahp_opt.torch.latency.block_times import measure_latency
from cahp_opt.torch.latency.exact_counts import count_resources
from cahp_opt.torch.latency.measured_selection import ForeignTableWarning, select_measured
from cahp_opt.torch.latency.model_times import time_models
from cahp_opt.torch.latency.peak_rates import measure_hardware
from cahp_opt.torch.latency.roofline import estimate_latency
from cahp_opt.torch.latency.timing_log import SampleFile
from cahp_opt.torch.methods.model_method import Evidence, ModelMethod
from cahp_opt.torch.recovery.finetuning import finetune
from cahp_opt.torch.recovery.mask_tuning import tune_masks
from cahp_opt.torch.recovery.refitting import BlockFit, refit
from cahp_opt.torch.recovery.token_weights import TokenWeights
from cahp_opt.torch.running.gates import capture_head_outputs, head_mask
from cahp_opt.torch.slicing.bypass import bypass_empty
from cahp_opt.torch.slicing.slicing import selection_of, slice_heads
from cahp_opt.torch.slicing.verification import SliceError, verify_slice
from cahp_opt.torch.studies.study import study
from cahp_opt.torch.tracing.descriptions import Anchor
from cahp_opt.torch.tracing.learning import learn_attention

__all__ = [
    "Anchor",
    "Attention",
    "AttentionBlock",
    "BlockFit",
    "Evidence",
    "ExportError",
    "FeedForwardBlock",
    "Fidelity",
    "ForeignTableWarning",
    "Judge",
    "ModelMethod",
    "OnnxGraph",
    "Pooling",
    "Prunable",
    "PrunableBlock",
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
    "evaluate",
    "explicit_attention",
    "export_gguf",
    "export_onnx",
    "export_stock",
    "fidelity_of",
    "find_attention",
    "find_prunable",
    "finetune",
    "from_pretrained",
    "gather_stats",
    "head_mask",
    "learn_attention",
    "measure_hardware",
    "measure_latency",
    "order_neurons",
    "push_to_hub",
    "refit",
    "save_pretrained",
    "select_measured",
    "select_staged",
    "selection_of",
    "slice_heads",
    "study",
    "time_models",
    "tune_masks",
    "verify_slice",
]
