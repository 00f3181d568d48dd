"""Networks: the 3D U-Net of Çiçek et al. (2016), exactly as published and in sizes for daily use."""

from sparse3dunet.networks.unet3d import UNet3D

__all__ = ["UNet3D"]
