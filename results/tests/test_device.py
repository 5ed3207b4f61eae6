"""What `--precision auto` makes of a processor."""

import pytest
import torch
from comparison import device


@pytest.mark.parametrize(
    ("vendor", "flags", "fast"),
    [
        ("GenuineIntel", "avx512f avx512_bf16 amx_bf16 amx_tile", True),
        ("GenuineIntel", "avx512f avx512_bf16", False),
        ("AuthenticAMD", "avx512f avx512_bf16", True),
        ("AuthenticAMD", "avx2", False),
    ],
)
def test_bf16_is_chosen_where_it_is_faster_than_float32(monkeypatch, vendor, flags, fast):
    monkeypatch.setattr(device, "_cpu_facts", lambda: {"vendor_id": vendor, "flags": flags})
    assert device.computes_bf16(torch.device("cpu")) is fast
    assert device.autocast_dtype("auto", torch.device("cpu")) == (torch.bfloat16 if fast else None)
    assert device.autocast_dtype("bf16", torch.device("cpu")) == torch.bfloat16


def test_a_processor_that_says_nothing_computes_in_float32(monkeypatch):
    monkeypatch.setattr(device, "_cpu_facts", dict)
    assert device.autocast_dtype("auto", torch.device("cpu")) is None
    assert device.describe_device(torch.device("cpu")).endswith(" threads")
