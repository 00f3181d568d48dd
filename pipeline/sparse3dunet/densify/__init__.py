"""Densify: the annotated volumes of a run, segmented whole, with how good that is and what to annotate next."""
