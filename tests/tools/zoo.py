"""The steps of the model zoo's ci/verify_bundle.py: python zoo.py BUNDLE SCHEMA, the bundle's root on sys.path."""

import json
import os
import shutil
import sys

import torch
from monai.bundle import ckpt_export, verify_metadata, verify_net_in_out

bundle, schema = sys.argv[1:]
inside = {name: os.path.join(bundle, name) for name in ("configs/metadata.json", "configs/inference.json")}
metadata_file, config_file = inside.values()
for required in (
    *inside.values(),
    *(os.path.join(bundle, n) for n in ("LICENSE", "docs/README.md", "models/model.pt")),
):
    assert os.path.isfile(required), required
with open(metadata_file) as file:
    metadata = json.load(file)
assert metadata["version"] in metadata["changelog"]

os.makedirs(os.path.join(bundle, "eval"), exist_ok=True)
verify_metadata(meta_file=metadata_file, filepath=shutil.copy(schema, os.path.join(bundle, "eval/schema.json")))
network = {"net_id": "network_def", "config_file": config_file, "meta_file": metadata_file, "bundle_root": bundle}
verify_net_in_out(**network)
exported = os.path.join(bundle, "models/verify_model.ts")
ckpt_export(**network, filepath=exported, ckpt_file=os.path.join(bundle, "models/model.pt"))
for script in (exported, os.path.join(bundle, "models/model.ts")):
    torch.jit.load(script)

import sparse3dunet  # noqa: E402

print("used:", sparse3dunet.__file__)
