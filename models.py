"""The models under the public code's file name; each is written in the module that it is imported from."""

from hyperiqa.model.backbone import Backbone
from hyperiqa.model.hypernet import HyperNet
from hyperiqa.model.resnet import ResNetBackbone
from hyperiqa.model.target_net import TargetNet

__all__ = ["Backbone", "HyperNet", "ResNetBackbone", "TargetNet"]
