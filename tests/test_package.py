"""What `import vmr_zoo` gives."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

import pytest

import vmr_zoo
from vmr_zoo.engine.retriever import Retriever


def test_the_package_imports_torch_only_with_the_retriever():
    code = "import sys, vmr_zoo; assert vmr_zoo.__version__; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert vmr_zoo.Retriever is Retriever


def test_the_version_is_that_of_the_package():
    assert vmr_zoo.__version__ == importlib.metadata.version("vmr_zoo")


def test_an_unknown_attribute_is_named():
    with pytest.raises(AttributeError, match="'Retreiver'"):
        _ = vmr_zoo.Retreiver
