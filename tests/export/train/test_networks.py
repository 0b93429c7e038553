import torch
from safetensors.torch import save_file
from torch import nn

from toonstream.export.train.networks import load_part, new_controlnet, new_text_encoder, new_unet


def test_a_part_takes_the_weights_it_has_a_place_for(tmp_path):
    network = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    kept = network[1].weight.clone()
    given = {"0.weight": torch.randn(3, 2).half(), "0.bias": torch.randn(3).half(), "2.weight": torch.ones(4)}
    save_file(given, tmp_path / "model.safetensors")
    load_part(network, tmp_path)
    assert torch.equal(network[0].weight, given["0.weight"].float())
    assert torch.equal(network[0].bias, given["0.bias"].float())
    assert torch.equal(network[1].weight, kept)


@torch.inference_mode()
def test_the_text_reaches_a_controlnet_at_every_level():
    torch.manual_seed(0)
    control = new_controlnet(new_unet()).eval()
    for convolution in (*control.controlnet_down_blocks, control.controlnet_mid_block):
        nn.init.normal_(convolution.weight, std=0.1)  # they start at zero
    encoder = new_text_encoder().eval()
    texts = [encoder(torch.full((1, 77), token)).last_hidden_state for token in (5, 9)]
    noise, hint = torch.randn(1, 32, 8, 8), torch.rand(1, 192, 8, 8)
    drawn = [control(noise, 999, text, hint, return_dict=False) for text in texts]
    for one, other in zip((*drawn[0][0][1:], drawn[0][1]), (*drawn[1][0][1:], drawn[1][1]), strict=True):
        assert (one - other).abs().mean() > 1e-3 * one.abs().mean()


def test_of_a_part_only_what_is_named_is_taken(tmp_path):
    network = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    given = {name: torch.ones_like(value) for name, value in network.state_dict().items()}
    kept = network[0].weight.clone()
    save_file(given, tmp_path / "model.safetensors")
    load_part(network, tmp_path, only="1.")
    assert torch.equal(network[0].weight, kept)
    assert torch.equal(network[1].weight, given["1.weight"])
