import json
import subprocess
import sys

import pytest

import data_modules
from data_modules import formats

SHOW = """
import json, sys
import data_modules
print(json.dumps(sorted(sys.modules)))
"""


def test_importing_the_package_loads_no_network_no_loss_and_no_library_of_theirs():
    result = subprocess.run([sys.executable, "-c", SHOW], capture_output=True, text=True, check=True)
    loaded = json.loads(result.stdout.splitlines()[-1])
    unwanted = (
        "dataseg.network",
        "dataseg.losses",
        "dataseg.training",
        "dataseg.cli",
        "dataseg.text",
        "timm",
        "open_clip",
    )
    assert [name for name in loaded if name.startswith(unwanted)] == []
    assert "datasets" not in loaded


def test_readers_have_their_path_of_0_1_too():
    assert data_modules.CocoPanoptic is formats.CocoPanoptic
    with pytest.raises(AttributeError, match="no attribute 'CocoPanoptics'"):
        _ = data_modules.CocoPanoptics
