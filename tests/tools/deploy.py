"""What MONAI Deploy's bundle operator does with model.ts alone: python deploy.py MODEL.TS IMAGE OUTPUT."""

import json
import sys
import tempfile
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

sys.modules["sparse3dunet"] = None  # whoever imports it gets an error
from monai.bundle import ConfigParser  # noqa: E402
from monai.data import MetaTensor  # noqa: E402
from monai.transforms import MapTransform  # noqa: E402

script, image, output = sys.argv[1:]
parser = ConfigParser()
with zipfile.ZipFile(script) as archive, tempfile.TemporaryDirectory() as folder:
    inside = Path(script).stem + "/extra/"  # where the operator looks
    parser.read_meta(json.loads(archive.read(inside + "metadata.json")))
    parser.read_config([archive.extract(inside + "inference.json", folder)])
parser.parse()


def compose(name):
    """Transforms that neither load nor save: the operator does that itself."""
    found = parser.get_parsed_content(name)
    left_out = ("LoadImage", "SaveImage")
    found.transforms = tuple(t for t in found.transforms if not any(word in type(t).__name__ for word in left_out))
    assert isinstance(found.transforms[0], MapTransform)
    return found


device = parser.get_parsed_content("device")
inferer = parser.get_parsed_content("inferer")
before, after = compose("preprocessing"), compose("postprocessing")
network = torch.jit.load(script, map_location=device).eval()
formats = parser["_meta_"]["network_data_format"]
key_image, key_pred = next(iter(formats["inputs"])), next(iter(formats["outputs"]))
volume = nib.load(image)
meta = {
    "affine": volume.affine,
    "original_affine": volume.affine.copy(),
    "space": "RAS",
    "spatial_shape": np.asarray(volume.shape),
    "original_channel_dim": "no_channel",
}
with torch.no_grad():
    value = MetaTensor.ensure_torch_and_prune_meta(np.asarray(volume.dataobj, dtype=np.float32), meta)
    data = before({key_image: value})
    logits = inferer(inputs=data[key_image][None].to(device), network=network)
    assert logits.shape[1] == formats["outputs"][key_pred]["num_channels"]
    result = after({key_pred: logits[0], **data})[key_pred]
array = np.asarray(result.cpu())
assert array.shape[0] == 1, "the operator expects one channel"
nib.save(nib.Nifti1Image(np.squeeze(array, 0).astype(np.uint8), volume.affine), output)
print("used:", sorted(name for name in sys.modules if name.startswith("sparse3dunet.")))
