"""The Swin backbone under the public code's file name; hyperiqa/model/swin.py defines it."""

from hyperiqa.model.hypernet import HyperNet
from hyperiqa.model.swin import SwinBackbone
from hyperiqa.model.target_net import TargetNet

__all__ = ["HyperNet", "SwinBackbone", "TargetNet"]
