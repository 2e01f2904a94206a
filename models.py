"""The models under the public code's file name; the imports say which modules define them."""

from hyperiqa.model.backbone import Backbone
from hyperiqa.model.hypernet import HyperNet
from hyperiqa.model.resnet import ResNetBackbone
from hyperiqa.model.target_net import TargetNet

__all__ = ["Backbone", "HyperNet", "ResNetBackbone", "TargetNet"]
