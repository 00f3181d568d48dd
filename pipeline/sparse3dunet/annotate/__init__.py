"""Annotation in other programs: an app for MONAI Label, which 3D Slicer and OHIF talk to."""
