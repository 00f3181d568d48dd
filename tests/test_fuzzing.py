"""No damaged file of any kind ends a process, hangs, is read as something else, or is refused without its name."""

import pytest

from tests.fuzzing import run, table


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_damaged_files(tmp_path, seed):
    outcomes = run(tmp_path, seed, 700)
    print(table(outcomes))
    assert not [entry for entry in outcomes if entry[2] not in ("read", "refused")]
    refused = {kind for _, kind, outcome in outcomes if outcome == "refused"}
    assert refused > {"a.nii.gz", "raw.mha", "a.tif", "series", "models/model.pt", "train.yaml", "data/dataset.json"}
