"""What MONAI Label's training task does with a bundle: python label_train.py BUNDLE DATALIST."""

import json
import os
import sys

import monai.bundle
from monai.bundle import ConfigParser
from monai.data import partition_dataset

bundle, datalist = sys.argv[1:]
config = os.path.join(bundle, "configs/train.json")
parser = ConfigParser()
parser.read_config(config)
parser.config.update({"bundle_root": bundle})
with open(datalist) as file:
    cases = [{"image": case["image"], "label": case["label"]} for case in json.load(file)]
train, validate = partition_dataset(cases, ratios=[0.6, 0.4], shuffle=False)
handlers = parser.get("train#handlers", [])
assert not [handler for handler in handlers if handler.get("_target_") == "CheckpointLoader"]
checkpoint = os.path.join(bundle, "models/model.pt")
loader = {"_target_": "CheckpointLoader", "load_path": checkpoint, "load_dict": {"model": "$@network"}, "strict": False}
handlers.insert(0, loader)
sys.path.insert(0, bundle)
monai.bundle.run(
    run_id="",  # as 3D Slicer's plugin sends it: MONAI then evaluates the whole config
    init_id=None,
    final_id=None,
    meta_file=os.path.join(bundle, "configs/metadata.json"),
    config_file=config,
    **{
        "bundle_root": bundle,
        "train#trainer#max_epochs": 3,
        "train#dataset#data": train,
        "device": "cpu",
        "train#handlers": handlers,
        "validate#dataset#data": validate,
        # the tests' own, to be quick
        "epoch_length": 2,
        "val_interval": 1,
    },
)

import sparse3dunet  # noqa: E402

print("used:", sparse3dunet.__file__)
