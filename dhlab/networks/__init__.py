"""Networks from normalised ``(B, C, *space)`` to logits: compact ones, torchvision's and timm's, ONNX graphs."""

from __future__ import annotations

from dhlab.networks.attention import AttentionMIL
from dhlab.networks.base import Network
from dhlab.networks.building import NETWORKS, build_network
from dhlab.networks.catalogue import find_source
from dhlab.networks.compact import ConvClassifier, UNet
from dhlab.networks.onnx import OnnxNet, open_onnx
from dhlab.networks.parts import pool_features, split_head
from dhlab.networks.pixels import EmbeddingNet, FilterBankNet, Perceptron, PixelNetwork
from dhlab.networks.published import find_published
from dhlab.networks.recomputation import recompute
from dhlab.networks.unet import EncoderUNet
from dhlab.networks.weights import read_weights, take_over

__all__ = [
    "NETWORKS",
    "AttentionMIL",
    "ConvClassifier",
    "EmbeddingNet",
    "EncoderUNet",
    "FilterBankNet",
    "Network",
    "OnnxNet",
    "Perceptron",
    "PixelNetwork",
    "UNet",
    "build_network",
    "find_published",
    "find_source",
    "open_onnx",
    "pool_features",
    "read_weights",
    "recompute",
    "split_head",
    "take_over",
]
