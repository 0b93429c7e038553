"""Fresh networks of `toonlet`: the classes and layout of a Stable Diffusion 1.5 stack, only small."""

from pathlib import Path

import torch
from diffusers import AutoencoderTiny, ControlNetModel, MotionAdapter, UNet2DConditionModel, UNetMotionModel
from diffusers.models.autoencoders.vae import AutoencoderTinyBlock
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from toonstream.export.networks.patches import to_patches

__all__ = [
    "CONTROLS",
    "LATENT_CHANNELS",
    "load_part",
    "new_autoencoder",
    "new_controlnet",
    "new_text_encoder",
    "new_unet",
    "principal_components",
    "start_hints",
    "token_ids",
    "train_tokenizer",
    "with_motion",
]

CONTROLS = ("outline", "colour")
LATENT_CHANNELS = 32
TEXT_WIDTH = 128
TEXT_LENGTH = 77
VOCABULARY = 512

_CHANNELS = (96, 96, 128)  # room for noisy latents and for hints beside them: else details drown in noise
_GROUPS = 4  # wide: how bright a picture is must come through them
_HEADS = 4
_VAE_WIDTH = 2 * LATENT_CHANNELS
_PATCH = 8  # pixels along a side of what the VAE and the hint embeddings take as one
_LEAST_SCALE = 0.03  # of a component that is made as large as the others: below is noise
_HINT_CHANNELS = 96


def new_autoencoder() -> AutoencoderTiny:
    """A tiny VAE of patches, whose signals keep their size at the start; torch's own leaves most of it dead.

    It has one level, of patches laid into channels. Where a picture is doubled and convolved, level by
    level, what lies left and what lies right within a latent pixel can only be told by its neighbours; such
    a network of the same cost hardly learns lines at all.
    """
    values = 3 * _PATCH**2
    autoencoder = AutoencoderTiny(
        in_channels=values,
        out_channels=values,
        latent_channels=LATENT_CHANNELS,
        encoder_block_out_channels=(_VAE_WIDTH,),
        decoder_block_out_channels=(_VAE_WIDTH,),
        num_encoder_blocks=(2,),
        num_decoder_blocks=(6,),
        scaling_factor=2.0,  # small latents: the decoder begins with 3 tanh(x / 3)
    )
    for module in autoencoder.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    with torch.no_grad():
        for module in autoencoder.modules():
            if isinstance(module, AutoencoderTinyBlock):
                module.conv[-1].weight.mul_(0.1)
        for half in (autoencoder.encoder, autoencoder.decoder):
            half.layers[-1].weight.mul_(0.5)
    return autoencoder


def load_part(network: nn.Module, folder: Path, *, only: str = "") -> None:
    """Give `network` the weights in `folder` that it has a place for; what they lack stays as it is.

    Args:
        network: what is to be trained on.
        folder: holds one file of safetensors.
        only: a part of the names that are taken.
    """
    (path,) = folder.glob("*.safetensors")
    known = network.state_dict()
    weights = {
        name: value.float() for name, value in load_file(path).items() if name in known and only in name
    }
    network.load_state_dict(known | weights)


def new_unet() -> UNet2DConditionModel:
    """The spatial network; attention to the text only where the picture is smallest."""
    return UNet2DConditionModel(
        sample_size=32,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        block_out_channels=_CHANNELS,
        layers_per_block=1,
        norm_num_groups=_GROUPS,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=_HEADS,
    )


def new_controlnet(unet: UNet2DConditionModel) -> ControlNetModel:
    """A ControlNet of patches that starts as a copy of the network's way down.

    The text joins its time embedding too, and by that acts at every level: what a word changes everywhere,
    such as the warmth of the light, would else have to come up from where the picture is smallest.
    """
    config = {
        name: unet.config[name]
        for name in (
            "in_channels",
            "down_block_types",
            "block_out_channels",
            "layers_per_block",
            "norm_num_groups",
            "cross_attention_dim",
            "attention_head_dim",
        )
    }
    controlnet = ControlNetModel(
        **config,
        conditioning_channels=3 * _PATCH**2,
        conditioning_embedding_out_channels=(_HINT_CHANNELS,),
        addition_embed_type="text",
        addition_embed_type_num_heads=_HEADS,
    )
    names = ("time_embedding", "conv_in", "down_blocks", "mid_block")
    copied = {name: value for name, value in unet.state_dict().items() if name.startswith(names)}
    controlnet.load_state_dict(controlnet.state_dict() | copied)
    with torch.no_grad():
        controlnet.add_embedding.norm2.weight.mul_(0.2)  # beside the timestep, not over it
    return controlnet


def start_hints(controlnet: ControlNetModel, hints: Tensor) -> None:
    """Let a hint's embedding begin with the principal components of the patches of `hints` (N, 3, H, W).

    Each comes with both signs, since SiLU(x) - SiLU(-x) = x: the next convolution gets all of it. This one is
    not to learn: pixels of a patch are nearly the same pixel, and an optimiser would see little but their
    mean.
    """
    embedding = controlnet.controlnet_cond_embedding
    patches = to_patches(hints, controlnet.config.conditioning_channels)
    mean, scales, components = principal_components(patches)
    count = _HINT_CHANNELS // 2
    down = (components[:, :count] / scales[:count].clamp_min(_LEAST_SCALE)).T
    with torch.no_grad():
        embedding.conv_in.weight.zero_()
        embedding.conv_in.weight[:, :, 1, 1] = torch.cat([down, -down])
        embedding.conv_in.bias.copy_(torch.cat([-down @ mean, down @ mean]))
        nn.init.normal_(embedding.conv_out.weight, std=1.0 / embedding.conv_out.weight[0].numel() ** 0.5)
        nn.init.zeros_(embedding.conv_out.bias)


def principal_components(patches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What patches (N, C, h, w) are made of.

    Their mean (C,), the standard deviations (C,) along their principal components, the largest first, and
    those (C, C), a column each.
    """
    mean = patches.mean((0, 2, 3))
    flat = (patches - mean[:, None, None]).permute(0, 2, 3, 1).flatten(0, 2)
    variances, components = torch.linalg.eigh(flat.T @ flat / len(flat))
    return mean, variances.flip(0).clamp_min(1e-5).sqrt(), components.flip(1)


def new_text_encoder() -> CLIPTextModel:
    """A CLIP text encoder, two layers deep."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=VOCABULARY,
            hidden_size=TEXT_WIDTH,
            intermediate_size=3 * TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=_HEADS,
            max_position_embeddings=TEXT_LENGTH,
            projection_dim=TEXT_WIDTH,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    )


def with_motion(unet: UNet2DConditionModel) -> UNetMotionModel:
    """Add AnimateDiff motion modules that change nothing yet: their last projection is zero."""
    adapter = MotionAdapter(
        block_out_channels=_CHANNELS,
        motion_layers_per_block=1,
        motion_mid_block_layers_per_block=1,
        motion_num_attention_heads=_HEADS,
        motion_norm_num_groups=_GROUPS,
        motion_max_seq_length=32,
        use_motion_mid_block=True,
    )
    moving = UNetMotionModel.from_unet2d(unet, adapter)
    for name, module in moving.named_modules():
        if "motion_modules" in name and name.endswith("proj_out"):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    return moving


def train_tokenizer(texts: list[str], path: Path) -> Tokenizer:
    """A byte-level tokenizer in CLIP's manner, small enough for the words that mean something here."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|startoftext|>", "<|endoftext|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts * 50, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|startoftext|> $A <|endoftext|>",
        special_tokens=[("<|startoftext|>", 0), ("<|endoftext|>", 1)],
    )
    tokenizer.enable_truncation(TEXT_LENGTH)
    tokenizer.enable_padding(length=TEXT_LENGTH, pad_id=1, pad_token="<|endoftext|>")
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))
    return tokenizer


def token_ids(tokenizer: Tokenizer, texts: list[str]) -> Tensor:
    """The tokens of texts, (B, 77) int64."""
    return torch.tensor([encoding.ids for encoding in tokenizer.encode_batch(texts)])
