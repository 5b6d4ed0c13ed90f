"""Whoever imports manners finds torch and transformers as they were."""

import json
import subprocess
import sys

import pytest

CHILD = """
import importlib, json, pkgutil
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations import sdpa_attention

def state():
    return {
        "attention": {name: repr(function) for name, function in AttentionInterface._global_mapping.items()},
        "masks": {name: repr(function) for name, function in AttentionMaskInterface._global_mapping.items()},
        "sdpa": AttentionInterface._global_mapping["sdpa"] is sdpa_attention.sdpa_attention_forward,
        "dtype": str(torch.get_default_dtype()),
        "device": str(torch.get_default_device()),
        "threads": [torch.get_num_threads(), torch.get_num_interop_threads()],
        "grad": [torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_anomaly_enabled()],
        "deterministic": [torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic],
        "precision": [torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.allow_tf32],
        "generator": torch.get_rng_state().tolist(),
    }

before = state()
import manners

names = [module.name for module in pkgutil.walk_packages(manners.__path__, "manners.")]
names = [name for name in names if "__main__" not in name and ".migrations." not in name]  # what is run
for name in names:
    importlib.import_module(name)
print(json.dumps([names, before, state()]))
"""


@pytest.mark.long
def test_importing_every_module_changes_nothing_in_torch_and_transformers() -> None:
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    names, before, after = json.loads(done.stdout.splitlines()[-1])
    assert {"manners.models.attention", "manners.loop.round", "manners.web.app"} <= set(names) and len(names) > 80
    assert before["sdpa"] and after == before
