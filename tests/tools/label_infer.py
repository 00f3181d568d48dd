"""What MONAI Label's inference task does with a bundle: python label_infer.py BUNDLE IMAGE OUTPUT."""

import json
import os
import sys

import nibabel as nib
import numpy as np
import torch
from monai.bundle import ConfigItem, ConfigParser
from monai.transforms import LoadImaged, SaveImaged

bundle, image, output = sys.argv[1:]
parser = ConfigParser()
parser.read_config(os.path.join(bundle, "configs/inference.json"))
parser.config.update({"bundle_root": bundle})
sys.path.insert(0, bundle)
network = parser.get_parsed_content("network_def", instantiate=True)
with open(os.path.join(bundle, "configs/metadata.json")) as file:
    formats = json.load(file)["network_data_format"]
key_image, key_pred = next(iter(formats["inputs"])), next(iter(formats["outputs"]))
labels = {name: int(n) for n, name in formats["outputs"][key_pred]["channel_def"].items() if name != "background"}
assert labels, "Label offers none"


def parsed(name):
    """An item, its device replaced by a string first, as at each request."""
    parser.config.update({"device": "cpu"})
    if parser.ref_resolver.items.get("device"):
        parser.ref_resolver.items["device"] = ConfigItem(config="cpu", id="device")
    return parser.get_parsed_content(name, instantiate=True)


checkpoint = torch.load(os.path.join(bundle, "models/model.pt"), map_location="cpu", weights_only=True)
network.load_state_dict(checkpoint.get("model", checkpoint), strict=True)
network.to("cpu").eval()
data = {key_image: image}
for transform in parsed("preprocessing").transforms:
    data = transform(data)
    if isinstance(transform, LoadImaged):
        data[f"{key_image}_meta_dict"] = dict(data[key_image].meta)
with torch.no_grad():
    data[key_pred] = parsed("inferer")(data[key_image][None].to("cpu"), network)[0]
for transform in parsed("postprocessing").transforms:
    if not isinstance(transform, SaveImaged):
        data = transform(data)
result = np.asarray(data[key_pred])[0]
assert result.shape == tuple(data[f"{key_image}_meta_dict"]["spatial_shape"]), "Label would resize it"
nib.save(nib.Nifti1Image(result.astype(np.uint8), nib.load(image).affine), output)

import sparse3dunet  # noqa: E402

print("used:", sparse3dunet.__file__)
