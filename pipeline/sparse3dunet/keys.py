"""Keys of the data dictionaries that all transforms, engines and configs share."""

IMAGE = "image"
"""(C, X, Y, Z) float32: the scan."""

LABEL = "label"
"""(1, X, Y, Z) integer: the class, 0 ... K-1; meaningless where the weight is 0."""

WEIGHT = "weight"
"""(1, X, Y, Z) float32, >= 0: how much the voxel counts; 0 means unlabeled."""

REFERENCE = "reference"
"""(1, X, Y, Z) integer: a dense label, for scoring alone; never trained on."""

CENTER = "center"
"""(3,) integer: the voxel in the middle of the patch to crop (the latter of two)."""

PRED = "pred"
"""(K, X, Y, Z) logits, or (1, X, Y, Z) the segmentation made from them."""

CASE_NAME = "case_name"
"""Name of a case, in data sets in which images have the same name."""

ANNOTATED_CLASSES = "annotated_classes"
"""Classes that were looked for in a case, if not all were in every case: their values, as read from a datalist; once
label and weight are made, (K,) bool by class number. Background may then be any of the others."""

ANNOTATED_SLICES = "annotated_slices"
"""Annotated slices of a label map, as declared in its datalist; removed when label and weight are made."""

MOMENTS = "moments"
"""Means and standard deviations of the channels of the whole volume, of which the case is a part: ``[[...], [...]]``;
removed when the image is normalised."""
