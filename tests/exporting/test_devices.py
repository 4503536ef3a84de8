"""Exported programs on another device than the one that they were traced on."""

from __future__ import annotations

import torch
from torch.export.passes import move_to_device_pass

from edue_lightning.exporting.graph import MemberMaps, traced
from edue_lightning.networks import HeadLayout, MultiHeadUNet


def test_the_graph_of_a_network_of_volumes_holds_no_device() -> None:
    network = MultiHeadUNet(3, 1, 1, HeadLayout("decoder"), features=(4, 4, 4))
    program = traced(network, torch.zeros(2, 1, 8, 8, 8), 4)
    assert not [node for node in program.graph.nodes if "device" in node.kwargs]


def test_programs_of_a_bundle_run_on_the_device_that_they_are_moved_to() -> None:
    network = MultiHeadUNet(3, 1, 1, HeadLayout("decoder"), features=(4, 4, 4))
    image = torch.zeros(2, 1, 8, 8, 8)
    logits = network(image).flatten(1, 2).detach()
    for module, given, reduction in ((network, image, 4), (MemberMaps(1), logits, 1)):
        moved = move_to_device_pass(traced(module, given, reduction), "meta").module()
        found = moved(given.to("meta"))
        parts = found.values() if isinstance(found, dict) else [found]
        assert {part.device.type for part in parts} == {"meta"}
