"""monai.bundle.load(), and all workflows' properties: python properties.py BUNDLE DATASET, from the bundle's folder."""

import glob
import json
import sys

import torch
from monai.bundle import ConfigParser, create_workflow, load

bundle, dataset = sys.argv[1:]
metadata = "configs/metadata.json"
for kind, config in (("infer", "inference"), ("infer", "standalone"), ("train", "train")):
    for suffix in ("json", "yaml"):
        data = {"dataset_dir": dataset} if kind == "train" else {}
        file = f"configs/{config}.{suffix}"
        workflow = create_workflow(config_file=file, workflow_type=kind, meta_file=metadata, **data)
        assert workflow.check_properties() == [], file
for file in glob.glob("configs/*.yaml"):
    assert ConfigParser.load_config_file(file) == ConfigParser.load_config_file(file[:-4] + "json"), file

folder, _, name = bundle.rpartition("/")
weights = torch.load("models/model.pt", weights_only=True)
network = load(name, bundle_dir=folder)
loaded = network.state_dict()
assert loaded.keys() == weights.keys()
assert all(torch.equal(loaded[key], weights[key]) for key in weights)
_, told, extra = load(name, bundle_dir=folder, load_ts_module=True, config_files=("inference.json", "model.json"))
with open(metadata) as file:
    assert told == json.load(file)
assert all(json.loads(extra[key]) for key in ("inference.json", "model.json"))

import sparse3dunet  # noqa: E402

print("used:", sparse3dunet.__file__)
