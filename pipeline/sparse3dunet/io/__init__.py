"""Reading images of all formats (see docs/formats.md), and writing results on exactly their grid, in most of them."""

from sparse3dunet.io.dicom_folders import dicom_series, is_dicom_folder
from sparse3dunet.io.folders import check_output_dir, hold_folder
from sparse3dunet.io.formats import read_image, read_label
from sparse3dunet.io.suffixes import IMAGE_SUFFIXES, OUTPUT_SUFFIXES, natural_suffix
from sparse3dunet.io.writing import check_output, write_map, write_segmentation

__all__ = [
    "IMAGE_SUFFIXES",
    "OUTPUT_SUFFIXES",
    "check_output",
    "check_output_dir",
    "dicom_series",
    "hold_folder",
    "is_dicom_folder",
    "natural_suffix",
    "read_image",
    "read_label",
    "write_map",
    "write_segmentation",
]
