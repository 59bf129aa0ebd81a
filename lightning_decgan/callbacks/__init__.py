"""Callbacks for anyone's Trainer: sample grids, gossip, scores, best checkpoint, histograms, summary, faults."""

from lightning_decgan.callbacks.batches import BatchProgressBar, StopAfterBatches, training_batches
from lightning_decgan.callbacks.best_checkpoint import BestCheckpoint
from lightning_decgan.callbacks.class_histogram import ClassHistogram
from lightning_decgan.callbacks.fault_injector import BadParameters, BadPayload, Delay, FaultInjector, Freeze, Kill
from lightning_decgan.callbacks.fidelity import FidelityCallback, images_of
from lightning_decgan.callbacks.gossip_monitor import GossipMonitor
from lightning_decgan.callbacks.keep_memory import KeepMemory
from lightning_decgan.callbacks.own_random_numbers import OwnRandomNumbers
from lightning_decgan.callbacks.run_summary import RunSummary
from lightning_decgan.callbacks.sample_grid import SampleGrid, image_grid, save_png

__all__ = [
    "BadParameters",
    "BadPayload",
    "BatchProgressBar",
    "BestCheckpoint",
    "ClassHistogram",
    "Delay",
    "FaultInjector",
    "FidelityCallback",
    "Freeze",
    "GossipMonitor",
    "KeepMemory",
    "Kill",
    "OwnRandomNumbers",
    "RunSummary",
    "SampleGrid",
    "StopAfterBatches",
    "image_grid",
    "images_of",
    "save_png",
    "training_batches",
]
