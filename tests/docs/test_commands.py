"""The commands on each page of the documentation run from top to bottom."""

import pytest

from tests.conftest import ROOT
from tests.docs.commands import pages, run_page


@pytest.mark.slow
@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_of_a_page(page, tmp_path):
    pytest.importorskip("nilearn")
    run_page(page, tmp_path)
