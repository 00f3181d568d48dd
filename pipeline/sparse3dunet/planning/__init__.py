"""Fingerprint of a data set, and the plan made from it: voxel size, patches, network, normalisation, sampling."""

from sparse3dunet.planning.fingerprint import Fingerprint, fingerprint
from sparse3dunet.planning.plan import Plan, chosen, make_plan, read_plan, write_plan

__all__ = ["Fingerprint", "Plan", "chosen", "fingerprint", "make_plan", "read_plan", "write_plan"]
