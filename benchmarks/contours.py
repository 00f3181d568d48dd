"""ITK's morphological interpolation of contours, for benchmarks/peers.py: in a process that holds no other library.

    python benchmarks/contours.py LABELS.npy AXIS OUT.npy     # AXIS as ITK counts, from the last one; -1: along all

Prints its seconds without the imports. Needs itk-morphologicalcontourinterpolation (extra `bench`).
"""

import sys
import time

import itk
import numpy as np


def main() -> None:
    """Fill between the labelled slices."""
    labels, axis, out = sys.argv[1:]
    image = itk.image_from_array(np.load(labels))
    _ = itk.MorphologicalContourInterpolator  # loads it
    started = time.perf_counter()
    found = itk.array_from_image(itk.morphological_contour_interpolator(image, axis=int(axis)))
    print(time.perf_counter() - started)
    np.save(out, found)


if __name__ == "__main__":
    main()
